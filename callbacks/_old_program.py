"""A model that was frozen or unfrozen after an earlier `fit`, and not compiled again: Keras keeps the traced step."""

import warnings
from typing import Any

from tfopt import _keras
from tfopt._variables import unique_paths
from tfopt.callbacks._resuming.traced_step import changed_variables, find_traceable, trace_step
from tfopt.callbacks._step_count import has_keras_train_step


def warn_of_old_program(name: str, model: Any, epoch_iterator: Any) -> None:
    """Warn if the step that an earlier `fit` has traced moves other variables than those that are trainable now."""
    step = find_traceable(getattr(model, "train_function", None))
    if step is None or not step.experimental_get_tracing_count():
        return
    graph = trace_step(model, epoch_iterator)
    if graph is None or model.optimizer is None:
        return
    moved = {id(variable.handle) for variable in changed_variables(graph)}
    trainable = {id(variable): variable for variable in model.trainable_variables}
    built_for = {id(variable): variable for variable in _keras.optimizer_variables(model.optimizer, ())}
    frozen = [v for key, v in built_for.items() if key not in trainable and id(_handle(v)) in moved]
    # A variable without a gradient is not moved either, but the optimizer was built for it.
    is_sure = built_for and has_keras_train_step(model)
    unfrozen = [v for key, v in trainable.items() if is_sure and key not in built_for and id(_handle(v)) not in moved]
    for found, what in ((frozen, "frozen, and still trained"), (unfrozen, "unfrozen, and not trained")):
        if found:
            paths = ", ".join(unique_paths(found)[:5])
            warnings.warn(
                f"{name} measures the variables that are trainable now. `fit` keeps the step of an earlier `fit`, "
                f"because the model was not compiled again: {what}: {paths}. Call `compile` before this `fit`",
                stacklevel=2,
            )


def _handle(variable: Any) -> Any:
    return getattr(_keras.variable_value(variable), "handle", None)

"""The compiled steps of a `fit`, before the first of them runs."""

from typing import Any

from tfopt.callbacks._optimizers_of import compiled_optimizer_of
from tfopt.callbacks._resuming.traced_step import trace_step
from tfopt.callbacks._resuming.traced_validation import trace_validation
from tfopt.callbacks._running_fit import RunningFit, build_model, has_call


def trace_steps(model: Any, running: RunningFit) -> dict[str, Any]:
    """Return the graphs of the "training" and the "validation" step, where there are any, and make all variables."""
    steps = {"training": trace_step(model, running.epoch_iterator)}
    if steps["training"] is None:
        _build(model, running)
    steps["validation"] = trace_validation(model, running.given)
    return {step: graph for step, graph in steps.items() if graph is not None}


def _build(model: Any, running: RunningFit) -> None:
    # Without a graph, build now, because variables that the first step makes would come too late. A model without
    # `call` is never built, but its parts are.
    optimizer = compiled_optimizer_of(model)
    if optimizer is None:
        return
    if model.built or has_call(model):
        build_model(model, running)
    elif not optimizer.built and model.trainable_variables:
        optimizer.build(model.trainable_variables)

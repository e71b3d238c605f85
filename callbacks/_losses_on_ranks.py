"""Whether ranks with parts of a batch do what one process does with the whole batch, by the losses of a model."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfopt import _keras
from tfopt.callbacks._object_graph import is_of_a_library
from tfopt.callbacks._row_weights import has_row_weights
from tfopt.callbacks._running_fit import RunningFit
from tfopt.callbacks._step_count import has_keras_train_step

_SUMS = ("sum", "none", None)  # Without a reduction, the gradient is that of the sum.
_OVER_THE_BATCH = (keras.losses.dice, keras.losses.tversky)
_INSTEAD = (
    'For the mean of all ranks, give all losses reduction="sum" and divide by the expected {number} in a batch of all '
    "ranks: compile(loss_weights=1 / EXPECTED)"
)


class LossesOnRanks(NamedTuple):
    """What is known about the losses of a `fit`."""

    are_sums: bool  # All are sums over rows, so that gradients of the ranks must be summed.
    problems: list[str]  # Texts about losses that ranks compute otherwise than one process does.


class _Seen(NamedTuple):
    name: str
    loss: Any  # A Keras loss.
    is_masked: bool  # Whether the output of the model has a mask.
    has_values: bool  # Whether the loss has values to be reduced, and not one number for the batch.


def examine_losses(model: Any, running: RunningFit) -> LossesOnRanks | None:
    """Return what is known about the losses; None if a custom `train_step` or `compute_loss` computes them."""
    has_own_loss = type(model).compute_loss is not keras.Model.compute_loss or "compute_loss" in vars(model)
    if has_own_loss or not has_keras_train_step(model) or running.epoch_iterator is None:
        return None
    given = [_resolved(loss) for loss in keras.tree.flatten(getattr(model, "loss", None)) if loss is not None]
    has_extra = False
    if can_mask(model) or any(getattr(loss, "reduction", "mean") in _SUMS for loss in given):
        seen, has_extra = _look_into_step(model, running)
    else:
        seen = [_Seen(_name_of(loss), loss, False, True) for loss in given]
    has_weights = running.class_weight is not None or has_row_weights(running, model)
    problems = [text for one in seen if (text := _problem_of(one, has_weights))]
    sums = [one for one in seen if one.has_values and _reduction_of(one.loss) in _SUMS and not _is_over_batch(one.loss)]
    are_sums = bool(sums) and len(sums) == len(seen) and not has_extra
    if sums and not are_sums:
        beside = "regularisation or other added losses" if len(sums) == len(seen) else "losses that are no sums"
        problems += [
            f"{one.name} is a sum over rows, beside {beside}. Gradients are averaged over the ranks, so the loss "
            "weight of the sum must be that of one process times the number of ranks. Or use the mean over rows, and "
            "as its loss weight the number of rows in a batch of all ranks"
            for one in sums
        ]
    return LossesOnRanks(are_sums, list(dict.fromkeys(problems)))


def names_of_sums(model: Any) -> set[str]:
    """Return the names in `logs` of losses with the reduction "sum"; none if a loss has another one."""
    compiled = _keras.compile_loss(model, None)
    losses = _keras.flat_losses(compiled, None) or []
    if not losses or any(one.loss.reduction != "sum" for one in losses):
        return set()
    names = {"loss", *(metric.name for metric in compiled.metrics)}
    return names | {f"val_{name}" for name in names}


def can_mask(model: Any) -> bool:
    """Return whether a layer of a model may make masks."""
    return any(
        getattr(layer, "mask_zero", False)
        or isinstance(layer, keras.layers.Masking)
        or (type(layer).compute_mask is not keras.Layer.compute_mask and not is_of_a_library(type(layer).__module__))
        for layer in _keras.flatten_layers(model)()
    )


def _look_into_step(model: Any, running: RunningFit) -> tuple[list[_Seen], bool]:
    """Trace the losses of a training step; return them, and whether the model adds losses of its own."""
    seen: list[_Seen] = []
    extra: list[bool] = []
    compiled = _keras.compile_loss(model)

    def step(data: Any) -> None:
        data = keras.tree.map_structure(lambda leaf: None if isinstance(leaf, tf.experimental.Optional) else leaf, data)
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        outputs = model(x, training=True) if _keras.call_has_training_arg(model) else model(x)
        extra.append(bool(model.losses))
        compiled(y, outputs, weights)  # Makes the losses.
        before = _keras.flat_losses(compiled)
        _keras.flat_losses.set(compiled, [one._replace(loss=_watching(one, seen)) for one in before])
        try:
            compiled(y, outputs, weights)
        finally:
            _keras.flat_losses.set(compiled, before)

    spec = _keras.distributed_dataset(running.epoch_iterator).element_spec
    tf.function(step, autograph=False).get_concrete_function(spec)
    return seen, any(extra)


def _watching(entry: Any, seen: list[_Seen]) -> Any:
    """Return a loss that also appends to `seen` what it is called with."""
    unreduced = object.__new__(type(entry.loss))  # `copy.copy` would go through its config, without the user's classes.
    vars(unreduced).update(vars(entry.loss), reduction=None)

    def compute(y: Any, outputs: Any, weights: Any = None) -> Any:
        is_masked = any(_keras.keras_mask(leaf, None) is not None for leaf in keras.tree.flatten(outputs))
        values = unreduced(y, outputs)
        seen.append(_Seen(_name_of(entry.loss), entry.loss, is_masked, values.shape.rank != 0))
        return entry.loss(y, outputs, weights)

    return compute


def _problem_of(one: _Seen, has_weights: bool) -> str:
    reduction, name = _reduction_of(one.loss), one.name
    if _is_over_batch(one.loss):
        return (
            f"{name} is computed over all rows of a batch together, and each rank has its own rows. Use an `axis` "
            "without the axis of rows, such as Dice(axis=(1, 2, 3)), or another loss"
        )
    if not one.has_values or reduction in _SUMS:
        return ""
    if one.is_masked:
        return f"{name} is a mean over what a mask leaves, of which each rank has another number. " + _INSTEAD.format(
            number="number of entries"
        )
    if getattr(one.loss, "ignore_class", None) is not None:
        return (
            f"{name} is a mean over the targets that ignore_class={one.loss.ignore_class} leaves, of which each rank "
            "has another number. " + _INSTEAD.format(number="number of targets")
        )
    if reduction == "mean_with_sample_weight" and has_weights:
        return f"{name} divides by the sum of the weights of each rank's own rows. " + _INSTEAD.format(
            number="sum of weights"
        )
    return ""


def _is_over_batch(loss: Any) -> bool:
    function, options = getattr(loss, "fn", loss), _keras.loss_options(loss, {})
    axis = options.get("axis", None)
    if function is keras.losses.circle or (function in _OVER_THE_BATCH and axis is None):
        return True
    return 0 in axis if isinstance(axis, Iterable) else axis == 0 and axis is not None


def _resolved(loss: Any) -> Any:
    if isinstance(loss, str) and loss.lower() not in ("crossentropy", "ce"):
        return keras.losses.get(loss)
    return loss


def _reduction_of(loss: Any) -> Any:
    return getattr(loss, "reduction", "sum_over_batch_size")


def _name_of(loss: Any) -> str:
    function = getattr(loss, "fn", None)
    if type(loss).__name__ == "LossFunctionWrapper" and function is not None:
        loss = function
    name = getattr(loss, "__name__", None) or (loss if isinstance(loss, str) else type(loss).__name__)
    reduction = getattr(loss, "reduction", "sum_over_batch_size")
    return name if reduction == "sum_over_batch_size" else f"{name}(reduction={reduction!r})"

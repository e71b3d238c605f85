"""The metrics of a training, resolved and updated as `keras.Model.evaluate` does."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras

from tfopt._keras import CompileMetrics
from tfopt.bregman import losses
from tfopt.bregman.losses import Loss
from tfopt.bregman.network import DenseChain

__all__ = ["Metrics"]

_OUTPUT_ACTIVATIONS = {
    "linear": lambda outputs: outputs,
    # Keras's functions keep the logits with their result. Keras's cross-entropies compute from these logits.
    "softmax": keras.activations.softmax,
    "sigmoid": keras.activations.sigmoid,
}


class Metrics:
    """The metrics that the user gave.

    As in Keras, the shapes of targets and outputs decide what "accuracy" means, so it is resolved for each shape.

    Args:
        metrics: A list of Keras metrics, their names, or functions; None for none.
        chain: The network.
        loss: The loss.
    """

    def __init__(self, metrics: Any, chain: DenseChain, loss: Loss) -> None:
        self._given, self._num_outputs = _listed(metrics), chain.widths[-1]
        self._activation = _OUTPUT_ACTIVATIONS[chain.output_activation]
        self._of_shape: dict[tuple[int, ...], Any] = {}
        likely = self.of_targets(() if loss.targets == "distribution" else (self._num_outputs,)).metrics
        # Only names depend on the shapes. Make the object of a class once, because Keras numbers the objects.
        made = zip(self._given, likely, strict=True)
        self._given = [given if isinstance(given, str) else metric for given, metric in made]
        self.names = [metric.name for metric in likely]
        self.facts = [f"{metric.name}({_arguments(metric)}) of {chain.output_activation} outputs" for metric in likely]
        self.subtract_squares = any(_subtracts_squares(metric) for metric in likely)
        are_logits = loss in (losses.binary_crossentropy, losses.categorical_crossentropy) or loss.targets == "signs"
        if chain.output_activation == "linear" and are_logits:
            _warn_of_logits([metric for metric in likely if _takes_probabilities(metric)])

    def of_targets(self, shape: tuple[int, ...]) -> Any:
        """Return Keras's `CompileMetrics` for targets of the shape `(rows, *shape)`."""
        if shape not in self._of_shape:
            tensors = [keras.KerasTensor((None, *sizes)) for sizes in (shape, (self._num_outputs,))]
            made = CompileMetrics([_in_float64(_resolve(metric, *tensors)) for metric in self._given], None)
            made.build(*tensors)
            self._of_shape[shape] = made
        return self._of_shape[shape]

    def update(self, metrics: Any, targets: Any, outputs: Any, centred: Sequence[Any]) -> None:
        """Update metrics, as from `of_targets`, with targets as the user gave them and outputs of the last layer."""
        # `centred` are targets and outputs for metrics that subtract squares; empty if they take what others take.
        seen = targets, self._activation(outputs)
        # Groups of rows differ in size. A function that returns the mean of a group counts with the size of the group.
        num_rows = len(targets)
        for metric in metrics.metrics:
            pair = centred if centred and _subtracts_squares(metric) else seen
            weight = {"sample_weight": num_rows} if type(metric) is keras.metrics.MeanMetricWrapper else {}
            try:
                metric.update_state(*pair, **weight)
            except Exception as error:
                forms = [f"{part.dtype.name} of shape (rows, {', '.join(map(str, part.shape[1:]))})" for part in seen]
                raise ValueError(
                    f"`metrics` has {metric.name!r}, which must take what Keras passes to metrics. It received y_true "
                    f"as {forms[0]}, y_pred as {forms[1]}, and raised {type(error).__name__}: {error}"
                ) from error


def _subtracts_squares(metric: Any) -> bool:
    # Such a metric loses digits if the origin of the targets is far from 0.
    return type(metric) is keras.metrics.R2Score  # A subclass may compute something else.


def _listed(metrics: Any) -> list[Any]:
    if metrics is None:
        return []
    if isinstance(metrics, str) or not isinstance(metrics, Sequence):
        raise TypeError(f"`metrics` must be a list of Keras metrics or their names. Received: metrics={metrics!r}")
    return list(metrics)


def _resolve(metric: Any, targets: Any, outputs: Any) -> Any:
    made = CompileMetrics([metric], None)
    try:
        made.build(targets, outputs)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(metric, str):
            raise ValueError(f"`metrics` has {metric!r}, which Keras does not know: {error}") from error
        raise TypeError(f"`metrics` must be Keras metrics or their names. Received: {metric!r}: {error}") from error
    return made.metrics[0]


def _arguments(metric: Any) -> str:
    # Other classes may keep anything in their configuration, such as objects, whose text differs in each process.
    if not type(metric).__module__.startswith("keras."):
        return ""
    config = metric.get_config()
    plain = {key: value for key, value in config.items() if isinstance(value, int | float | str | list | tuple | None)}
    return ", ".join(f"{key}={value}" for key, value in plain.items() if key not in ("name", "dtype"))


def _in_float64(metric: Any) -> Any:
    if not _subtracts_squares(metric):
        return metric
    return keras.metrics.R2Score.from_config({**metric.get_config(), "dtype": "float64"})


def _takes_probabilities(metric: Any) -> bool:
    if not type(metric).__module__.startswith("keras."):
        return False
    config = metric.get_config()
    has_threshold = "thresholds" in config and config["thresholds"] is None and config.get("top_k") is None
    return has_threshold or config.get("threshold") == 0.5 or config.get("from_logits") is False


def _warn_of_logits(metrics: list[Any]) -> None:
    if metrics:
        warnings.warn(
            f"`metrics` has {', '.join(repr(metric.name) for metric in metrics)}, for which Keras takes outputs for "
            "probabilities and compares them with 0.5, but the outputs of this model are logits or margins, which are "
            "positive for the second class. Use thresholds of 0, such as keras.metrics.BinaryAccuracy('accuracy', "
            "threshold=0.0), or from_logits=True, or end the model with a sigmoid or softmax",
            stacklevel=5,  # The caller of BregmanTrainer.
        )

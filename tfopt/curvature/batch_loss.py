"""The loss of one batch, as a function of a model's weights that leaves the model unchanged."""

import contextlib
import copy
import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt import _keras
from tfopt._checks import check_choice
from tfopt._compiled import compiled
from tfopt._keras import CompileLoss, FuncGraph
from tfopt._variables import trained_variables
from tfopt.curvature.batch import form_of
from tfopt.curvature.batch_sizes import advice_on_batch_size, call_on_batch
from tfopt.curvature.dry_run import DryRun, weights_in
from tfopt.curvature.forward_mode import measuring
from tfopt.curvature.forward_pass import ForwardPass
from tfopt.curvature.held_variables import holding
from tfopt.curvature.known_products import fingerprint
from tfopt.curvature.model_checks import (
    NotBuiltError,
    SetsWeightsError,
    check_changes_nothing,
    check_model,
    check_reads_outputs_only,
    check_targets,
)
from tfopt.curvature.natural_parameters import Split
from tfopt.curvature.outputs import Outputs, each_once
from tfopt.curvature.precision import EPSILON, HALF, computes_in_half, largest_epsilon, loss_to_measure, rounded_to
from tfopt.curvature.probe import Probe

BATCH_NORM_MODES = ("batch", "moving")


class BatchLoss:
    """The loss of a model on a batch, regularisation included, as a function of the trainable variables.

    All checks of a model, its loss and its first batch are here: TypeError and ValueError say why they cannot be
    measured. The arguments are those of `Objective`, but `dtype`: "float64" to compute in float64 for any model dtype;
    None for the model's dtype.

    Attributes:
        variables: The trainable variables, except those whose gradient is their next value.
        dtype: The dtype of all computations; None for the model's, always so for a quantised model.
        given_loss: The argument `loss`.
        form: The form of the first batch.
        epsilon: The largest machine epsilon of the tensors between the weights and the loss.
        fingerprint: Equal for losses that are the same function of batches of this form; None if that is unknown.
        reduction: The loss's reduction if the result depends on how rows are divided into batches; else "".
    """

    def __init__(
        self, model: keras.Model, loss: Any, probe: Probe, batch_norm: str = "batch", dtype: str | None = None
    ) -> None:
        self.batch_norm = check_choice("batch_norm", batch_norm, BATCH_NORM_MODES)
        check_model(model)
        self.model = model
        self.variables = trained_variables(model.trainable_variables)
        # Quantised layers hold their weights in a form that only their own precision can read.
        layers = _keras.flatten_layers(model)()
        self._is_quantized = any(layer.quantization_mode for layer in layers)
        self.dtype = None if self._is_quantized else dtype
        self.precision = "float32" if any(map(computes_in_half, layers)) else "model"
        self.given_loss = loss
        self._is_custom = loss is None and type(model).compute_loss is not keras.Model.compute_loss
        self._outputs = Outputs([])  # the outputs of the model's last trace
        self._forward = ForwardPass(model, self.batch_norm, self.dtype)
        self.reduction = ""
        self._loss: CompileLoss | None = None
        self._parts: list[Any] = []  # the terms of the loss in the last trace
        self._dry_run = self._try_out(loss, probe)
        self.form = form_of(probe.batches[0].tensors)
        run = self._dry_run
        self.fingerprint = self.fingerprint_of(dict(zip(map(id, self.variables), run.values, strict=True)), run.batch)
        check_changes_nothing(self._dry_run.graph)
        rounded = rounded_to(self._dry_run.graph, self._dry_run.values)
        self.epsilon = largest_epsilon(self._dry_run.graph, self._dry_run.values)
        if rounded is not None and not self._is_quantized:  # the casts of a quantised model are necessary
            self.precision = rounded

    def in_dtype(self, dtype: str | None) -> "BatchLoss":
        """Return the same loss, computed in a dtype like the argument `dtype`, without checking the model again."""
        other = copy.copy(self)
        other.fingerprint = None
        other.dtype = None if self._is_quantized else dtype
        if other.dtype is not None:
            other.epsilon = EPSILON[tf.as_dtype(other.dtype)]
        other._forward = ForwardPass(self.model, self.batch_norm, other.dtype)
        if self._loss is not None:
            other._loss = self._in_precision(self._loss, _keras.flat_losses(self._loss), other.dtype)
        return other

    def fingerprint_of(self, weights: dict[int, Any], batch: Any) -> Any:
        """Return the fingerprint of the last trace of the loss, with tensors for variables by their ids."""
        variables = self.model.variables
        at = {index: weights[id(v)] for index, v in enumerate(variables) if id(v) in weights}
        rows = [leaf for leaf in tf.nest.flatten(batch) if leaf is not None]
        return fingerprint(self._parts, at, rows, variables)

    def fingerprint_at(self, batch: tuple[Any, Any, Any]) -> Any:
        """Return the fingerprint of the loss of batches like `batch`, from a trace with the present Python values."""
        run = DryRun(batch, self.variables, self.dtype)
        with run.graph.as_default():
            self.loss(run.values, run.batch)
        return self.fingerprint_of(dict(zip(map(id, self.variables), run.values, strict=True)), run.batch)

    def loss(self, values: Sequence[Any], batch: tuple[Any, Any, Any], variables: Sequence[Any] | None = None) -> Any:
        """Return the loss of a batch, a scalar tensor; `variables` None means all trainable ones."""
        _, y, sample_weight = batch
        with self._scope(values, variables):
            if self._is_custom:
                parts = [call_on_batch(lambda: self._forward.custom_loss(*batch), batch[0], self.form)]
            else:
                y_pred = self._predict(batch[0])
                parts = [tf.reduce_sum(part) for part in self.model.losses]
                if self._loss is not None:
                    parts.append(self._loss(y, y_pred, sample_weight))
        self._parts = parts
        dtype = self.dtype or parts[-1].dtype
        return tf.add_n([tf.cast(part, dtype) for part in parts])

    def outputs(self, values: Sequence[Any], x: Any, variables: Sequence[Any] | None = None) -> list[Any]:
        """Return the tensors from which the loss is split: logits or outputs of the model, according to `split`."""
        # An output that joins several softmax results, such as those of time steps, gives several. Raises ValueError if
        # the model adds losses in its layers, which are no function of its outputs.
        if self._is_custom:
            raise ValueError(
                f"`loss` must be given, because {type(self.model).__name__} overrides `compute_loss`, whose result may "
                "depend on more than the outputs. Received: loss=None"
            )
        # Only a graph records the origin of outputs.
        if tf.executing_eagerly() and not tf.config.functions_run_eagerly():
            return list(compiled(lambda values, x: self.outputs(values, x, variables))(list(values), x))
        with self._scope(values, variables):
            y_pred = each_once(self._predict(x), self._weights_of(values))
            num_regularized = sum(v.regularizer is not None for v in self.model.trainable_variables)
            if len(self.model.losses) > num_regularized:
                raise ValueError(
                    "`model` must not add losses in its layers (add_loss or activity_regularizer): they are no "
                    "function of its outputs, and have no Gauss-Newton matrix. Use HessianOperator"
                )
        self._outputs = self._outputs_of(y_pred, values, None if self.split is None else self.split.before_ending)
        return self._outputs.tensors

    def loss_of_outputs(self, outputs: Sequence[Any], batch: tuple[Any, Any, Any]) -> Any:
        """Return the loss of a batch without regularisation, a scalar tensor, in the same trace as `outputs`."""
        # Raises ValueError if the loss reads weights of the model, and so is not a function of its outputs.
        _, y, sample_weight = batch
        if self._loss is None:
            return tf.zeros((), outputs[0].dtype)
        num_before = 0 if tf.executing_eagerly() else len(tf.compat.v1.get_default_graph().get_operations())
        with measuring(self.dtype), holding([], [], contextlib.nullcontext):
            loss = self._loss(y, self._outputs.at(outputs), sample_weight)
        check_reads_outputs_only(self.variables, loss, num_before)
        return loss

    def regularization(self, values: Sequence[Any], variables: Sequence[Any]) -> Any:
        """Return the regularisers' loss of some variables, a scalar tensor; None if no variable has a regulariser."""
        pairs = [(v, value) for v, value in zip(variables, values, strict=True) if v.regularizer is not None]
        if not pairs:
            return None
        with measuring(self.dtype):
            return tf.add_n([tf.reduce_sum(variable.regularizer(value)) for variable, value in pairs])

    def _predict(self, x: Any) -> Any:
        return call_on_batch(lambda: self._forward.predict(x), x, self.form)

    def _scope(self, values: Sequence[Any], variables: Sequence[Any] | None) -> Any:
        return self._forward.at(self.variables if variables is None else variables, values)

    @functools.cached_property
    def split(self) -> Split | None:
        """The split of the loss from the outputs; None if there is no loss of the outputs."""
        run = self._dry_run
        if run.loss is None:
            return None
        with run.graph.as_default():
            targets = [leaf for leaf in keras.tree.flatten(run.batch[1]) if leaf is not None]
            return Split(self._outputs_of(run.y_pred, run.values, None), run.loss, run.start, targets)

    def _outputs_of(self, y_pred: Any, values: Sequence[Any], splits: Sequence[bool] | None) -> Outputs:
        return Outputs(y_pred, self._weights_of(values), splits)

    def _weights_of(self, values: Sequence[Any]) -> list[Any]:
        graph = tf.compat.v1.get_default_graph()
        return [] if tf.executing_eagerly() else weights_in(graph, values, self.variables)

    def _try_out(self, loss: Any, probe: Probe) -> DryRun:
        # Only trace: a model that changes a tf.Variable must be rejected before it runs.
        run = DryRun(probe.batches[0].tensors, self.variables, self.dtype)
        x, y, sample_weight = run.batch
        with run.graph.as_default(), self._forward.at(self.variables, run.values, sources=[]):
            try:
                run.y_pred = each_once(self._forward.predict(x), self._weights_of(run.values))
            except (NotBuiltError, SetsWeightsError):
                raise
            except Exception as error:
                found = self._forward.changed_shapes() or "`x` must fit the model."
                found += advice_on_batch_size(self.model, probe.batches[0].num_rows)
                raise ValueError(f"{found} {type(self.model).__name__} raised: {error}") from error
            if self._is_custom:
                self._parts = [self._forward.custom_loss(x, y, sample_weight)]
                return run
            self._parts = [tf.reduce_sum(part) for part in self.model.losses]
            self._loss = self._make_loss(loss, run, probe)
            if self._loss is not None:
                run.start = len(run.graph.get_operations())
                run.loss = self._loss(y, run.y_pred, sample_weight)
                shape = None if run.loss is None else run.loss.shape
                if shape is None or shape.rank != 0:
                    raise ValueError(
                        "`loss` must reduce the rows to a number. Received: a loss of shape "
                        f"{shape and tuple(shape)}. Use a loss with the reduction 'sum_over_batch_size'"
                    )
                self._parts.append(run.loss)
        return run

    def _make_loss(self, loss: Any, run: DryRun, probe: Probe) -> CompileLoss | None:
        # Build a separate loss, because the model's own updates metrics, which a measurement must not change.
        own = _keras.compile_loss(self.model, None)
        weights = None
        if loss is None:
            if own is not None:
                loss, weights = _keras.user_loss(own), _keras.user_loss_weights(own)
            elif not (self.model.compiled and self.model.losses):
                raise ValueError(
                    "`loss` must be given, because the model was not compiled with a loss. "
                    "Pass loss=..., as `compile` takes it"
                )
        if loss is None:
            return None
        check_loss_name(loss)
        made = CompileLoss(loss, weights, output_names=getattr(self.model, "output_names", None))
        _, y, sample_weight = run.batch
        check_targets(y, run.y_pred)
        try:
            # Build it in a separate graph and scope, because it does not yet have the dtype of measurements.
            with (
                FuncGraph("thrown_away").as_default(),
                self._forward.at(self.variables, run.values, sources=[]),
            ):
                made(y, run.y_pred, sample_weight)
        except Exception as error:
            raise ValueError(
                "`loss`, `y` and `sample_weight` must fit the model's outputs. "
                f"Keras raised: {type(error).__name__}: {error}"
            ) from error
        return self._finish_loss(made, probe)

    def _finish_loss(self, made: CompileLoss, probe: Probe) -> CompileLoss:
        parts = _keras.flat_losses(made)
        for part in parts:
            reduction = getattr(part.loss, "reduction", None)
            depends = reduction == "sum" or (
                reduction == "mean_with_sample_weight" and probe.batches[0].sample_weight is not None
            )
            if depends:
                self.reduction = str(reduction)
            if getattr(part.loss, "dtype", None) in HALF:
                self.precision = "float32"
        return self._in_precision(made, parts, self.dtype)

    def _in_precision(self, made: CompileLoss, parts: Sequence[Any], dtype: str | None) -> CompileLoss:
        # Compute the loss in float64 if the weights are, because Keras by default casts outputs to float32.
        dtypes = {tf.as_dtype(v.dtype) for v in self.variables}
        wide = dtype or ("float64" if tf.float64 in dtypes else None)
        copied = loss_to_measure(made, wide)
        _keras.flat_losses.set(copied, [part._replace(loss=loss_to_measure(part.loss, wide)) for part in parts])
        return copied


def check_loss_name(loss: Any) -> None:
    """Raise ValueError if `loss` is a string that Keras does not know."""
    if isinstance(loss, str):
        try:
            keras.losses.get(loss)
        except ValueError as error:
            raise ValueError(f"`loss` must be a loss that Keras knows. Received: loss={loss!r}") from error


def check_trainable(known: Sequence[Any], choice: Any) -> list[Any]:
    """Return the `known` trainable variables of a choice: None for all, a variable, a layer, or a list of these."""
    # TypeError for any other choice; ValueError for no variable, a foreign or untrained one, or one twice.
    if choice is None:
        return list(known)
    chosen = []
    for item in choice if isinstance(choice, list | tuple) else [choice]:
        if isinstance(item, keras.layers.Layer):
            chosen += trained_variables(item.trainable_variables)
        elif isinstance(item, keras.Variable):
            chosen.append(item)
        else:
            raise TypeError(
                "`variables` must be Keras variables or layers of the model. "
                f"Received: {item!r} of type {type(item).__name__}"
            )
    ids = {id(v) for v in known}
    strangers = [v.path for v in chosen if id(v) not in ids]
    if not chosen or strangers or len({id(v) for v in chosen}) < len(chosen):
        raise ValueError(
            "`variables` must be trainable variables of the model, each once. Received: "
            f"{'others: ' + ', '.join(strangers) if strangers else [v.path for v in chosen]}"
        )
    return chosen

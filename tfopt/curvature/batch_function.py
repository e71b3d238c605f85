"""A compiled function of weights and a batch, which later objectives of the same loss use again."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfopt._compiled import traced
from tfopt.curvature.batch import form_of
from tfopt.curvature.batch_loss import BatchLoss
from tfopt.curvature.held_variables import holding
from tfopt.curvature.known_products import reads_none
from tfopt.curvature.max_pooling import differentiated_once
from tfopt.curvature.recently_used import RecentlyUsed

_known = RecentlyUsed(16)


@dataclass(frozen=True)
class _Known:
    function: Callable[..., Any]
    fingerprint: Any  # of the loss of batches of this form


class BatchFunction:
    """A function of values of `variables` and of a batch, compiled once for each form of batch.

    Losses that TensorFlow recorded by the same operations are one function (see `known_products`), which is compiled
    once in a process. All variables of the model are arguments, so that equal models share it.

    Args:
        kind: The name of what is computed.
        trace: Computes it of the values and the batch, in a graph.
        batch_loss: The loss of which it is computed, and of nothing else.
        variables: The variables whose values are given.
    """

    def __init__(self, kind: str, trace: Callable[..., Any], batch_loss: BatchLoss, variables: Sequence[Any]) -> None:
        self._kind, self._trace, self._batch_loss, self._variables = kind, trace, batch_loss, variables
        chosen, every = {id(variable) for variable in variables}, batch_loss.model.variables
        self._others = [variable for variable in every if id(variable) not in chosen]
        places = {id(variable): index for index, variable in enumerate(every)}
        self._chosen = tuple(places.get(id(variable)) for variable in variables)
        self._by_form: dict[Any, Callable[..., Any]] = {}

    def __call__(self, values: Sequence[Any], batch: Any) -> Any:
        """Return the result for a batch: tensors."""
        others = [tf.convert_to_tensor(variable.value) for variable in self._others]
        form = form_of(batch)
        if form not in self._by_form:
            self._by_form[form] = self._find(form, list(values), others, batch)
        return self._by_form[form](values, others, batch)

    def _find(self, form: Any, *arguments: Any) -> Callable[..., Any]:
        loss = self._batch_loss
        if loss.fingerprint is None:
            return self._compile(*arguments).function
        key = self._kind, loss.fingerprint, form, self._chosen, form_of(arguments[:2])
        found: _Known | None = _known.find(key)
        # Values of attributes may have changed between an objective and its first call.
        if found is not None and found.fingerprint == self._fingerprint_now(form, arguments[2]):
            return found.function
        made = self._compile(*arguments)
        if made.fingerprint is not None:
            _known.keep(key, made)
        return made.function

    def _fingerprint_now(self, form: Any, batch: Any) -> Any:
        # Python code may treat batches of another size otherwise: only a trace tells.
        loss = self._batch_loss
        return loss.fingerprint if form == loss.form else loss.fingerprint_at(batch)

    def _compile(self, *arguments: Any) -> _Known:
        """Trace the function; the fingerprint is None if the function belongs to this model only."""
        seen: list[Any] = []

        def trace_with_others(values: Any, others: Any, batch: Any) -> Any:
            held = list(zip(self._others, others, strict=True))
            with differentiated_once(), holding(held, [], contextlib.nullcontext):
                result = self._trace(values, batch)
            weights = zip(map(id, [*self._variables, *self._others]), [*values, *others], strict=True)
            seen.append(self._batch_loss.fingerprint_of(dict(weights), batch))
            return result

        function, graph = traced(trace_with_others, *arguments)
        loss = self._batch_loss
        if loss.fingerprint is None or not reads_none(graph, loss.model.variables):
            return _Known(function, None)
        # Objectives know losses by the operations that products record, and these pool maxima by others.
        is_pooled = any(operation.type == "MaxPool" for operation in graph.get_operations())
        return _Known(function, loss.fingerprint_at(arguments[2]) if is_pooled else seen[-1])

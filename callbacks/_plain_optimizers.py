"""Optimizers of a model that average no gradients over the ranks: refused, or watched because they may be unused."""

from typing import Any

from tfopt.callbacks._optimizers_of import compiled_optimizer_of, optimizers_of
from tfopt.callbacks._step_count import has_keras_train_step, look_at
from tfopt.distributed.optimizer import DistributedOptimizer


class PlainOptimizers:
    """The optimizers of a model that are not `DistributedOptimizer`, as they are when this object is made.

    Keras's `train_step` uses the optimizer of `compile`. A `train_step` of one's own uses some of those that the model
    holds. It may leave the one of `compile` unused (Keras's default, in GANs) and those with which parts of the model
    were compiled (in an earlier training). These must take no step.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._compiled = compiled_optimizer_of(model)
        self._has_own_step = not has_keras_train_step(model)
        self._found = self._find()
        self._watched = [(name, look_at(each)) for name, each in self._found if not _is_distributed(each)]
        self._may_be_late = self._has_own_step  # The first batch may make optimizers.

    @property
    def is_of_another_compile(self) -> bool:
        """Whether the model was compiled again since."""
        return compiled_optimizer_of(self._model) is not self._compiled

    def problem_before(self) -> str:
        """Say which optimizer prevents a training on several ranks; an empty text means none."""
        for name, optimizer in self._found:
            is_unused = optimizer is self._compiled or name.endswith(".optimizer")
            if not _is_distributed(optimizer) and not is_unused:
                return self._text(name, optimizer)
        if any(_is_distributed(each) for _, each in self._found):
            return ""
        return self._text("optimizer", self._compiled)

    def problem_after_batch(self) -> str:
        """Say which optimizer has taken a step without the other ranks; an empty text means none."""
        for name, before in self._watched:
            if look_at(before.optimizer).counters != before.counters:
                return self._text(name, before.optimizer)
        if self._may_be_late:
            self._may_be_late = False
            known = {id(optimizer) for _, optimizer in self._found}
            for name, optimizer in self._find():
                if id(optimizer) not in known and not _is_distributed(optimizer):
                    now = look_at(optimizer)
                    if now.steps:
                        return self._text(name, optimizer)
                    self._watched.append((name, now))
        return ""

    def _find(self) -> list[tuple[str, Any]]:
        if self._has_own_step:
            return optimizers_of(self._model)
        return [] if self._compiled is None else [("optimizer", self._compiled)]

    def _text(self, name: str, optimizer: Any) -> str:
        if optimizer is self._compiled:
            compiled = "without an optimizer" if optimizer is None else f"with a plain {type(optimizer).__name__}"
            return (
                f"The model was compiled {compiled}: each rank would train on its own. "
                "Use model.compile(tfopt.distributed.DistributedOptimizer(optimizer), ...)"
            )
        return (
            f"The model has the optimizer {name!r}, a plain {type(optimizer).__name__}: each rank would train on "
            "its own where the model's train_step uses it. Use tfopt.distributed.DistributedOptimizer(optimizer)"
        )


def _is_distributed(optimizer: Any) -> bool:
    return type(optimizer) is DistributedOptimizer

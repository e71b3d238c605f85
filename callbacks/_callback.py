"""The base class of all callbacks of tfopt."""

from typing import Any

import keras


class Callback(keras.callbacks.Callback):
    """A Keras callback that refuses models whose gradients Horovod's own Keras wrapper would not average."""

    needs_optimizer = False  # True if the callback is useless in a training without an optimizer.

    def set_model(self, model: Any) -> None:
        """Check the model's optimizer, then take the model."""
        refuse_horovod_keras(getattr(model, "optimizer", None))
        super().set_model(model)

    @property
    def parameters(self) -> dict[str, Any]:
        """The `epochs`, `steps` and `verbose` of this `fit`; empty in training loops that do not set them."""
        return self.params or {}

    def get_state(self) -> dict[str, Any] | None:
        """Return numbers, strings, arrays and collections of them for `ResumableCheckpoint`; None for no state."""
        return None

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`; called after `on_train_begin`."""


def refuse_horovod_keras(optimizer: Any) -> None:
    """Raise ValueError if `horovod.tensorflow.keras.DistributedOptimizer` made this optimizer; None is allowed."""
    while optimizer is not None:
        if any(cls.__module__.split(".")[0] == "horovod" for cls in type(optimizer).__mro__):
            raise ValueError(
                "The model was compiled with horovod.tensorflow.keras.DistributedOptimizer, which does not average "
                "gradients under Keras 3: it overrides methods that Keras 3 never calls, and every rank trains on its "
                "own. Use tfopt.distributed.DistributedOptimizer"
            )
        optimizer = getattr(optimizer, "inner_optimizer", None)

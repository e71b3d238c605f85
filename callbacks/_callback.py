"""What all callbacks of tfopt have in common."""

from typing import Any

import keras


class Callback(keras.callbacks.Callback):
    """A Keras callback that refuses models whose gradients Horovod's own Keras wrapper would not average."""

    needs_optimizer = False  # those that do are of no use in training without one

    def set_model(self, model: Any) -> None:
        """Take the model, when training begins.

        Args:
            model: The Keras model.
        """
        refuse_horovod_keras(getattr(model, "optimizer", None))
        super().set_model(model)

    @property
    def parameters(self) -> dict[str, Any]:
        """What `fit` has said of this training: `epochs`, `steps`, `verbose`; nothing in loops that say nothing."""
        return self.params or {}

    def get_state(self) -> dict[str, Any] | None:
        """Return what `ResumableCheckpoint` must keep of this callback.

        Returns:
            Numbers, strings, arrays, and lists, tuples and dictionaries of them; None where there is nothing to keep.
        """
        return None

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was written; called after `on_train_begin`.

        Args:
            state: What `get_state` has returned.
        """


def refuse_horovod_keras(optimizer: Any) -> None:
    """Refuse an optimizer that `horovod.tensorflow.keras.DistributedOptimizer` has made.

    Args:
        optimizer: The model's optimizer, or None.

    Raises:
        ValueError: It is one.
    """
    while optimizer is not None:
        if any(cls.__module__.split(".")[0] == "horovod" for cls in type(optimizer).__mro__):
            raise ValueError(
                "The model was compiled with horovod.tensorflow.keras.DistributedOptimizer, which does not average "
                "gradients under Keras 3: it overrides methods that Keras 3 never calls, and every rank trains on its "
                "own. Use tfopt.distributed.DistributedOptimizer"
            )
        optimizer = getattr(optimizer, "inner_optimizer", None)

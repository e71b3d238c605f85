"""The weights that a training begins with, by which `fit` recognises a checkpoint of another training.

A restart builds the model again. If an initializer has no seed, it then draws other weights. Such weights are therefore
described by their initializer, and all others by their values.
"""

import hashlib
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfopt._keras import get_random_seed
from tfopt.bregman.first_weights import REPEATABLE, is_drawn_again
from tfopt.bregman.network import DenseChain
from tfopt.bregman.settings import Settings, SplittingSettings
from tfopt.bregman.splitting import order_of_updates

__all__ = ["Start", "layers_read"]

# Folder -> the model that this process trained there last, and the checksum of its weights when `fit` ended.
_LAST_MODELS: dict[Path, tuple[Any, str]] = {}


class Start:
    """The start of a training with a model's current weights, and its comparison with that of a checkpoint.

    Args:
        chain: The network.
        settings: The options.
        folder: The folder of checkpoints.
    """

    def __init__(self, chain: DenseChain, settings: Settings, folder: Path) -> None:
        self._chain, self._folder = chain, folder
        self._is_read = layers_read(settings, len(chain.layers))
        checksum = self._checksum(chain.read_weights())
        model, last = _LAST_MODELS.get(folder.resolve(), (None, ""))
        #: What a checkpoint keeps: the origin of each variable, and the checksum of all. All is plain text.
        self.facts: dict[str, Any] = {"origins": self._origins(), "checksum": checksum}
        self._is_trained_here = model is not None
        self._goes_on = model is not None and model() is chain.model and last == checksum

    def note_end(self) -> None:
        """Remember that this process trained the model in the folder, until its weights change otherwise."""
        checksum = self._checksum(self._chain.read_weights())
        _LAST_MODELS[self._folder.resolve()] = weakref.ref(self._chain.model), checksum

    def share(self, communicator: Any) -> None:
        """Take over the start of rank 0, whose weights all ranks train."""
        mine = [self.facts, self._is_trained_here, self._goes_on]
        self.facts, self._is_trained_here, self._goes_on = communicator.allgather_object(mine, "first weights")[0]

    def check(self, there: dict[str, Any], later: list[Any], is_complete: bool) -> None:
        """Raise `ValueError` for a checkpoint whose training began with other weights, as far as this can be known."""
        # `there` are the facts of the checkpoint, `later` weights that its training has given to its model.
        # `is_complete` says whether nothing is left to train.
        if self._goes_on or self.facts["checksum"] in {there["checksum"], *map(self._checksum, later)}:
            return
        where = f"The checkpoint in {self._folder} is of another training"
        for name, origin in self.facts["origins"].items():
            before = there["origins"].get(name)
            if before != origin:
                raise ValueError(
                    f"{where}, which began with other weights: the {name} was {before}, is {origin}. Begin with the "
                    "same weights, or delete the folder to begin anew"
                )
        if not is_complete:
            return  # A restart of a script without seeds draws other weights.
        reason = "The weights of both models were drawn without a seed, and differ"
        if self._is_trained_here:
            raise ValueError(
                f"{where}: this process has trained another model in this folder, to the end. {reason}. Delete the "
                "folder, or pass another one for each model"
            )
        warnings.warn(
            f"The training in {self._folder} is complete, and `fit` returns its weights. {reason}. If this model is to "
            "be trained too, pass another folder",
            stacklevel=8,  # The caller of `fit`.
        )

    def _variables(self, weights: list[Any]) -> Iterator[tuple[str, Any, Any, Any]]:
        # Yield name, initializer, variable and values of each variable that the algorithm reads before it sets it.
        # Names are numbers, because Keras counts the layers of a process in their names.
        parts = zip(self._chain.layers, self._is_read, weights, strict=True)
        for number, (layer, is_read, (kernel, bias)) in enumerate(parts, start=1):
            if is_read:
                yield f"kernel of Dense layer {number}", layer.kernel_initializer, layer.kernel, kernel
            if is_read and layer.use_bias:
                yield f"bias of Dense layer {number}", layer.bias_initializer, layer.bias, bias

    def _checksum(self, weights: list[Any]) -> str:
        return _digest(values for *_, values in self._variables(weights))

    def _origins(self) -> dict[str, str]:
        parts = self._variables(self._chain.read_weights())
        return {name: _origin(initializer, variable) for name, initializer, variable, _ in parts}


def layers_read(settings: Settings, num_layers: int) -> list[bool]:
    """Return whether the result depends on the first weights of each layer."""
    if not isinstance(settings, SplittingSettings) or settings.initialization == "forward" or settings.ridge > 0:
        return [True] * num_layers
    is_set, is_read = [False] * num_layers, [False] * num_layers
    for kind, layer in order_of_updates(num_layers, settings, sweep=0):
        if kind == "W":
            is_set[layer] = True
        elif kind in "AZ":  # Activations are updated with the weights above them, pre-activations with those below.
            above = layer + (kind == "A")
            is_read[above] |= not is_set[above]
    return is_read


def _origin(initializer: Any, variable: Any) -> str:
    is_object = isinstance(initializer, keras.initializers.Initializer)
    config = initializer.get_config() if is_object else {}
    values, seed = f"of the checksum {_digest([variable.numpy()])}", _seed_of(config)
    if seed is not None:
        return f"{values} (seed {seed})"
    # A drawn number can be drawn again here if the initializer keeps the seed that it made up.
    can_repeat = isinstance(initializer, REPEATABLE) and isinstance(getattr(initializer, "seed", 0), int)
    if can_repeat and ("seed" not in config or not is_drawn_again(initializer, variable)):
        return values
    name = type(initializer).__name__ if is_object else getattr(initializer, "__name__", type(initializer).__name__)
    arguments = ", ".join(f"{key}={value!r}" for key, value in config.items() if key != "seed")
    common = get_random_seed()
    how = "without a seed" if common is None else f"after keras.utils.set_random_seed({common})"
    return f"drawn by {name}({arguments}) {how}"


def _seed_of(config: dict[str, Any]) -> Any:
    # The seed of a `SeedGenerator` is one level deeper.
    seed = config.get("seed")
    return seed.get("config", {}).get("seed") if isinstance(seed, dict) else seed


def _digest(arrays: Any) -> str:
    checksum = hashlib.sha256()
    for array in arrays:
        checksum.update(np.ascontiguousarray(array).tobytes())
    return checksum.hexdigest()[:16]

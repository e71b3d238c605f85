"""Data-parallel training of Keras 3 models with Horovod.

Horovod is not needed to import this; `python -m tfopt.distributed.build_horovod` builds it. The callbacks that belong
here are in `tfopt.callbacks`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tfopt._checks import check_keras_3

check_keras_3()

if TYPE_CHECKING:
    from tfopt.distributed.optimizer import DistributedOptimizer
    from tfopt.distributed.sharding import shard

_MODULES = {"DistributedOptimizer": "optimizer", "shard": "sharding"}

__all__ = ["DistributedOptimizer", "shard"]


def __getattr__(name: str) -> Any:
    # On first use, so that building Horovod does not wait for TensorFlow.
    if name in _MODULES:
        return getattr(importlib.import_module(f"tfopt.distributed.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'tfopt.distributed' has no attribute {name!r}; it has {', '.join(__all__)}")

"""Data-parallel training of Keras 3 models with Horovod.

This module imports without Horovod; `python -m tfopt.distributed.build_horovod` builds it. The callbacks for
distributed training are in `tfopt.callbacks`.
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
    # Import on first use, so that the build of Horovod does not import TensorFlow.
    if name in _MODULES:
        return getattr(importlib.import_module(f"tfopt.distributed.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'tfopt.distributed' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Data-parallel training of Keras 3 models with Horovod.

This module imports without Horovod; `python -m tfopt.distributed.build_horovod` builds it. The callbacks for
distributed training are in `tfopt.callbacks`.
"""

from typing import TYPE_CHECKING

from tfopt._checks import check_keras_3
from tfopt._lazy import lazy_names

check_keras_3()

if TYPE_CHECKING:
    from tfopt.distributed.optimizer import DistributedOptimizer
    from tfopt.distributed.sharding import shard

__all__ = ["DistributedOptimizer", "shard"]
# The build of Horovod must not import TensorFlow.
__getattr__, __dir__ = lazy_names(__name__, {"DistributedOptimizer": "optimizer", "shard": "sharding"}, __all__)

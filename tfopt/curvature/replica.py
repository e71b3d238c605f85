"""Measure inside the scope of a tf.distribute strategy of one replica, where only the replica can read variables."""

import contextlib
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from tfopt import _keras


def as_replica() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which the variables of a strategy's only replica have handles; elsewhere it does nothing."""
    strategy = tf.distribute.get_strategy()
    if tf.distribute.in_cross_replica_context() and strategy.num_replicas_in_sync == 1:
        return tf.distribute.ReplicaContext(strategy, replica_id_in_sync_group=0)
    return contextlib.nullcontext()


def paths_by_handle(variables: Iterable[Any]) -> dict[int, str]:
    """Return the paths of Keras variables by the id of their handles, which graphs capture."""
    with as_replica():
        return {id(_keras.variable_value(variable).handle): variable.path for variable in variables}

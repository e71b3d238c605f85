"""The work of each of N ranks in the tests of `tfopt.distributed`. It is started once for each N.

The result of each subject, or the error that it raises, is saved by rank.
"""

import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import bregman_parity
import rank_subjects_callbacks  # noqa: F401
import rank_subjects_checkpoints  # noqa: F401
import rank_subjects_communicator  # noqa: F401
import rank_subjects_gradients  # noqa: F401
import rank_subjects_misuse  # noqa: F401
import tensorflow as tf
from default_of_self_check import set_self_check
from rank_subjects import SUBJECTS

from tfopt import communicator as communicators

SUBJECTS |= bregman_parity.SUBJECTS
# On two ranks, graphs of these files are optimised, as they are for users: they say that steps keep the order of
# collectives. All others, and those of three ranks, run as traced.
OPTIMISED = ("rank_subjects_communicator", "rank_subjects_gradients", "rank_subjects_checkpoints")
# What a third rank can change: sums, means, shards and orders over ranks. In all other subjects ranks train models of
# one kind, or one rank differs from the others, which two ranks show.
ON_THREE_RANKS = {
    "reductions",
    "other_collectives",
    "joining",
    "sparse_means",
    "compressed_means",
    "overwritten_variables",
    "parity_with_one_process",
    "equal_starts",
    "metrics",
    "warm_up",
    "shards",
    "curvature",
    "noise_between_ranks",
    "other_calls",
    "root_that_is_no_rank",
    "masks_that_differ_between_ranks",
    "bregman_parity",
}


def main(folder):
    folder = Path(folder)
    gc.freeze()  # as in conftest.py
    gc.set_threshold(50_000, 20, 100)
    ranks = communicators.current()
    tf.debugging.disable_traceback_filtering()  # which takes an eighth of the time to trace
    report = {}
    chosen = os.environ.get("TFOPT_SUBJECTS", "").split()
    for name, function in SUBJECTS.items():
        if chosen and name not in chosen:
            continue
        if ranks.size > 2 and name not in ON_THREE_RANKS:
            continue
        set_self_check(name == "curvature")
        is_optimised = ranks.size == 2 and function.__module__ in OPTIMISED
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not is_optimised})
        place = folder / name
        place.mkdir(exist_ok=True)
        start = time.perf_counter()
        try:
            report[name] = {"result": function(ranks, place)}
        except Exception:
            report[name] = {"failure": traceback.format_exc()}
            print(f"{name} failed on rank {ranks.rank}", traceback.format_exc(), flush=True)
        report[name]["total_seconds"] = time.perf_counter() - start
        (folder / f"report-{ranks.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])

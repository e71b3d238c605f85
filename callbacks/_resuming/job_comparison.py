"""Checks that a checkpoint belongs to the job that resumes from it.

The argument `is_living` says that this process has trained the same model object before.
"""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfopt.callbacks._resuming.callback_arguments import other_arguments
from tfopt.callbacks._resuming.job import differences, setup_of
from tfopt.callbacks._resuming.of_the_run import of_the_run

_PHASES = "Train in two `fit`s, with a folder for each, if layers are unfrozen or the model is compiled again. "
_SEEDS = (
    "A new data set gets a new seed from tf.random: call keras.utils.set_random_seed(...) before you make it, or use "
    "shuffle(..., seed=...). "
)
_UNDERSCORE = ". Attributes are not compared if their names begin with an underscore: rename times and ids of runs so"
_PUBLIC = re.compile("'s attribute [^_]")


@dataclass
class Job:
    """The properties with which a training began, as text by names for messages."""

    arguments: dict[str, str]  # Of data, layers, loss and optimizers; and attributes of the user's layers.
    code: dict[str, str]  # Of the user's functions.
    callbacks: dict[str, str]


def follow_compiling(job: Job, model: Any) -> None:
    """Keep the new arguments of a model that was compiled again during training, and warn about the consequence."""
    setup = setup_of(model)
    rates = {name: text for name, text in setup.items() if name.endswith("'s learning_rate")}
    if changes := differences(job.arguments, {**job.arguments, **setup}, rates):
        job.arguments = {**job.arguments, **setup}
        warnings.warn(
            f"The model was compiled again while it was trained: {'; '.join(changes)}. Checkpoints from now on can "
            "be resumed only by a script that does so before `fit`. Train in two `fit`s, with a folder for each",
            stacklevel=4,
        )


def check_variables(folder: Path, state: dict[str, Any], expected: list[str], job: Job, is_living: bool) -> None:
    """Raise ValueError if the checkpoint `state` in `folder` has variables with other names than `expected`."""
    found = [text for text, _ in state["variables"]]
    if found == expected:
        return
    changes = "; ".join(_changes(state, job, is_living)[0])
    first = next((pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]), ("fewer", "more"))
    raise ValueError(
        f"The checkpoint in {folder} belongs to another model or optimizer: it has {len(found)} variables, this one "
        f"{len(expected)}; the first that differs is {first[0]} there and {first[1]} here. "
        f"{f'Other differences: {changes}. ' if changes else ''}{_advice_on(changes)}Delete the folder to begin anew"
    )


def check_job(folder: Path, state: dict[str, Any], job: Job, is_living: bool) -> None:
    """Raise ValueError if the checkpoint `state` in `folder` was written with other arguments."""
    changes = "; ".join(_changes(state, job, is_living)[0])
    if changes:
        raise ValueError(
            f"The checkpoint in {folder} was written with other arguments, so training cannot go on as if it had not "
            f"been interrupted: {changes}. {_advice_on(changes)}Change them back, or delete the folder to begin anew"
            f"{_UNDERSCORE * bool(_PUBLIC.search(changes))}"
        )


def warn_about_job(folder: Path, state: dict[str, Any], job: Job, is_living: bool) -> None:
    """Warn about other code, arguments of callbacks, and attributes that look like times, which may change results."""
    there, later, here = state["job"]["code"], state["changed"]["code"], job.code
    names = sorted(name for name in {*there, *here} if here.get(name) not in (there.get(name), later.get(name)))
    if changed := [name for name in names if not (is_living and there.get(name) != later.get(name))]:
        warnings.warn(
            f"The checkpoint in {folder} was written with other code in {', '.join(changed)}. If that code computes "
            "something else, training does not go on as if it had not been interrupted",
            stacklevel=5,
        )
    if changes := other_arguments(state["job"]["callbacks"], state["changed"]["callbacks"], job.callbacks):
        warnings.warn(
            f"The checkpoint in {folder} was written with other arguments of callbacks: {'; '.join(changes)}. Training "
            "does not go on as if it had not been interrupted",
            stacklevel=5,
        )
    if changes := _changes(state, job, is_living)[1]:
        warnings.warn(
            f"Attributes differ from those of the run that wrote the checkpoint in {folder}: {'; '.join(changes)}. "
            "They look like times, or like ids of a process or a run, which do not change results. Begin their names "
            "with an underscore to exclude them from the comparison",
            stacklevel=5,
        )


def _changes(state: dict[str, Any], job: Job, is_living: bool) -> tuple[list[str], list[str]]:
    """Return the differences between two jobs that matter, and those in times and ids, which differ in each run."""
    there, here = state["job"]["arguments"], job.arguments
    of_run = of_the_run(there, here, state["process"])
    both = []
    for of_a_run in (False, True):
        pair = ({key: text for key, text in job.items() if (key in of_run) == of_a_run} for job in (there, here))
        both.append(differences(*pair, state["changed"]["arguments"], is_living))
    return both[0], both[1]


def _advice_on(changes: str) -> str:
    is_phase = any(word in changes for word in ("'s trainable was", "loss was", "optimizer's class was"))
    return _PHASES * is_phase + _SEEDS * ("data set was " in changes and "Shuffle{" in changes)

"""The part of a training's wall-clock time that a callback uses."""

import time
from typing import Any

from tfopt._checks import check_number
from tfopt.communicator import Communicator

# A callback may use this many seconds, however short a training is.
FREE_SECONDS = 1.0

clock = time.perf_counter


class TimeShare:
    """Seconds that a callback has measured, against its largest share of the seconds since training began.

    Tracing and compiling count for at most half of the share, because they happen once, and may take longer than the
    whole share. They show only in the first measurement of a model, which takes longer than the next one by that much.

    Attributes:
        cost: Seconds of the last measurement that compiled nothing; 0 as long as none is known.
        num_put_off: Number of measurements that were due, and were not taken.
    """

    _STATE = ("cost", "num_put_off", "_spent", "_extra", "_setup", "_first")

    def __init__(self, largest: float | None, communicator: Communicator) -> None:
        self.cost = 0.0
        self.num_put_off = 0
        self._largest, self._ranks = largest, communicator
        self._spent = 0.0  # Seconds of measurements.
        self._extra = 0.0  # Seconds of what only some measurements hold.
        self._setup = 0.0  # Seconds of tracing and compiling.
        self._first = 0.0  # Seconds of a first measurement, until a second one shows how many of them were compiling.
        self._before = 0.0  # Seconds of training before it was resumed.
        self._begin = clock()
        self._first_began: tuple[float, float] | None = None  # When, and with which total, while it is running.

    @property
    def is_limited(self) -> bool:
        """Whether there is a largest share."""
        return self._largest is not None

    @property
    def setup(self) -> float:
        """The seconds of tracing and compiling; before a second measurement, all seconds of the first."""
        return self._setup + self._first

    @property
    def total(self) -> float:
        """All seconds so far."""
        return self._spent + self._extra + self._setup + self._first

    def begin(self, is_first: bool) -> None:
        """Note the begin of a measurement, which `add` ends."""
        self._first_began = (clock(), self.total) if is_first else None

    def add_setup(self, seconds: float) -> None:
        """Count seconds of tracing and compiling."""
        self._setup += seconds

    def add_extra(self, seconds: float) -> None:
        """Count seconds of what only some measurements hold, which `cost` leaves out."""
        self._extra += seconds

    def add(self, seconds: float, is_first: bool) -> None:
        """Count a measurement; the first one of a model in its present state also compiles."""
        self._first_began = None
        if is_first and not self.cost:
            self._setup, self._first = self._setup + self._first, seconds
            return
        cost = min(seconds, self.cost) if is_first else seconds
        self._setup += seconds - cost + max(self._first - cost, 0.0)
        self._spent += cost + min(self._first, cost)
        self.cost, self._first = cost, 0.0

    def allows(self, at_end: float, part: float = 1.0) -> bool:
        """Return whether a measurement that is due may be taken, if the last one takes `at_end` seconds.

        Measurements without extras may take a `part` of the share.
        """
        of_part = part * self._allowance() - self._spent
        return self.agree(int(self.left() >= self.cost + at_end and of_part >= 2 * self.cost)) > 0

    def left(self, ahead: float = 0.0) -> float:
        """Return the seconds that may be used until now, or until `ahead` more seconds of training."""
        return self._allowance(ahead) - self._spent - self._extra

    def agree(self, count: int) -> int:
        """Return the smallest count of all ranks, whose clocks differ."""
        return min(self._ranks.allgather_object(count, "a callback's share of time"))

    def put_off(self, name: str, is_told: bool) -> None:
        """Count a measurement that the share does not allow; the first time, tell it."""
        self.num_put_off += 1
        if self.num_put_off == 1 and is_told and self._ranks.rank == 0:
            print(f"\n{name} measures less often, to take {self._largest:.2g} of the time at most (`max_share`)")

    def pace(self, epochs: int, measured: list[int]) -> dict[str, float]:
        """Return the columns of a measurement after `epochs`, where `measured` are the epochs of all up to this one."""
        if not self.is_limited:
            return {}
        interval = epochs - measured[-2] if len(measured) > 1 else 0
        return {"interval": interval, "put_off": self.num_put_off, "setup_seconds": self.setup}

    def _allowance(self, ahead: float = 0.0) -> float:
        assert self._largest is not None
        share = max(FREE_SECONDS, self._largest * (self._elapsed + ahead))
        return share - min(self.setup + self._compiling, share / 2)

    @property
    def _compiling(self) -> float:
        """The seconds of a first measurement that is running, as far as they are not counted yet."""
        if self._first_began is None:
            return 0.0
        begin, before = self._first_began
        return clock() - begin - (self.total - before)

    @property
    def _elapsed(self) -> float:
        return self._before + clock() - self._begin

    def get_state(self) -> dict[str, Any]:
        """Return the state that a checkpoint must keep."""
        return {name: getattr(self, name) for name in self._STATE} | {"elapsed": self._elapsed}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`, after the present training has begun."""
        for name in self._STATE:
            setattr(self, name, state[name])
        self._before = state["elapsed"]


def check_share(max_share: Any) -> float | None:
    """Return a share in (0, 1), or None for no limit, which 1 means too."""
    if max_share is None:
        return None
    share = check_number("max_share", max_share, minimum=0.0, maximum=1.0, exclusive_minimum=True)
    return None if share == 1.0 else share

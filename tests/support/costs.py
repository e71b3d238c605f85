"""What the tests cost: the peak memory of each worker, and with TFOPT_TEST_COSTS=1 the processor time of each file.

Beside the time stands by how much a file has raised the peak of its worker.
"""

import os
import resource
from collections import Counter

import pytest


def _cpu_seconds():
    """Of this process and of those that it has started and that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _peak_gib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


class Costs:
    """A plugin, in the workers and where pytest was started."""

    def __init__(self):
        self.seconds, self.raised, self.peaks = Counter(), Counter(), []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        start, peak, file = _cpu_seconds(), _peak_gib(), item.nodeid.split("::")[0]
        result = yield
        self.seconds[file] += _cpu_seconds() - start
        self.raised[file] += _peak_gib() - peak
        return result

    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["costs"] = [dict(self.seconds), dict(self.raised), _peak_gib()]
        elif not self.peaks:
            self.peaks.append(_peak_gib())

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        seconds, raised, peak = getattr(node, "workeroutput", {}).get("costs", ({}, {}, float("nan")))
        self.seconds.update(seconds)
        self.raised.update(raised)
        self.peaks.append(peak)

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.write_line("Peak memory of each process: " + ", ".join(f"{p:.2f} GiB" for p in self.peaks))
        if "TFOPT_TEST_COSTS" in os.environ:
            for name, seconds in self.seconds.most_common():
                terminalreporter.write_line(f"{seconds:7.1f} CPU s {self.raised[name]:+6.2f} GiB  {name}")

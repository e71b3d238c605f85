"""What the tests cost: the peak memory of each worker, and with TFOPT_TEST_COSTS=1 the processor time of each file."""

import os
import resource
from collections import Counter

import pytest


def _cpu_seconds():
    """Of this process and of those that it has started and that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class Costs:
    """A plugin, in the workers and where pytest was started."""

    def __init__(self):
        self.seconds, self.peaks = Counter(), []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        start = _cpu_seconds()
        result = yield
        self.seconds[item.nodeid.split("::")[0]] += _cpu_seconds() - start
        return result

    def pytest_sessionfinish(self, session):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB; Linux counts in KiB
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["costs"] = [dict(self.seconds), peak]
        elif not self.peaks:
            self.peaks.append(peak)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        seconds, peak = getattr(node, "workeroutput", {}).get("costs", ({}, float("nan")))
        self.seconds.update(seconds)
        self.peaks.append(peak)

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.write_line("Peak memory of each process: " + ", ".join(f"{p:.2f} GiB" for p in self.peaks))
        if "TFOPT_TEST_COSTS" in os.environ:
            for name, seconds in self.seconds.most_common():
                terminalreporter.write_line(f"{seconds:7.1f} CPU s  {name}")

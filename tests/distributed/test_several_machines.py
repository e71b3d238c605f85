"""Two hosts, as network namespaces with one cable between them: `horovodrun` reaches the other by a stand-in ssh."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from launch_ranks import horovodrun

pytestmark = pytest.mark.slow_by_nature
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHIM = Path(__file__).resolve().parents[1] / "support" / "namespaces"


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def hosts():
    """Address of each host -> name of its namespace."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need the command `ip` and root")
    names = [f"tfopt-{os.getpid()}-{side}" for side in "ab"]
    addresses = ["10.213.7.1", "10.213.7.2"]
    try:
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", names[0], "link", "add", "tfopt0", "type", "veth", "peer", "tfopt0", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "tfopt0")
            run("ip", "-n", name, "link", "set", "tfopt0", "up")
        yield dict(zip(addresses, names, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)


def sent_by(name):
    counters = run("ip", "-n", name, "-s", "-j", "link", "show", "tfopt0")
    return int(re.search(r'"tx":\{"bytes":(\d+)', counters.replace(" ", "")).group(1))


@pytest.mark.parametrize("example", ["bregman_horovod", "keras_horovod"])
def test_an_example_runs_on_two_hosts(hosts, tmp_path, example):
    first, second = hosts.values()
    before = sent_by(second)
    script = [EXAMPLES / f"{example}.py", "--smoke", "--checkpoints", tmp_path / "ranks"]
    done = horovodrun(
        2,
        *script,
        hosts=["--network-interfaces", "tfopt0", "-H", ",".join(f"{address}:1" for address in hosts)],
        before=["ip", "netns", "exec", first],
        path=[SHIM],
        TFOPT_TEST_NAMESPACES=" ".join(f"{address}={name}" for address, name in hosts.items()),
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "2 rank(s): test accuracy" in done.stdout
    assert sent_by(second) - before > 10_000  # over the cable
    assert len(list((tmp_path / "ranks").glob("*.rank-1-of-2.npz"))) == 2

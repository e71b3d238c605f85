"""What is built is what users install: wheel, source archive and editable install, each imported from elsewhere."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow_by_nature
ROOT = Path(__file__).resolve().parents[1]
CHECK = """
import pathlib, sys, tfopt
sys.path[:] = [p for p in sys.path if p not in ("", {root!r})]
import tfopt.callbacks, tfopt.curvature, tfopt.datasets, tfopt.distributed, tfopt.models, tfopt.optimizers
import tfopt.nqm
import tfopt.bregman
import tfopt.planning
import tfopt.relative_trust
from tfopt.callbacks import ResumableCheckpoint
from tfopt.distributed import DistributedOptimizer

assert (pathlib.Path(tfopt.__file__).parent / "py.typed").exists()
for name in ("callbacks", "models"):
    try:
        module = __import__(name)
    except ImportError:
        pass
    else:
        raise AssertionError(f"a top-level {{name}} was installed: {{module.__file__}}")
assert tfopt.optimizers.Fromage().get_config()["learning_rate"]
print(tfopt.__version__, tfopt.__file__)
"""


def run(*command, cwd):
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of the tree, so that builds leave nothing behind in it."""
    target = tmp_path_factory.mktemp("sources") / "tfopt"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, target, ignore=ignored)
    return target


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    """The source archive, and the wheel built from that archive."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, sources, cwd=folder)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def make_environment(folder):
    """An environment that sees the dependencies installed here, but not the tfopt installed here."""
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # The editable install of this environment is a finder in a .pth file, which a path in another one does not run.
    return folder / "bin" / "python"


def install_and_check(python, *arguments, cwd, root):
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-build-isolation", "--quiet",
        "--ignore-installed", *arguments, cwd=cwd)  # fmt: skip
    return run(python, "-W", "ignore", "-c", CHECK.format(root=str(root)), cwd=cwd)


def test_wheel(built, tmp_path):
    output = install_and_check(make_environment(tmp_path / "env"), built[1], cwd=tmp_path, root=ROOT)
    assert str(tmp_path) in output
    names = zipfile.ZipFile(built[1]).namelist()
    assert "tfopt/callbacks/weight_norms.py" in names
    assert "tfopt/models/mlp.py" in names
    top_level = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert top_level == {"tfopt"}


def test_source_archive(built, tmp_path):
    with tarfile.open(built[0]) as archive:
        names = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "callbacks/__init__.py", "models/mlp.py"} <= names


def test_editable(sources, tmp_path):
    output = install_and_check(make_environment(tmp_path / "env"), "--editable", sources, cwd=tmp_path, root=ROOT)
    assert str(sources) in output


def test_every_package_is_listed():
    listed = (ROOT / "setup.py").read_text()
    for base, prefix in (("tfopt", "tfopt"), ("callbacks", "tfopt.callbacks"), ("models", "tfopt.models")):
        for path in (ROOT / base).rglob("__init__.py"):
            package = ".".join([prefix, *path.parent.relative_to(ROOT / base).parts])
            assert f'"{package}"' in listed, package

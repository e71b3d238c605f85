"""What users can import, and what an import costs them."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import tfopt

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [importlib.import_module(f"tfopt.{name}") for name in tfopt.__all__ if not name.startswith("_")]
PUBLIC = {package.__name__: package.__all__ for package in PACKAGES if hasattr(package, "__all__")}
DOCUMENTED = {
    f"{module}.{name}": getattr(sys.modules[module], name)
    for module, names in PUBLIC.items()
    for name in names
    if callable(getattr(sys.modules[module], name))
}
WITH_EXAMPLES = [
    ".".join(("tfopt", *path.relative_to(ROOT).with_suffix("").parts)).replace("tfopt.tfopt", "tfopt")
    for folder in ("tfopt", "callbacks", "models")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if re.search(r">>> (?!.*doctest: \+SKIP)", path.read_text())
]


@pytest.mark.parametrize("module", PUBLIC)
def test_names(module):
    package = sys.modules[module]
    assert len(set(PUBLIC[module])) == len(PUBLIC[module])
    assert set(PUBLIC[module]) <= set(dir(package))
    assert all(hasattr(package, name) for name in PUBLIC[module])


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(
        AttributeError,
        match="it has bregman, callbacks, communicator, curvature, datasets, distributed, models, nqm, numerics",
    ):
        tfopt.optimisers  # noqa: B018
    assert set(dir(tfopt)) == set(tfopt.__all__)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstrings_explain_every_argument(name):
    item = DOCUMENTED[name]
    text = inspect.getdoc(item)
    function = item.__init__ if inspect.isclass(item) else item
    for argument in inspect.signature(function).parameters:
        if argument not in ("self", "args", "kwargs", "fit_options"):
            assert f"{argument}:" in text or hasattr(item, "__dataclass_fields__"), argument


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_run(module):
    results = doctest.testmod(importlib.import_module(module), extraglobs={"keras": keras})
    assert results.attempted > 0
    assert results.failed == 0


def test_imports_leave_out_what_takes_seconds():
    code = (
        "import sys, tfopt; assert tfopt.__version__;"
        "loaded = {'tensorflow', 'keras', 'horovod', 'jax', 'torch', 'numpy'} & set(sys.modules);"
        "assert not loaded, loaded;"
        "import tfopt.communicator.agreement, tfopt.nqm, tfopt.datasets, tfopt.distributed;"
        "assert tfopt.nqm.NoisyQuadratic.power_law(3).dim == 3;"
        "loaded = {'tensorflow', 'keras', 'matplotlib', 'pandas', 'sklearn'} & set(sys.modules);"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

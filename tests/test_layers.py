"""The house's rule: imports go down only. Read from the source, so that imports inside functions count too."""

import ast
import re
from pathlib import Path

import pytest

from tfopt import _keras

ROOT = Path(__file__).resolve().parents[1]

# Room -> the rooms that it may import from. A room may always import from itself.
GROUND = {
    "tfopt._checks",
    "tfopt._compiled",
    "tfopt._keras",
    "tfopt._lazy",
    "tfopt._plotting",
    "tfopt._progress",
    "tfopt._row_checksum",
    "tfopt._variables",
    "tfopt._version",
    "tfopt._weight_decay",
}
FIRST_FLOOR = GROUND | {"tfopt._checkpoints", "tfopt._record", "tfopt.communicator", "tfopt.numerics"}
ALLOWED = {
    "tfopt": {"tfopt._version"},
    "tfopt._version": set(),
    "tfopt._checkpoint_files": {"tfopt._checkpoints"},
    "tfopt._checkpoints": {"tfopt._keras", "tfopt.communicator"},
    "tfopt._state_file": {"tfopt._checkpoints"},
    "tfopt._checks": set(),
    "tfopt._compiled": {"tfopt._keras"},
    "tfopt._keras": set(),
    "tfopt._lazy": set(),
    "tfopt._plotting": set(),
    "tfopt._progress": set(),
    "tfopt._record": {"tfopt._checkpoints", "tfopt._checks"},
    "tfopt._row_checksum": set(),
    "tfopt._variables": set(),
    "tfopt._weight_decay": {"tfopt._checks", "tfopt._keras"},
    "tfopt.numerics": GROUND,
    "tfopt.communicator": {"tfopt._checks"},
    "tfopt.bregman": FIRST_FLOOR,
    "tfopt.curvature": FIRST_FLOOR,
    "tfopt.datasets": FIRST_FLOOR,
    "tfopt.distributed": FIRST_FLOOR,
    "tfopt.nqm": FIRST_FLOOR,
    "tfopt.optimizers": FIRST_FLOOR,
    "tfopt.models": FIRST_FLOOR | {"tfopt.nqm"},
    "tfopt.relative_trust": FIRST_FLOOR | {"tfopt.curvature"},
    "tfopt.planning": FIRST_FLOOR | {"tfopt.curvature", "tfopt.nqm"},
    "tfopt.callbacks": FIRST_FLOOR
    | {
        "tfopt.relative_trust",
        "tfopt.curvature",
        "tfopt.datasets",
        "tfopt.distributed",
        "tfopt.optimizers",
        "tfopt.models",
    },
}
FOLDERS = {"tfopt": "tfopt", "tfopt.callbacks": "callbacks", "tfopt.models": "models"}


def modules():
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


def room_of(module):
    return max((room for room in ALLOWED if module == room or module.startswith(room + ".")), key=len)


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they go"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = dict(modules())


def test_every_module_has_a_room():
    unknown = [name for name in MODULES if room_of(name) == "tfopt" and name != "tfopt"]
    assert not unknown, f"add {unknown} to the table of rooms"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    room = room_of(module)
    for name in imports_of(MODULES[module]):
        assert name.split(".")[0] not in ("callbacks", "models", "examples", "benchmarks", "tests"), name
        if name.split(".")[0] == "tfopt":
            target = room_of(name)
            # `from tfopt import numerics` names the room itself; the bare package holds nothing else to import.
            assert target == room or target in ALLOWED[room], f"{module} imports {name}"


def test_no_imports_go_in_circles():
    """Not even through imports inside functions; a package's own `__init__` counts as its names, not as a module."""
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    graph = {
        name: {part for found in imports_of(path) for part in (found, found.rpartition(".")[0]) if part in MODULES}
        - packages
        for name, path in MODULES.items()
        if name not in packages
    }
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    assert not graph, f"imports go in circles among {sorted(graph)}"


def test_the_documents_show_the_same_layers():
    text = (ROOT / "docs" / "design.md").read_text()
    rows = re.findall(r"^\| (\d) \| `(tfopt\.\w+)` \| (.*?) ?\|", text, flags=re.MULTILINE)
    layer = {package: int(number) for number, package, _ in rows}
    shown = {package: {f"tfopt.{name}" for name in re.findall(r"`(\w+)`", names)} for _, package, names in rows}
    assert len(rows) == len(shown), "a package stands in two rows"
    ground = {package for package in shown if layer[package] == 0}
    assert ground == {room for room in FIRST_FLOOR if not room.startswith("tfopt._")}
    public = {room for room in ALLOWED if room != "tfopt" and not room.startswith("tfopt._")}
    assert shown == {room: ALLOWED[room] - FIRST_FLOOR for room in public}
    for package, below in shown.items():
        assert all(layer[name] < layer[package] for name in below), package
        if layer[package] > 1:
            assert layer[package] == 1 + max(layer[name] for name in below), f"{package} fits a lower layer"


def test_only_the_distributed_room_names_horovod():
    for module, path in MODULES.items():
        if room_of(module) != "tfopt.distributed":
            assert not any(name.split(".")[0] == "horovod" for name in imports_of(path)), module


def test_numerics_and_optimizers_import_tensorflow_only_inside_functions():
    for module, path in MODULES.items():
        if room_of(module) in ("tfopt.numerics", "tfopt.optimizers"):
            top = ast.parse(path.read_text()).body
            names = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
            names += [node.module for node in top if isinstance(node, ast.ImportFrom)]
            assert not any(name.split(".")[0] == "tensorflow" for name in names), module


def nodes_in(module, kind):
    return [node for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, kind)]


# Names that objects of tfopt have too; there, `self` and `other` are of tfopt.
OWN = {node.name for module in MODULES for node in nodes_in(module, ast.FunctionDef)} | {
    node.attr
    for module in MODULES
    for node in nodes_in(module, ast.Attribute)
    if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
}


@pytest.mark.parametrize("module", [name for name in MODULES if name != "tfopt._keras"])
def test_private_names_of_keras_are_in_one_module(module):
    names = list(imports_of(MODULES[module]))
    assert not [name for name in names if name.startswith(("keras.src", "tensorflow.python"))]
    nodes = nodes_in(module, ast.Attribute)
    used = {node.attr for node in nodes if not (node.attr in OWN and ast.unparse(node.value) in ("self", "other"))}
    used |= set(re.findall(r"[gs]etattr\([^\n]*?\"(_\w+)\"", MODULES[module].read_text()))
    assert not used & {attribute.name for attribute in _keras.ATTRIBUTES}

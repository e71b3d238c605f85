"""What the documents say is true: their code runs, their links lead somewhere, their commands exist."""

import importlib
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import keras
import pytest

import tfopt

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


@pytest.mark.slow_by_nature
@pytest.mark.parametrize("name", [n for n in NAMES if "```python" in (ROOT / n).read_text()])
def test_code_blocks_run(name, tmp_path, monkeypatch):
    # Those of the README alone, those of a guide one after the other.
    monkeypatch.chdir(tmp_path)
    namespace, registered = {"__name__": name}, dict(keras.saving.get_custom_objects())
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)
    assert len(blocks) == (ROOT / name).read_text().count("```python"), "a block is not closed"
    for block in blocks:
        if name == "README.md":
            namespace = {"__name__": name}
            assert "tfopt" in block
        exec(compile(block, name, "exec"), namespace)
    assert any("tfopt" in repr(value) for value in namespace.values()), "the page shows nothing of tfopt"
    keras.saving.get_custom_objects().update(registered)  # as if a page's classes had never been registered


@pytest.mark.parametrize("name", NAMES)
def test_code_fits_the_column_of_the_site(name):
    blocks = re.findall(r"```\w+\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)
    assert [line for block in blocks for line in block.splitlines() if len(line) > 120] == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_exist(name):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)", (ROOT / name).read_text()):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_document_is_reachable_from_the_readme():
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        path = todo.pop()
        if path in seen or path.suffix != ".md":
            continue
        seen.add(path)
        targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())
        todo += [(path.parent / target).resolve() for target in targets if "://" not in target]
    of_the_site = {ROOT / "docs" / "index.md", ROOT / "docs" / "changelog.md"}  # which include files of the root
    assert set((ROOT / "docs").glob("*.md")) <= seen | of_the_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", ROOT / "docs", folder]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def documented(site):
    """The names and modules that the pages of the reference describe."""
    pages = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    return {name.removeprefix("module-") for name in re.findall(r'id="((?:module-)?tfopt[\w.]*)"', pages)}


@pytest.mark.slow_by_nature
def test_the_reference_holds_docstrings(site):
    page = (site / "reference" / "bregman.html").read_text()
    assert "initial_epoch" in page
    assert "Number of the last sweep" in page


def public_names(module):
    """The full names in a module's `__all__`, those of its public modules too; without `__all__`, what it defines."""
    if not hasattr(module, "__all__"):
        parts = [part for name, part in vars(module).items() if not name.startswith("_")]
        return {f"{module.__name__}.{p.__name__}" for p in parts if getattr(p, "__module__", "") == module.__name__}
    names = {f"{module.__name__}.{name}" for name in module.__all__}
    parts = [getattr(module, name) for name in module.__all__]
    return names.union(*(public_names(part) for part in parts if isinstance(part, types.ModuleType)))


@pytest.mark.slow_by_nature
def test_the_reference_describes_every_public_name(documented):
    assert sorted(public_names(tfopt) - documented) == []


@pytest.mark.parametrize("package", ["tfopt", "tfopt.callbacks", "tfopt.distributed"])
def test_dir_lists_names_that_are_imported_on_first_use(package):
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))

"""What the documents say is true: their code runs, their links lead somewhere, their commands exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


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


@pytest.mark.slow_by_nature
def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", ROOT / "docs", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "reference" / "bregman.html").read_text()
    assert "initial_epoch" in page
    assert "Number of the last sweep" in page

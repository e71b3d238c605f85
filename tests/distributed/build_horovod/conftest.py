"""pip without a network."""

import os

import pytest


@pytest.fixture
def offline(monkeypatch):
    """Lets pip take files from a folder only."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return lambda folder: monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

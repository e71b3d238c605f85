"""Modules and names that are imported on first use, because TensorFlow and Keras take seconds to import."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf
else:

    class _TensorFlow:
        """TensorFlow, for modules with `from __future__ import annotations` that use it inside functions only."""

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module("tensorflow"), name)

    tf = _TensorFlow()

__all__ = ["lazy_names", "tf"]


def lazy_names(
    package: str, modules: dict[str, str], public: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package, whose names are imported from submodules on first use."""
    # `modules` maps such names to submodules, and `public` is the package's `__all__`.

    def get(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(public)}")

    return get, lambda: sorted({*vars(sys.modules[package]), *public})

"""The version of tfopt."""

__version__ = "0.1.0"

"""The version, declared once in pyproject.toml and read from the installed metadata."""

from __future__ import annotations

from importlib import metadata

try:
    __version__ = metadata.version("effv2_kernels")
except metadata.PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+checkout"

"""One module a suite: ``HELP``, ``add_arguments(parser)`` and ``run(arguments) -> list[Row]``."""

from __future__ import annotations

from types import ModuleType

from . import cpu

SUITES: dict[str, ModuleType] = {"cpu": cpu}

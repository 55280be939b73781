"""What is in ``interpreted`` runs with TRITON_INTERPRET=1, which has to be set before anything
imports a kernel: ``test_in_interpreter.py`` starts it in a process of its own."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]

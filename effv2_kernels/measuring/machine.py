"""What the machine is, and what is installed on it, as rows and bug reports name it."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path


def cpu_name() -> str:
    """The processor as its maker calls it."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", listing.read_text(), re.MULTILINE)
        if found:
            return " ".join(found[1].split())
    return platform.processor() or platform.machine()


def driver_version() -> str:
    """The NVIDIA driver's version, or "none"."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return (output(query) or "none").splitlines()[0]


def version_of(package: str) -> str:
    """The installed version, or "none"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def output(command: list[str]) -> str:
    """What a command prints, or nothing if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout

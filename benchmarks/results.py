"""The CSV files that every published figure comes from: one row a measured number.

A new measurement replaces the row of the same key, and leaves the others as they were.
"""

from __future__ import annotations

import csv
import datetime
import functools
import os
import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from effv2_kernels.measuring.machine import cpu_name, driver_version, version_of
from effv2_kernels.measuring.timing import Quantiles, quantiles

FOLDER = Path(__file__).parent / "results"
#: The ``gpu`` of a row that no device computed: a count, or a figure of the paper.
NO_DEVICE = "none"
KEY = ("suite", "case", "impl", "metric", "batch", "resolution", "dtype", "gpu")


@dataclass(frozen=True)
class Row:
    """One measured number. ``gpu`` is the device that computed, a CPU too; ``samples``, ``p20``
    and ``p80`` say how sure ``value``, the median, is."""

    suite: str
    case: str
    impl: str
    metric: str
    value: str
    unit: str
    batch: str
    resolution: str
    dtype: str
    gpu: str
    torch: str
    triton: str
    driver: str
    commit: str
    date: str
    samples: str
    p20: str
    p80: str

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(getattr(self, name) for name in KEY)


COLUMNS = tuple(field.name for field in fields(Row))


@dataclass(frozen=True)
class Environment:
    """The columns that are the same for all rows of a run."""

    gpu: str
    torch: str
    triton: str
    driver: str
    commit: str
    date: str


def device_name(device: torch.device) -> str:
    """The GPU's name; for a CPU also the vector instructions that PyTorch uses, and the threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    isa = torch.backends.cpu.get_cpu_capability()
    return f"CPU {cpu_name()}, {isa} ({torch.get_num_threads()} threads)"


def slug(device: torch.device) -> str:
    """The name of the folder of a device's results: "nvidia_h200", "cpu"."""
    if device.type != "cuda":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(device).lower()).strip("_")


def environment(device: torch.device) -> Environment:
    on_gpu = device.type == "cuda"
    return Environment(
        gpu=device_name(device),
        torch=torch.__version__,
        triton=version_of("triton"),
        driver=_driver() if on_gpu else "none",
        commit=_commit(),
        date=datetime.date.today().isoformat(),
    )


def maker(
    device: torch.device,
    *,
    suite: str,
    case: str,
    batch: int | str,
    resolution: int | str,
    dtype: str,
) -> Callable[[str, str, str, Quantiles], Row]:
    """A function of (impl, metric, unit, quantiles) that makes the rows of one case."""
    return _maker(environment(device), suite, case, batch, resolution, dtype)


def static_maker(
    *, suite: str, case: str, batch: int | str, resolution: int | str, dtype: str = "any"
) -> Callable[[str, str, str, float], Row]:
    """A function of (impl, metric, unit, value) for numbers that are counted or quoted: no device,
    no spread."""
    where = replace(environment(torch.device("cpu")), gpu=NO_DEVICE)
    make = _maker(where, suite, case, batch, resolution, dtype)
    return lambda impl, metric, unit, value: make(impl, metric, unit, quantiles([value]))


def _maker(
    where: Environment,
    suite: str,
    case: str,
    batch: int | str,
    resolution: int | str,
    dtype: str,
) -> Callable[[str, str, str, Quantiles], Row]:
    def make(impl: str, metric: str, unit: str, q: Quantiles) -> Row:
        return Row(
            suite=suite,
            case=case,
            impl=impl,
            metric=metric,
            value=f"{q.median:.4g}",
            unit=unit,
            batch=str(batch),
            resolution=str(resolution),
            dtype=dtype,
            samples=str(q.samples),
            p20=f"{q.p20:.4g}",
            p80=f"{q.p80:.4g}",
            **asdict(where),
        )

    return make


def read(path: Path) -> list[Row]:
    """The rows of a file; none if it does not exist. Raises ValueError for other columns."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} has the columns {reader.fieldnames}, not {COLUMNS}")
        return [Row(**entry) for entry in reader]


def read_all(folder: Path = FOLDER) -> list[Row]:
    """The rows of every file below ``folder``."""
    return [row for path in sorted(folder.rglob("*.csv")) for row in read(path)]


def upsert(path: Path, rows: Iterable[Row]) -> None:
    """Put rows into a file: over the row of the same key in place, else at the end."""
    merged = {old.key: old for old in read(path)}
    merged.update((new.key, new) for new in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".part")  # a run that is killed meanwhile loses nothing
    with written.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(entry) for entry in merged.values())
    written.replace(path)


@functools.cache
def _driver() -> str:
    return driver_version()


@functools.cache
def _commit() -> str:
    """The commit that is measured, with "-dirty" where tracked files differ from it. A copy of the
    tree that brings no ``.git`` is told in EFFV2_COMMIT."""
    told = os.environ.get("EFFV2_COMMIT")
    if told:
        return told
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()

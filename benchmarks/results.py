"""The CSV files that every published figure comes from: one row a measured number.

A new measurement replaces the row of the same key, and leaves the others as they were.
"""

from __future__ import annotations

import csv
import datetime
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from effv2_kernels.cli.info import cpu_name, driver_version, version_of
from effv2_kernels.cli.timing import Quantiles

FOLDER = Path(__file__).parent / "results"
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


def environment(device: torch.device) -> Environment:
    on_gpu = device.type == "cuda"
    threads = f"{torch.get_num_threads()} threads"
    return Environment(
        gpu=torch.cuda.get_device_name(device) if on_gpu else f"CPU {cpu_name()} ({threads})",
        torch=torch.__version__,
        triton=version_of("triton"),
        driver=driver_version() if on_gpu else "none",
        commit=_commit(),
        date=datetime.date.today().isoformat(),
    )


def row(
    where: Environment,
    q: Quantiles,
    *,
    suite: str,
    case: str,
    impl: str,
    metric: str,
    unit: str,
    batch: int,
    resolution: int,
    dtype: str,
) -> Row:
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


def read(path: Path) -> list[Row]:
    """The rows of a file; none if it does not exist. Raises ValueError for other columns."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} has the columns {reader.fieldnames}, not {COLUMNS}")
        return [Row(**entry) for entry in reader]


def upsert(path: Path, rows: Iterable[Row]) -> None:
    """Put rows into a file: over the row of the same key in place, else at the end."""
    merged = {old.key: old for old in read(path)}
    merged.update((new.key, new) for new in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(entry) for entry in merged.values())


def _commit() -> str:
    """The commit that is measured, with "-dirty" where tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()

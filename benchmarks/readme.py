"""The README's table of measured gains, written from the committed CSV files."""

from __future__ import annotations

from pathlib import Path

from . import results
from .results import Row

README = Path(__file__).parent.parent / "README.md"
SOURCE = results.FOLDER / "cpu" / "cpu.csv"
BEGIN = "<!-- measured gains: written by `python -m benchmarks readme`, do not edit -->"
END = "<!-- end of measured gains -->"
_HEADER = """\
| device | network | dtype | batch | eager channels_last | `torch.compile` | patched | over eager | over `torch.compile` |
|---|---|---|---|---|---|---|---|---|"""  # noqa: E501
_GPU = "| GPU | any | any | any | not measured | not measured | not measured | not measured | not measured |"  # noqa: E501


def run(*, check: bool) -> int:
    """Write the table into the README, or with ``check`` say whether it is there already."""
    old = README.read_text()
    new = updated(old, results.read(SOURCE))
    if check:
        print("README.md is up to date" if old == new else "README.md differs from the CSV files")
        return int(old != new)
    README.write_text(new)
    return 0


def updated(text: str, rows: list[Row]) -> str:
    """The text with the table between its two markers; raises ValueError without them."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md needs one {BEGIN!r} and one {END!r}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"


def table(rows: list[Row]) -> str:
    """One line for each measured case, one for what was not measured, and where it was."""
    found = {row.key: row for row in rows}
    cases = list(dict.fromkeys(_case(row) for row in rows))
    lines = [_line(case, {r.impl + " " + r.metric: r for r in found.values() if _case(r) == case})
             for case in cases]  # fmt: skip
    machines = dict.fromkeys(
        f"{r.gpu}, torch {r.torch}, {r.date}, commit {r.commit}" for r in found.values()
    )
    sources = [f"Measured on: {machine}." for machine in machines]
    return "\n".join([_HEADER, *lines, _GPU, "", *sources])


def _case(row: Row) -> tuple[str, ...]:
    return row.gpu.split(" (")[0], row.case, row.resolution, row.dtype, row.batch


def _line(case: tuple[str, ...], cells: dict[str, Row]) -> str:
    device, network, resolution, dtype, batch = case
    values = [
        _milliseconds(cells.get("eager_nhwc latency_ms")),
        _milliseconds(cells.get("compile_default latency_ms")),
        _milliseconds(cells.get("effv2 latency_ms")),
        _ratio(cells.get("effv2 speedup_vs_eager_nhwc")),
        _ratio(cells.get("effv2 speedup_vs_compile_default")),
    ]
    names = [device, f"{network}, {resolution} px", dtype, batch]
    return f"| {' | '.join([*names, *values])} |"


def _milliseconds(row: Row | None) -> str:
    return f"{float(row.value):.1f} ms" if row else "not measured"


def _ratio(row: Row | None) -> str:
    if row is None:
        return "not measured"
    low, high = float(row.p20), float(row.p80)
    return f"**{float(row.value):.2f}x** ({low:.2f} to {high:.2f})"

"""What ``patch`` did, for a program to check and for a person to read."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Patched:
    """A block that runs on our ops. ops: in inference, each op of its sequence and, in brackets,
    what runs it on the model's device: ``"gated_project[aten]"``; training: the op that trains it
    there, or "" where its original forward does."""

    name: str
    block: str
    ops: tuple[str, ...]
    training: str = ""


@dataclass(frozen=True)
class Skipped:
    """A candidate block that is left as it was, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class PatchReport:
    """patched, skipped: every candidate block is in one of them; coverage: the fraction of the
    model's convolution and linear MACs that runs on our ops, 0..1; backend: what was chosen;
    notes: what else a user should know."""

    patched: list[Patched]
    skipped: list[Skipped]
    coverage: float
    backend: str
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        title = (
            f"effv2_kernels: {len(self.patched)} blocks patched, {len(self.skipped)} skipped, "
            f"{self.coverage:.1%} of the conv + linear MACs, backend {self.backend}"
        )
        rows = [(entry.name, entry.block, ", ".join(entry.ops)) for entry in self.patched]
        rows += [(entry.name, "skipped", entry.reason) for entry in self.skipped]
        trained = sorted({entry.training for entry in self.patched if entry.training})
        notes = [f"training: {', '.join(trained)}"] if trained else []
        notes += [f"note: {note}" for note in self.notes]
        return "\n".join([title, *_table(("module", "block", "ops or reason"), rows), *notes])


def _table(header: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> list[str]:
    """Aligned rows; consecutive blocks of one stage that run alike share a line."""
    if not rows:
        return []
    merged: list[list[str]] = []
    last = ""
    for name, *rest in rows:
        same_stage = merged and name.rpartition(".")[0] == last.rpartition(".")[0] != ""
        if same_stage and merged[-1][1:] == rest:
            merged[-1][0] = f"{merged[-1][0].split(' .. ')[0]} .. {name.rpartition('.')[2]}"
        else:
            merged.append([name, *rest])
        last = name
    widths = [max(len(row[i]) for row in [list(header), *merged]) for i in range(2)]
    return [
        f"  {name:<{widths[0]}}  {block:<{widths[1]}}  {text}"
        for name, block, text in [list(header), *merged]
    ]

"""Writes build_info.h: `python build_info.py OUTPUT KEY=VALUE... LOG...`, logs of `ptxas -v`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

# One match a kernel and architecture: name, architecture, stack, spill stores and loads,
# registers, the rest.
USAGE = re.compile(
    r"Compiling entry function '(\S+)' for '(\S+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers([^\n]*)",
    re.DOTALL,
)


def kernel_rows(log: str) -> list[str]:
    rows = []
    for name, architecture, stack, stores, loads, registers, rest in USAGE.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        numbers = (registers, shared.group(1) if shared else "0", stack, stores, loads)
        rows.append(f'EFFV2_KERNEL("{name}", "{architecture}", {", ".join(numbers)})')
    return rows


def main(output: str, *arguments: str) -> None:
    values = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    logs = [argument for argument in arguments if "=" not in argument]
    rows = [row for log in logs for row in kernel_rows(Path(log).read_text())]
    text = "".join(f'#define EFFV2_{key} "{value}"\n' for key, value in values.items())
    text += "#define EFFV2_KERNELS \\\n  " + " \\\n  ".join(rows) + "\n"
    target = Path(output)
    if not target.exists() or target.read_text() != text:  # an unchanged header compiles nothing
        target.write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])

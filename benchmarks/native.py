"""``python -m benchmarks.native``: whether the native library is there, as an exit status.

A GPU run without it would pass its tests by skipping them.
"""

from __future__ import annotations

import sys

from effv2_kernels import _native


def main() -> int:
    status = _native.load()
    print(f"native library: {status.path if status.loaded else status.reason}")
    return int(not status.loaded)


if __name__ == "__main__":
    sys.exit(main())

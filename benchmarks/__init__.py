"""Benchmarks: ``python -m benchmarks SUITE``, from the repository's root.

A suite yields rows, ``results`` keeps them in ``results/<machine>/<suite>.csv``, and
``python -m benchmarks readme`` writes the README's table from there.
"""

import time

#: When this process began, for who has only so many minutes: to import PyTorch takes some seconds.
STARTED = time.monotonic()

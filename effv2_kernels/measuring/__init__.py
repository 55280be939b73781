"""What the commands and the benchmarks share to measure a network: fair times, agreement with a
reference, the networks themselves, and what else the machine does meanwhile.

Knows nothing of kernels or of patching: whoever measures says what runs.
"""

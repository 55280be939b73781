"""What the commands and the benchmarks share to measure a network: the networks and fair times,
agreement with a reference, what the machine is and what else it does meanwhile.

Knows nothing of kernels or of patching: whoever measures says what runs.
"""

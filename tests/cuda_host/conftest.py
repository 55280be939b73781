"""Fixtures of the CUDA kernels that run on the CPU."""

from tests.cuda_host.native import native

__all__ = ["native"]

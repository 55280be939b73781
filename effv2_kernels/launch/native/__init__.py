"""Launch choices of the kernels in csrc/."""

"""Launch choices of the kernels in triton_kernels/, one file a kernel, and how they are found."""

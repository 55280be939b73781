"""The host side of the kernels, one engine each: ``native`` (CUDA C++), ``triton``, ``onednn`` and
``aten``. An op's file says which of them can compute it, and in which order they are asked."""

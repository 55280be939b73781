"""The ``@triton.jit`` kernels, and nothing else: what they are given is decided in ``launch`` and
prepared in ``triton_ops``. Importing this package does not import Triton; its modules do.

All maps are dense NHWC: channel ``c`` of pixel ``m`` (images, rows and columns counted through) of
a map with ``C`` channels lies at ``m * C + c``. Weights of a convolution are dense (O, kh, kw, I),
so one output channel is one row of ``kh * kw * I`` elements. Names in capitals are compile-time
constants.

THROUGH_L1 is not used by the kernels themselves: where it is set, copies into shared memory go
through L1 (``engines/triton/_compile.py``), for what a program reads again.

The subset of the language is what Triton 3.6 and the newest have in common: no autotuner, no
descriptors, no ``tl.range`` options, no values at run time that are specialised on.
"""

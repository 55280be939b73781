"""What compiling tells of the kernels, without running them: one file a backend.

Each offers ``rows()``, the rows of its table, for the ``static`` suite.
"""

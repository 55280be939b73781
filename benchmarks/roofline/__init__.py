"""What each block must move and compute, and how fast that can be at best.

``kernels`` counts the bytes and operations of every kernel of a block, run in four ways; ``floors``
turns them into times with the ceilings of a GPU. Neither needs one.
"""

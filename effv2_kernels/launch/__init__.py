"""How a kernel is launched: plain functions of (shape, dtype, target) that give frozen dataclasses.

``targets`` says what a GPU offers; the other modules choose tiles, warps and stages for it. Nothing
here touches a GPU, so every choice can be made, tested and compiled on a machine without one.
"""

"""The paper's training recipe: progressive learning, from a folder of images to trained weights.

It knows no kernels. ``schedule`` says how image size and regularisation grow; ``options.Recipe``
holds all that can be chosen, ``paper`` what the paper chose; ``run.run`` trains on a folder,
``loop.Trainer`` on data at hand.
What needs timm, torchvision and others (``pip install effv2_kernels[train]``) is imported with
those modules, not here.
"""

from .errors import RecipeError
from .paper import preset
from .schedule import Regularisation, Schedule, Stage, fixed, progressive

__all__ = [
    "RecipeError",
    "Regularisation",
    "Schedule",
    "Stage",
    "fixed",
    "preset",
    "progressive",
]

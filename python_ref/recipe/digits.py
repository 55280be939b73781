"""Scikit-learn's handwritten digits as a folder of images: data that needs no download."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from .extras import extra

SIZE = 32  # pixels, from the 8 of scikit-learn
VALIDATION = 360  # images, of 1797
_LEVELS = 16  # of grey: 0 to 16


def write_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """``train/`` and ``val/``, each with a folder of PNG files for every digit, always the same
    split. folder: where; otherwise in the user's cache. One that is there is left as it is."""
    place = Path(folder) if folder is not None else _cache() / "effv2_kernels" / "digits"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        # A folder that is there is whole, also if many processes write it at once.
        with tempfile.TemporaryDirectory(dir=place.parent) as unfinished:
            _write(Path(unfinished) / "digits")
            try:
                (Path(unfinished) / "digits").rename(place)
            except OSError:
                if not place.is_dir():
                    raise
    return place


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _write(folder: Path) -> None:
    with extra():
        from PIL import Image
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * (255 / _LEVELS)).round().astype(np.uint8)
    parts = train_test_split(
        np.arange(len(labels)), test_size=VALIDATION, stratify=labels, random_state=0
    )
    for part, indices in zip(("train", "val"), parts, strict=True):
        for index in indices:
            target = folder / part / str(labels[index])
            target.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels[index]).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            image.save(target / f"{index:04}.png")

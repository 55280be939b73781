"""From an encoded image to a square of pixels, decoding no more of it than the square needs."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .extras import extra

with extra():
    from PIL import ExifTags, Image, ImageOps
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2 import InterpolationMode, functional

Interpolation = Literal["bilinear", "bicubic"]
Decoder = Literal["pil", "tv", "dali"]
#: Left, top, width, height, in pixels.
Box = tuple[int, int, int, int]
#: What the libraries raise for data that is no image, or half of one.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
_SIDEWAYS = 5  # EXIF orientations from here on exchange width and height


def cut(
    encoded: bytes | Image.Image,
    choose: Callable[[int, int], Box],
    size: int,
    interpolation: Interpolation = "bilinear",
    decoder: Decoder = "pil",
) -> Tensor:
    """(3, size, size) uint8, RGB: the box that ``choose`` finds in an image of a width and a
    height, turned as its EXIF data say.

    decoder: ``"pil"`` decodes a JPEG at a half, a quarter or an eighth of its size (libjpeg leaves
        out frequencies, and their time) where the box still has ``size`` pixels each way. ``"tv"``
        is torchvision's, which decodes all pixels; where it does not know a format, PIL does it.
    Raises one of UNREADABLE.
    """
    whole = _decode_with_torchvision(encoded) if decoder == "tv" else None
    if whole is not None:
        image, box = whole, choose(whole.shape[2], whole.shape[1])
    else:
        image, box = _decode_with_pil(encoded, choose, size)
    left, top, width, height = box
    mode = InterpolationMode(interpolation)
    return functional.resized_crop(image, top, left, height, width, [size, size], mode)


def _decode_with_torchvision(encoded: bytes | Image.Image) -> Tensor | None:
    """None for what it cannot decode."""
    if not isinstance(encoded, bytes):
        return None
    data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    with warnings.catch_warnings():
        # Since 0.29 every image would say that TorchCodec is to take its place.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            image = decode_image(data, ImageReadMode.RGB, apply_exif_orientation=True)
        except RuntimeError:
            return None
    image = image.reshape(-1, *image.shape[-3:])[0]  # a GIF has several
    return functional.to_dtype(image, torch.uint8, scale=True)  # a PNG may have 16 bits


def _decode_with_pil(
    encoded: bytes | Image.Image, choose: Callable[[int, int], Box], size: int
) -> tuple[Tensor, Box]:
    """The image, perhaps smaller than it is, and the box in it."""
    image = Image.open(io.BytesIO(encoded)) if isinstance(encoded, bytes) else encoded
    width, height = image.size
    sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= _SIDEWAYS
    box = choose(height, width) if sideways else choose(width, height)
    wanted = max(1, min(box[2:]) // size)
    image.draft(None, (width // wanted, height // wanted))
    reduction = round(width / image.width)
    image = _as_rgb(image)
    ImageOps.exif_transpose(image, in_place=True)
    left, across = _reduced(box[0], box[2], reduction, image.width)
    top, down = _reduced(box[1], box[3], reduction, image.height)
    return functional.pil_to_tensor(image), (left, top, across, down)


def _reduced(begin: int, length: int, reduction: int, limit: int) -> tuple[int, int]:
    """A range of pixels in an image that is smaller by ``reduction``, at least one long."""
    begin = min(round(begin / reduction), limit - 1)
    return begin, max(1, min(round(length / reduction), limit - begin))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, of which PIL's own conversion keeps the lower 8
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # which PIL asks for with a warning
    return image.convert("RGB")

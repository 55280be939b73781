"""What DALI does to a batch, by numbers that it is fed: decode, crop, resize, mirror, augment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .decoding import Interpolation
from .extras import extra
from .schedule import Schedule, Stage
from .transforms import FULL, GREY, OPERATIONS, TRANSLATION, of_full

with extra("nvidia-dali-cuda130"):
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.auto_aug import augmentations as of_dali
    from nvidia.dali.auto_aug.core import augmentation, select, signed_bin

_INTERPOLATIONS = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}


def build_pipeline(batch: int, schedule: Schedule, interpolation: Interpolation) -> Any:
    """For batches of at most ``batch`` images of any stage; on the current GPU, or without one on
    the CPU. Its inputs are those that ``_pipeline`` names."""
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
    pipeline = _pipeline(
        "cpu" if gpu is None else "mixed",
        _operations(schedule.stages),
        len(schedule.stages),
        _INTERPOLATIONS[interpolation],
        batch_size=batch,
        device_id=gpu,
        num_threads=2,
        prefetch_queue_depth=1,
    )
    pipeline.build()
    return pipeline


@pipeline_def(enable_conditionals=True)
def _pipeline(decoder: str, operations: Sequence[Any], stages: int, interpolation: Any) -> Any:
    def row(name: str) -> Any:
        return fn.external_source(name=name, dtype=types.INT32, ndim=1)

    def number(name: str) -> Any:
        return fn.external_source(name=name, dtype=types.INT32, ndim=0)

    files = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    images = fn.decoders.image_slice(
        files,
        row("anchor"),
        row("shape"),
        axis_names="WH",
        device=decoder,
        output_type=types.RGB,
        adjust_orientation=False,
    )
    size = fn.cast(row("size"), dtype=types.FLOAT)
    images = fn.resize(images, size=size, interp_type=interpolation, antialias=True)
    images = fn.flip(images, horizontal=number("mirrored"))
    stage = number("stage")
    for turn in range(2):
        images = select(
            operations,
            number(f"operation{turn}"),
            images,
            magnitude_bin=signed_bin(stage, number(f"negative{turn}")),
            num_magnitude_bins=stages,
            fill_value=GREY,
            interp_type=interpolation,
            corner=row(f"corner{turn}"),
            extent=row(f"extent{turn}"),
        )
    return images


def _operations(stages: Sequence[Stage]) -> list[Any]:
    """Those of ``transforms``, by position, then Cutout and none, with a strength for each stage:
    a stage is what DALI calls a bin."""
    level = np.array([stage.regularisation.magnitude for stage in stages]) / FULL
    moved = -TRANSLATION * level * np.array([of_full(stage.size) for stage in stages])
    enhance = {"mag_range": 1.8 * level + 0.1, "randomly_negate": False, "mag_to_param": np.float32}
    bits = np.maximum(1, (4 * level).astype(int))
    found = {
        "AutoContrast": of_dali.auto_contrast,
        "Equalize": of_dali.equalize,
        "Invert": of_dali.invert,
        "Rotate": of_dali.rotate.augmentation(mag_range=30 * level),
        "Posterize": of_dali.posterize.augmentation(mag_range=bits, mag_to_param=_mask),
        "Solarize": of_dali.solarize.augmentation(mag_range=np.minimum(256, 256 * level // 1)),
        "SolarizeAdd": of_dali.solarize_add.augmentation(
            mag_range=np.minimum(127, 110 * level // 1)
        ),
        "Color": of_dali.color.augmentation(**enhance),
        "Contrast": of_dali.contrast.augmentation(**enhance),
        "Brightness": of_dali.brightness.augmentation(**enhance),
        "Sharpness": of_dali.sharpness.augmentation(
            **{**enhance, "mag_to_param": of_dali.sharpness_kernel_shifted}
        ),
        # PIL moves pixels against the direction that it is given.
        "ShearX": of_dali.shear_x.augmentation(mag_range=-0.3 * level),
        "ShearY": of_dali.shear_y.augmentation(mag_range=-0.3 * level),
        "TranslateX": of_dali.translate_x_no_shape.augmentation(mag_range=moved),
        "TranslateY": of_dali.translate_y_no_shape.augmentation(mag_range=moved),
    }
    return [*(found[name] for name in OPERATIONS), _grey_square, of_dali.identity]


def _mask(bits: int) -> np.ndarray:
    return np.array(256 - 2 ** (8 - min(8, int(bits))), dtype=np.uint8)


@augmentation
def _grey_square(images: Any, _: Any, corner: Any, extent: Any) -> Any:
    corner, extent = (fn.cast(numbers, dtype=types.FLOAT) for numbers in (corner, extent))
    return fn.erase(images, anchor=corner, shape=extent, axis_names="HW", fill_value=GREY)

"""How images are made: the same from the same seed, by the official rules, of any kind of file."""

from __future__ import annotations

import io
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("timm", reason="timm is an extra")
pytest.importorskip("torchvision", reason="torchvision is an extra")

from python_ref.recipe import decoding  # noqa: E402
from python_ref.recipe.decoding import UNREADABLE, Decoder, cut  # noqa: E402
from python_ref.recipe.schedule import Policy, Regularisation, Stage  # noqa: E402
from python_ref.recipe.transforms import (  # noqa: E402
    LEGACY,
    OFFICIAL,
    GreySquare,
    Making,
    TrainingImage,
    augmentation,
    own_random_state,
    seed_everything,
    validation_image,
)
from tests.recipe.pictures import encoded, picture  # noqa: E402

PLAIN = Making(min_area=1.0, ratio=(1.0, 1.0), crop=False, flip=0.0)


def made(making: Making, size: int, file: bytes, seed: int = 0, magnitude: float = 0.0) -> Tensor:
    make = TrainingImage(making, Stage(1.0, size, Regularisation(magnitude)), "randaugment")
    seed_everything(seed)
    return make(file)


def difference(found: Tensor, expected: Tensor) -> float:
    """Mean over pixels, in levels of 256."""
    return (found.float() - expected.float()).abs().mean().item()


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))


@pytest.mark.parametrize("decoder", ["pil", "tv"])
@pytest.mark.parametrize("policy", ["randaugment", "autoaugment"])
def test_a_seed_decides_every_byte(decoder: Decoder, policy: Policy) -> None:
    making = Making(decoder=decoder, erase=0.5, cutout=True)
    make = TrainingImage(making, Stage(1.0, 32, Regularisation(9.5)), policy)
    file = encoded(picture(120, 90))
    images = []
    for before in range(2):
        for seed in range(6):
            random.random(), np.random.rand(before), torch.rand(before)
            seed_everything(seed)
            images.append(make(file))
    assert all(torch.equal(a, b) for a, b in zip(images[:6], images[6:], strict=True))
    assert len({image.numpy().tobytes() for image in images}) == 6


def test_the_callers_random_numbers_stay() -> None:
    seed_everything(5)
    expected = random.random(), np.random.rand(), torch.rand(1)
    seed_everything(5)
    with own_random_state():
        seed_everything(7)
        random.random(), np.random.rand(), torch.rand(1)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_no_augmentation_is_none() -> None:
    assert augmentation("none", 9.0) is None
    assert augmentation("randaugment", 0.0) is None
    assert augmentation("randaugment", 5.0) and augmentation("autoaugment", 0.0)


def test_randaugment_extrapolates_and_takes_fractions() -> None:
    policy = augmentation("randaugment", 16.5)
    assert len(policy.ops) == 16 and policy.num_layers == 2
    operations = {getattr(operation, "name", "Cutout"): operation for operation in policy.ops}
    rotate = operations["Rotate"]
    assert (rotate.prob, rotate.magnitude_std, rotate.kwargs["fillcolor"]) == (1.0, 0, (128,) * 3)
    turned = []
    rotate.aug_fn = lambda image, degrees, **_: turned.append(degrees)
    rotate(picture())
    assert abs(turned[0]) == pytest.approx(16.5 / 10 * 30)
    moved = []
    operations["TranslateX"].aug_fn = lambda image, pixels, **_: moved.append(pixels)
    operations["TranslateX"](picture())
    assert abs(moved[0]) == pytest.approx(16.5 / 10 * 100)
    assert operations["Cutout"].reach == 66


def test_a_grey_square_stays_in_the_image() -> None:
    random.seed(1)
    white = Image.new("RGB", (20, 20), (255, 255, 255))
    grey = [np.asarray(GreySquare(4)(white)) == 128 for _ in range(20)]
    assert all(16 <= one[..., 0].sum() <= 64 for one in grey)
    assert np.asarray(white).min() == 255, "the image that it was given changed"


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right and green downwards, from 0 to 240."""
    across = np.broadcast_to(np.linspace(0, 240, width), (height, width))
    down = np.broadcast_to(np.linspace(0, 240, height)[:, None], (height, width))
    pixels = np.stack([across, down, np.zeros_like(down)], axis=-1)
    return Image.fromarray(pixels.round().astype(np.uint8))


def cropped_area(image: Tensor) -> float:
    """The share of ``gradient`` that an image shows."""
    across, down = (image[..., channel].float() for channel in (0, 1))
    return ((across.max() - across.min()) * (down.max() - down.min()) / 240**2).item()


@pytest.mark.parametrize("making", [OFFICIAL, LEGACY])
@pytest.mark.parametrize("decoder", ["pil", "tv"])
def test_crops_have_the_papers_areas(making: Making, decoder: Decoder) -> None:
    file = encoded(gradient(300, 225), "PNG")
    making = Making(min_area=making.min_area, decoder=decoder)
    areas = [cropped_area(made(making, 48, file, seed)) for seed in range(60)]
    assert making.min_area * 0.8 < min(areas) < 0.25 and 0.75 < max(areas) <= 1.0


@pytest.mark.parametrize("decoder", ["pil", "tv"])
def test_the_whole_image_can_be_squashed(decoder: Decoder) -> None:
    making = Making(crop=False, flip=0.0, decoder=decoder)
    assert cropped_area(made(making, 64, encoded(gradient(200, 100), "PNG"))) > 0.95


def test_half_of_the_images_are_mirrored() -> None:
    file = encoded(gradient(64, 48), "PNG")
    mirrored = [made(OFFICIAL, 32, file, seed) for seed in range(100)]
    count = sum(image[16, 0, 0] > image[16, -1, 0] for image in mirrored)
    assert 30 < count < 70


def test_erasing_and_cutout_paint_over_the_image() -> None:
    file = encoded(Image.new("RGB", (64, 64), (200, 200, 200)), "PNG")
    erased = made(Making(erase=1.0), 64, file)
    assert set(erased.unique().tolist()) == {128, 200}
    reaches = [(made(Making(cutout=True), 64, file, seed) != 200).any(-1) for seed in range(20)]
    shares = [reach.float().mean().item() for reach in reaches]
    assert 0.05 < min(shares) < max(shares) <= 0.25  # up to half a side, each way


@pytest.mark.parametrize("decoder", ["pil", "tv"])
@pytest.mark.parametrize(("width", "height"), [(400, 300), (333, 517), (97, 1000)])
def test_decoding_at_scale_shows_the_same_crop(decoder: Decoder, width: int, height: int) -> None:
    file = encoded(picture(width, height), quality=95)
    box = (width // 10, height // 8, width // 2, height // 2)
    found = cut(file, lambda *_: box, 32, "bilinear", decoder)
    left, top, across, down = box
    whole = Image.open(io.BytesIO(file)).crop((left, top, left + across, top + down))
    expected = as_tensor(whole.resize((32, 32), Image.Resampling.BILINEAR)).permute(2, 0, 1)
    assert difference(found, expected) < 1.5


@pytest.mark.parametrize(
    ("crop", "decoded"), [((400, 300), (100, 75)), ((130, 130), (200, 150)), ((70, 90), (400, 300))]
)
def test_a_jpeg_is_decoded_no_larger_than_the_crop_needs(
    monkeypatch: pytest.MonkeyPatch, crop: tuple[int, int], decoded: tuple[int, int]
) -> None:
    sizes = []
    to_tensor = decoding.functional.pil_to_tensor
    monkeypatch.setattr(
        decoding.functional,
        "pil_to_tensor",
        lambda image: sizes.append(image.size) or to_tensor(image),
    )
    cut(encoded(picture(400, 300)), lambda *_: (0, 0, *crop), 64)
    assert sizes == [decoded]


def kinds() -> dict[str, bytes]:
    """The same picture in every kind of file."""
    image = picture(64, 48)
    alpha = image.copy()
    alpha.putalpha(255)
    return {
        "png": encoded(image, "PNG"),
        "webp": encoded(image, "WEBP", lossless=True),
        "bmp": encoded(image, "BMP"),
        "tiff": encoded(image, "TIFF"),
        "jpeg": encoded(image, "JPEG", quality=98),
        "alpha": encoded(alpha, "PNG"),
        "cmyk": encoded(image.convert("CMYK"), "JPEG", quality=98),
        "palette": encoded(image.quantize(256), "PNG"),
        "transparent palette": encoded(image.quantize(255), "PNG", transparency=b"\x80\xff"),
        "gif": encoded(image.quantize(256), "GIF"),
    }


@pytest.mark.parametrize("decoder", ["pil", "tv"])
@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_file_becomes_rgb(kind: str, decoder: Decoder) -> None:
    making = Making(crop=False, flip=0.0, decoder=decoder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = made(making, 32, kinds()[kind])
    expected = as_tensor(picture(64, 48).resize((32, 32), Image.Resampling.BILINEAR))
    assert found.shape == (32, 32, 3) and found.dtype == torch.uint8
    assert difference(found, expected) < 6


@pytest.mark.parametrize("decoder", ["pil", "tv"])
@pytest.mark.parametrize("bits", [8, 16])
def test_grey_becomes_three_equal_channels(bits: int, decoder: Decoder) -> None:
    grey = np.asarray(picture(64, 48).convert("L"))
    deep = (grey.astype(np.uint16) << 8) + 77
    file = encoded(Image.fromarray(grey if bits == 8 else deep), "PNG")
    found = made(Making(crop=False, flip=0.0, decoder=decoder), 32, file)
    assert torch.equal(found[..., 0], found[..., 2])
    expected = as_tensor(Image.fromarray(grey).resize((32, 32), Image.Resampling.BILINEAR))
    assert difference(found[..., 0], expected) < 2


@pytest.mark.parametrize("decoder", ["pil", "tv"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_camera_may_have_been_turned(kind: str, decoder: Decoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # is shown a quarter turned to the right
    file = encoded(picture(240, 120), kind, exif=exif, quality=98)
    upright = encoded(picture(240, 120).transpose(Image.Transpose.ROTATE_270), "PNG")
    making = Making(min_area=0.3, flip=0.0, decoder=decoder)
    for seed in range(5):
        assert difference(made(making, 32, file, seed), made(making, 32, upright, seed)) < 6


def test_an_image_of_one_pixel_is_an_image() -> None:
    assert made(OFFICIAL, 32, encoded(Image.new("RGB", (1, 1)), "PNG")).shape == (32, 32, 3)


def test_a_decoded_image_stays_as_it_is() -> None:
    image = picture(64, 48)
    found = TrainingImage(OFFICIAL, Stage(1.0, 32, Regularisation(5.0)), "randaugment")(image)
    assert found.shape == (32, 32, 3)
    assert image.tobytes() == picture(64, 48).tobytes()


@pytest.mark.parametrize("decoder", ["pil", "tv"])
def test_what_is_no_image_is_unreadable(decoder: Decoder) -> None:
    jpeg, png = encoded(picture(200, 200)), encoded(picture(200, 200), "PNG")
    for file in (b"", b"text", jpeg[: len(jpeg) // 2], png[: len(png) // 2], png[:40]):
        with pytest.raises(UNREADABLE):
            made(Making(decoder=decoder), 32, file)


def test_small_validation_images_are_cropped_and_large_ones_squashed(tmp_path: Path) -> None:
    file = encoded(gradient(640, 480), "PNG")
    small, large = validation_image(file, 224), validation_image(file, 320)
    assert small.shape == (224, 224, 3) and large.shape == (320, 320, 3)
    # 224 of 256 parts of the shorter side, in the middle.
    side = 480 * 224 / 256
    shown = (small[..., 0].float().max() - small[..., 0].float().min()) / 240
    assert shown.item() == pytest.approx(side / 640, abs=0.01)
    assert small[..., 0].float().mean().item() == pytest.approx(120, abs=1)
    assert cropped_area(large) > 0.98


def test_legacy_validation_always_crops() -> None:
    file = encoded(gradient(640, 480), "PNG")
    found = validation_image(file, 384, "legacy")
    assert cropped_area(found) == pytest.approx(0.75 * (384 / 416) ** 2, abs=0.02)


def test_validation_interpolates_as_pil_does() -> None:
    image = picture(500, 400)
    file = encoded(image, "PNG")
    side = int(224 / 256 * 400)  # also below 224 pixels
    left, top = (500 - side + 1) // 2, (400 - side + 1) // 2
    crop = image.crop((left, top, left + side, top + side))
    for rule, filter in (("official", "BILINEAR"), ("legacy", "BICUBIC")):
        expected = as_tensor(crop.resize((128, 128), Image.Resampling[filter]))
        assert difference(validation_image(file, 128, rule), expected) < 0.5

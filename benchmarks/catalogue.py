"""The networks that benchmarks know by name: where to get each, its image sizes, its accuracy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """library, name: what ``networks.build`` takes. resolution: of evaluation, train_resolution of
    (the last stage of) training, in pixels. top1: published ImageNet accuracy in percent at
    ``resolution``, from the paper's table 7 or, for V2-B0 to B3, timm's results."""

    key: str
    title: str
    library: str
    name: str
    resolution: int
    train_resolution: int
    top1: float | None = None
    peer: bool = False


_ENTRIES = (
    Entry("efficientnetv2_s", "V2-S", "timm", "efficientnetv2_s", 384, 300, 83.9),
    Entry("efficientnetv2_m", "V2-M", "timm", "efficientnetv2_m", 480, 384, 85.1),
    Entry("efficientnetv2_l", "V2-L", "timm", "efficientnetv2_l", 480, 384, 85.7),
    Entry("efficientnetv2_b0", "V2-B0", "timm", "tf_efficientnetv2_b0", 224, 192, 78.4),
    Entry("efficientnetv2_b1", "V2-B1", "timm", "tf_efficientnetv2_b1", 240, 192, 79.5),
    Entry("efficientnetv2_b2", "V2-B2", "timm", "tf_efficientnetv2_b2", 260, 208, 80.2),
    Entry("efficientnetv2_b3", "V2-B3", "timm", "tf_efficientnetv2_b3", 300, 240, 82.0),
    Entry("efficientnet_b4", "V1-B4", "timm", "efficientnet_b4", 380, 380, 82.9),
    Entry("efficientnet_b7", "V1-B7", "timm", "efficientnet_b7", 600, 600, 84.7),
    Entry("regnety_160", "RegNetY-16GF", "timm", "regnety_160", 224, 224, 82.9, peer=True),
    Entry("resnest101e", "ResNeSt-101", "timm", "resnest101e", 256, 256, 83.0, peer=True),
    Entry("vit_b16", "ViT-B/16", "timm", "vit_base_patch16_384", 384, 384, 84.6, peer=True),
    Entry("vit_l16", "ViT-L/16", "timm", "vit_large_patch16_384", 384, 384, 85.3, peer=True),
    Entry("nfnet_f0", "NFNet-F0", "timm", "dm_nfnet_f0", 256, 192, 83.6, peer=True),
)
CATALOGUE = {entry.key: entry for entry in _ENTRIES}
OURS = tuple(entry.key for entry in _ENTRIES if not entry.peer)
PEERS = tuple(entry.key for entry in _ENTRIES if entry.peer)


def find(name: str, library: str | None = None) -> Entry:
    """The entry of that key, or one made up for any other network of ``library`` (timm's unless
    said otherwise), at 224 pixels. ``library`` overrides where a known network comes from."""
    known = CATALOGUE.get(name)
    if known is None:
        return Entry(name, name, library or "timm", name, 224, 224)
    if library in (None, known.library):
        return known
    values = {**vars(known), "library": library, "name": known.key}
    return Entry(**values)

"""Where labelled images come from: folders, tables, tar shards and torchvision's data sets."""

from .source import Source
from .splits import open_splits

__all__ = ["Source", "open_splits"]

"""What every data set of image files shares: its options, and splits that are decoded once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from ldmlab.data.decoded import CACHE_VERSION, open_split
from ldmlab.data.encoded import EncodedSplit
from ldmlab.data.fingerprint import digest
from ldmlab.errors import UserError
from ldmlab.types import DataInfo, ImageSource


@dataclass(kw_only=True, eq=False)
class CachedImageData(ABC):
    """An `ImageData` whose pixels lie decoded below `cache_dir`.

    Attributes:
        image_size: side of the square images, in pixels.
        cache_dir: folder for decoded images; also for what a library converts on the way.
        corrupt: "stop" at an image that cannot be decoded, or "skip" it with a warning.
        limit: use only the first so many images of each split; None uses all.
        flip: whether training may mirror images left to right. Kept for the data module, which does it.
        max_cache_gb: splits that would be larger when decoded, in 10^9 bytes, are decoded on demand instead.

    Raises:
        UserError: an option has a value that makes no sense.
    """

    image_size: int
    cache_dir: str
    corrupt: str = "stop"
    limit: int | None = None
    flip: bool = False
    max_cache_gb: float = 8.0

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UserError(f"data.image_size={self.image_size}: give the side of the images in pixels, 1 or more")
        if self.corrupt not in ("stop", "skip"):
            raise UserError(f"data.corrupt={self.corrupt}: choose stop or skip")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"data.limit={self.limit}: give 1 or more, or null for all images")

    @property
    @abstractmethod
    def info(self) -> DataInfo:
        """Name, classes and fingerprint, found without decoding any image."""

    @abstractmethod
    def encoded_split(self, name: str) -> EncodedSplit:
        """The images of split "train" or "val" before decoding."""

    def split(self, name: str) -> ImageSource:
        """The split "train" or "val"; the first use decodes it, later ones and later runs read the cache.

        Raises:
            UserError: the data cannot be read, or the decoded images do not fit on the disk.
        """
        if name not in ("train", "val"):
            raise ValueError(f'split {name!r}: there are "train" and "val"')
        info = self.info
        return open_split(
            lambda: self.encoded_split(name),
            key=f"{info.fingerprint}-{name}",
            title=f"{info.name} {name}",
            image_size=self.image_size,
            cache_dir=Path(self.cache_dir),
            corrupt=self.corrupt,
            max_cache_gb=self.max_cache_gb,
        )

    def fingerprint_of(self, *content: object) -> str:
        """Digest of `content`, any JSON value that names the files and their use, and of the common preparation."""
        # "skip" and "stop" give different images only where "stop" gives none, so `corrupt` does not count
        return digest([CACHE_VERSION, self.image_size, self.limit, *content])

"""CIFAR-10 and CelebA, downloaded and checked by torchvision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ldmlab.data.cache_folder import disk_full_error
from ldmlab.data.image_data import CachedImageData
from ldmlab.errors import DISK_FULL, UserError
from ldmlab.types import DataInfo

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# one string, because a list of forty would stand one to a line
CELEBA_ATTRIBUTES = (  # noqa: SIM905
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair "
    "Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male "
    "Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks "
    "Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young"
).split()


@dataclass(kw_only=True, eq=False)
class TorchvisionImages(CachedImageData):
    """A data set that torchvision downloads.

    Attributes:
        root: folder that torchvision downloads to, and that it looks in first.
        download: whether it may download; False for nodes without internet.

    The other options are those of `CachedImageData`.
    """

    root: str
    download: bool = True

    def _open(self, build: Callable[..., Any], **options: Any) -> Any:
        with self._readable():
            return build(root=str(Path(self.root).expanduser()), download=self.download, **options)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        # OSError: no network, no permission; RuntimeError: torchvision's word for missing and damaged files
        except (OSError, RuntimeError, ImportError) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise disk_full_error(Path(self.root)) from error
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"data.root={self.root}: torchvision found no {self.info.name} there and could not download it "
                f"({reason}); copy its files there, or set data.root or data.download=true"
            ) from error


@dataclass(kw_only=True, eq=False)
class CIFAR10(TorchvisionImages):
    """CIFAR-10: 50,000 images of 32 x 32 pixels to train on and 10,000 to validate on, 10 classes.

    Learning Multiple Layers of Features from Tiny Images, Krizhevsky 2009.
    """

    @cached_property
    def info(self) -> DataInfo:
        """Known without the files: torchvision accepts them with one checksum only."""
        return DataInfo(
            name="cifar10",
            image_size=self.image_size,
            fingerprint=self.fingerprint_of("torchvision CIFAR10 c58f30108f718f92721af3b95e74349a"),
            class_names=CIFAR10_CLASSES,
        )

    def encoded_split(self, name: str) -> ImagesInMemory:
        """The official training or test images.

        Raises:
            UserError: the files are not there and cannot be downloaded.
        """
        from torchvision import datasets

        data = self._open(datasets.CIFAR10, train=name == "train")
        return ImagesInMemory(
            data.data[: self.limit],
            np.asarray(data.targets, dtype=np.int64)[: self.limit],
            f"cifar10 {name}",
        )


@dataclass(kw_only=True, eq=False)
class CelebA(TorchvisionImages):
    """CelebA, aligned and cropped: 162,770 faces to train on, 178 x 218 pixels, with 40 yes-or-no attributes.

    Deep Learning Face Attributes in the Wild, Liu et al. 2015.

    Attributes:
        attribute: the attribute that is the label (0 without, 1 with it), None for faces without labels.
        val_split: "valid" (19,867 images) or "test" (19,962).
    """

    attribute: str | None = None
    val_split: str = "valid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attribute is not None and self.attribute not in CELEBA_ATTRIBUTES:
            raise UserError(f"data.attribute={self.attribute}: choose null or one of {', '.join(CELEBA_ATTRIBUTES)}")
        if self.val_split not in ("valid", "test"):
            raise UserError(f"data.val_split={self.val_split}: choose valid or test")

    @cached_property
    def info(self) -> DataInfo:
        """Known without the files: torchvision accepts them with one checksum only."""
        classes = () if self.attribute is None else (f"not {self.attribute}", self.attribute)
        return DataInfo(
            name="celeba",
            image_size=self.image_size,
            fingerprint=self.fingerprint_of(
                "torchvision CelebA 00d2c5bc6d35e252742224ab0c1e8fcb", self.attribute, self.val_split
            ),
            class_names=classes,
        )

    def encoded_split(self, name: str) -> ImageFiles:
        """The official training, validation or test images.

        Raises:
            UserError: the files are not there and cannot be downloaded.
        """
        from torchvision import datasets

        data = self._open(datasets.CelebA, split="train" if name == "train" else self.val_split)
        folder = Path(data.root, data.base_folder, "img_align_celeba")
        labels = None
        if self.attribute is not None:
            labels = data.attr[: self.limit, data.attr_names.index(self.attribute)].numpy().astype(np.int64)
        return ImageFiles([folder / file for file in data.filename[: self.limit]], labels)


class ImagesInMemory:
    """An `EncodedSplit` of pixels, uint8 (N, H, W, 3), with labels int64 (N,)."""

    captions = semantic = boxes = None

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, title: str) -> None:
        self._pixels, self.labels, self._title = pixels, labels, title

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Pixels of `rows`, each (H, W, 3)."""
        return [self._pixels[row] for row in rows]

    def describe(self, row: int) -> str:
        """Split and row."""
        return f"{self._title} row {row}"


class ImageFiles:
    """An `EncodedSplit` of image files, with labels int64 (N,) or None."""

    captions = semantic = boxes = None

    def __init__(self, files: list[Path], labels: np.ndarray | None) -> None:
        self._files, self.labels = files, labels

    def __len__(self) -> int:
        return len(self._files)

    def read(self, rows: Sequence[int]) -> list[Path]:
        """Paths of `rows`."""
        return [self._files[row] for row in rows]

    def describe(self, row: int) -> str:
        """The file's path."""
        return str(self._files[row])

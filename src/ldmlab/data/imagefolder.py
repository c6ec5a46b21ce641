"""Folders of image files."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmlab.data.fingerprint import digest_files
from ldmlab.data.huggingface import VAL_NAMES, HuggingFaceImages, no_progress_bars
from ldmlab.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(kw_only=True, eq=False)
class ImageFolder(HuggingFaceImages):
    """Images as files, in one of these layouts.

    | layout | gives |
    |---|---|
    | `DIR/class/*.jpg` | labels; a part is held out for validation |
    | `DIR/train/class/*.jpg` and `DIR/val/class/*.jpg` | labels, both splits |
    | `DIR/metadata.csv` or `.jsonl` with a column `file_name` | the other columns as captions, labels and maps |
    | `DIR/*.jpg` | images alone |

    The last two may also lie in `DIR/train` and `DIR/val`. Hidden files are not read. A column `mask_file_name` (or
    `semantic_file_name` ...) names each image's map, a file in the same folder or below; a `.jsonl` may hold boxes too.

    Attributes:
        path: the folder `DIR`.

    The other options are those of `HuggingFaceImages`.
    """

    path: str

    @property
    def title(self) -> str:
        """Name of the folder."""
        return self._path.name

    @property
    def where(self) -> str:
        """The path."""
        return str(self._path)

    @property
    def _path(self) -> Path:
        return Path(self.path).expanduser().absolute()

    @cached_property
    def _folders(self) -> dict[str, Path]:
        """The folder of each split."""
        path = self._path
        if not path.is_dir():
            raise UserError(f"data.path: no such folder: {path} (give the folder that holds the images)")
        below = {child.name: child for child in sorted(path.iterdir()) if child.is_dir() and child.name[0] not in "._"}
        evaluation = {*VAL_NAMES, self.val_split} & set(below)
        # a folder "train" beside "car" and "plane" is a class
        splits = self.train_split in below and (evaluation or len(below) == 1 or self.train_split != "train")
        if splits and not any((path / name).exists() for name in METADATA_NAMES):
            return below
        return {"train": path}

    @property
    def table_names(self) -> list[str]:
        """Subfolders that are splits, or "train" where there are none."""
        return list(self._folders)

    def content_digest(self) -> str:
        """Digest of the images and metadata of both splits."""
        files = [file for table in self._tables for file in self._list(self._folders[table])]
        return digest_files(files, self._path)

    def _list(self, folder: Path) -> list[Path]:
        files = []
        for parent, folders, names in os.walk(folder, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith((".", "__"))]
            files += [Path(parent, name) for name in names if name in METADATA_NAMES or is_image(name)]
        if not any(is_image(file.name) for file in files):
            raise UserError(f"data.path: no images in {folder} or below; give a folder of .jpg, .png or similar files")
        return files

    @cached_property
    def _datasets(self) -> dict[str, Dataset]:
        # The class, not load_dataset("imagefolder"), which reports every use to the Hub. All splits at once, so that
        # a class that only one of them has gets an id in both.
        from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder as Builder

        folders = [self._folders[table] for table in self._tables]
        # for images directly in DIR/train and DIR/val the builder would take "train" and "val" for classes
        flat = any(file.parent == folder for folder in folders for file in self._list(folder) if is_image(file.name))
        builder = Builder(
            cache_dir=str(Path(self.cache_dir).absolute() / "arrow" / self.content_digest()),
            data_files={f"split{index}": [f"{glob.escape(str(folder))}/**"] for index, folder in enumerate(folders)},
            drop_labels=True if flat else None,
        )
        with no_progress_bars():  # they speak of downloads
            builder.download_and_prepare()
        return {table: builder.as_dataset(f"split{index}") for index, table in enumerate(self._tables)}

    def load_table(self, table: str) -> Dataset:
        """Paths and labels; the files stay where they are."""
        return self._datasets[table]

    def describe_row(self, table: str, row: int, image: Any) -> str:
        """The file's name in the folder."""
        return os.path.relpath(image["path"], self._path)


def is_image(name: str) -> bool:
    """Whether a visible file's extension says that it is an image."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder as Builder

    return os.path.splitext(name)[1].lower() in Builder.EXTENSIONS and not name.startswith(".")

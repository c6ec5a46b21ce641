"""Images in tables of the Hugging Face `datasets` library, whatever the files look like."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldmlab.data.cache_folder import disk_full_error
from ldmlab.data.columns import Columns, choose_columns, class_ids, class_order, label_values
from ldmlab.data.image_data import CachedImageData
from ldmlab.errors import DISK_FULL, UserError
from ldmlab.types import DataInfo

if TYPE_CHECKING:  # its import takes two seconds, which commands that read no images should not pay
    from datasets import Dataset, Features

VAL_NAMES = ("validation", "val", "valid", "dev", "test")
"""Splits that serve for validation, best first."""


@dataclass(kw_only=True, eq=False)
class HuggingFaceImages(CachedImageData):
    """A data set whose splits are tables with a column of images.

    Attributes:
        image_column: column of images; None takes the first.
        label_column: column of class labels (`ClassLabel`, strings or integers); None finds it, "none" has no labels.
        caption_column: column of texts; None looks for caption, text, prompt; "none" has no captions.
        train_split: name of the split to train on.
        val_split: name of the split to validate on; None takes one that exists (validation, val, valid, dev, test),
            and otherwise holds out a part of the training split.
        val_fraction: the part to hold out, in (0, 1).
        seed: decides which images are held out.

    The other options are those of `CachedImageData`.
    """

    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    train_split: str = "train"
    val_split: str | None = None
    val_fraction: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.val_fraction={self.val_fraction}: give a number between 0 and 1, such as 0.05")

    # What a kind of files has to tell. "Table" is the library's split, "split" is ours: "train" or "val".

    @property
    @abstractmethod
    def title(self) -> str:
        """Name of the data set."""

    @property
    @abstractmethod
    def where(self) -> str:
        """Folder or address, for messages."""

    @property
    @abstractmethod
    def table_names(self) -> list[str]:
        """Splits that exist."""

    @abstractmethod
    def content_digest(self) -> str:
        """Digest of all files that are read."""

    @abstractmethod
    def load_table(self, table: str) -> Dataset:
        """The rows of a split, images not decoded."""

    @abstractmethod
    def describe_row(self, table: str, row: int, image: Any) -> str:
        """Where a user finds `row`; `image` is the undecoded content of its image column."""

    def features(self, table: str) -> Features:
        """Types of the columns of a split."""
        return self.load_table(table).features

    def column(self, table: str, name: str) -> list[Any]:
        """One column of a split, other than images."""
        return self.load_table(table).with_format("arrow")[:].column(name).to_pylist()

    @cached_property
    def info(self) -> DataInfo:
        """Name, classes and fingerprint, from types, labels and files' digests alone.

        Raises:
            UserError: files, splits or columns are not what the options say.
        """
        held_out = None if self._val_table else [self.val_fraction, self.seed]
        return DataInfo(
            name=self.title,
            image_size=self.image_size,
            fingerprint=self.fingerprint_of(
                self.content_digest(), asdict(self._columns), self._train_table, self._val_table, held_out
            ),
            class_names=tuple(map(str, self._class_order or ())),
            has_captions=self._columns.caption is not None,
        )

    def encoded_split(self, name: str) -> TableSplit:
        """The images of split "train" or "val" before decoding.

        Raises:
            UserError: the files cannot be read, or too few images to hold some out.
        """
        table = self._val_table if name == "val" and self._val_table else self._train_table
        with self.readable():
            dataset = self.load_table(table)
        if not len(dataset):
            raise UserError(f"no images in split {table!r} of {self.where}; choose another")
        rows = self._rows(name, len(dataset))
        columns = self._columns
        labels = None if columns.label is None else self._label_ids(table)[rows]
        captions = None
        if columns.caption is not None:
            with self.readable():
                texts = self.column(table, columns.caption)
            captions = [texts[row] or "" for row in rows]  # an empty caption says nothing, like no caption

        def describe_row(row: int, image: Any) -> str:
            return self.describe_row(table, row, image)

        return TableSplit(dataset, columns.image, rows, labels, captions, describe_row)

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Turn what `datasets` and pyarrow raise about the data into a `UserError` of one line."""
        import datasets

        data_errors = (datasets.exceptions.DatasetsError, OSError, ValueError, TypeError, KeyError, NotImplementedError)
        try:
            yield
        except data_errors as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # the outer exception only says that generation failed
                cause = cause.__cause__
            if getattr(cause, "errno", None) in DISK_FULL:
                raise disk_full_error(Path(self.cache_dir)) from error
            reason = " ".join(str(cause).split())[:300] or type(cause).__name__
            raise UserError(f"cannot read {self.where}: {reason}") from error

    @cached_property
    def _train_table(self) -> str:
        if self.train_split not in self.table_names:
            raise self._no_split("train_split", self.train_split)
        return self.train_split

    @cached_property
    def _val_table(self) -> str | None:
        if self.val_split is None:
            return next((name for name in VAL_NAMES if name in self.table_names and name != self._train_table), None)
        if self.val_split not in self.table_names:
            raise self._no_split("val_split", self.val_split)
        return self.val_split

    def _no_split(self, option: str, name: str) -> UserError:
        found = ", ".join(self.table_names) or "none"
        return UserError(f"data.{option}: no split {name!r} in {self.where} (found: {found}); name one of these")

    @property
    def _tables(self) -> list[str]:
        return [self._train_table, *([self._val_table] if self._val_table else [])]

    @cached_property
    def _columns(self) -> Columns:
        with self.readable():
            features = {table: self.features(table) for table in self._tables}
        train = self._train_table
        columns = choose_columns(
            features[train],
            image=self.image_column,
            label=self.label_column,
            caption=self.caption_column,
            where=f"split {train!r} of {self.where}",
        )
        for table, present in features.items():
            for role, name in asdict(columns).items():
                if name is not None and name not in present:
                    raise UserError(
                        f"data.{role}_column: column {name!r} of split {train!r} is missing in split {table!r} of "
                        f"{self.where}; choose another column, or another data.val_split"
                    )
        return columns

    @cached_property
    def _class_order(self) -> list[str | int] | None:
        if self._columns.label is None:
            return None
        names = [self._declared_names(table) for table in self._tables]
        if names[0] is not None and all(other == names[0] for other in names):
            return list(names[0])
        # labels of both splits: a class of the validation split alone has an id too, and ids agree
        return class_order(chain.from_iterable(self._label_values(table) for table in self._tables))

    def _declared_names(self, table: str) -> list[str] | None:
        return getattr(self.features(table)[self._columns.label], "names", None)

    def _label_values(self, table: str) -> list[str | int]:
        label = self._columns.label
        assert label is not None
        with self.readable():
            values = self.column(table, label)
        return label_values(values, self._declared_names(table), f"column {label!r} in split {table!r} of {self.where}")

    def _label_ids(self, table: str) -> np.ndarray:
        return class_ids(self._label_values(table), self._class_order or [])

    def _rows(self, split: str, count: int) -> np.ndarray:
        rows = np.arange(count)
        if self._val_table is None:
            held_out = max(1, round(self.val_fraction * count))
            if held_out >= count:
                raise UserError(
                    f"data.val_fraction={self.val_fraction}: {count} images in {self.where} are too few to hold some "
                    "out; add images or name a data.val_split"
                )
            mixed = np.random.default_rng(self.seed).permutation(count)
            rows = np.sort(mixed[:held_out] if split == "val" else mixed[held_out:])
        return rows[: self.limit]


class TableSplit:
    """An `EncodedSplit` of some rows of a `datasets.Dataset`.

    Args:
        dataset: the table.
        image_column: its column of images.
        rows: the rows that take part, int64 (N,).
        labels: classes of these rows, int64 (N,), or None.
        captions: texts of these rows, or None.
        describe_row: says where a row of the table lies, given its number and its undecoded image.
    """

    def __init__(
        self,
        dataset: Dataset,
        image_column: str,
        rows: np.ndarray,
        labels: np.ndarray | None,
        captions: list[str] | None,
        describe_row: Callable[[int, Any], str],
    ) -> None:
        # the format "arrow" gives images as they are stored: bytes, a path, or both
        self._images = dataset.select_columns([image_column]).with_format("arrow")
        self._rows, self._describe_row = rows, describe_row
        self.labels, self.captions = labels, captions

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Sequence[int]) -> list[Any]:
        """The stored images of `rows`."""
        table = self._images[self._rows[np.asarray(rows, dtype=np.int64)].tolist()]
        return table.column(0).to_pylist()

    def describe(self, row: int) -> str:
        """File, or file and row."""
        return self._describe_row(int(self._rows[row]), self.read([row])[0])


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without the progress bars of `datasets`, which are no help with local files."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()

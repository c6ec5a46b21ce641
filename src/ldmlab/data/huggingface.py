"""Images in tables of the Hugging Face `datasets` library, whatever the files look like."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ldmlab.data.boxes import FORMATS, BoxColumns, read_boxes
from ldmlab.data.cache_folder import disk_full_error
from ldmlab.data.columns import (
    Columns,
    choose_columns,
    class_ids,
    class_order,
    field_of,
    items,
    label_values,
    with_fields,
)
from ldmlab.data.fingerprint import digest
from ldmlab.data.image_data import CachedImageData
from ldmlab.data.semantic import LARGEST_ID, SemanticMaps, count_classes
from ldmlab.data.table_split import StoredImages, TableSplit
from ldmlab.errors import DISK_FULL, UserError
from ldmlab.types import DataInfo

if TYPE_CHECKING:  # its import takes two seconds, which commands that read no images should not pay
    from datasets import Dataset, Features

VAL_NAMES = ("validation", "val", "valid", "dev", "test")
"""Splits that serve for validation, best first."""

MAPS_AND_BOXES_VERSION = 1
"""Part of the fingerprints of data with maps or boxes; raise it when the same files give others."""


@dataclass(kw_only=True, eq=False)
class HuggingFaceImages(CachedImageData):
    """A data set whose splits are tables with a column of images.

    Attributes:
        image_column: column of images; None takes the first.
        label_column: column of class labels (`ClassLabel`, strings or integers); None finds it, "none" has no labels.
        caption_column: column of texts; None looks for caption, text, prompt; "none" has no captions.
        semantic_column: column of semantic maps, images whose pixel values are class ids; None looks for semantic,
            mask, segmentation, semantic_map, annotation; "none" has no maps.
        semantic_classes: names of the maps' classes in the order of their ids, or how many there are; None takes as
            many as the largest id asks for, which is looked for in all maps once.
        boxes_column: column of lists of boxes; None looks for boxes, bboxes, bbox; "none" has no boxes.
        box_labels_column: column of lists of their labels, strings or integers, -1 for no box; None looks for
            box_labels, box_classes, bbox_labels, bbox_classes; "none" gives all boxes one class.
        boxes_format: xyxy_relative (corners in [0, 1]), xyxy_pixels or xywh_pixels, over the image as shown.
        max_boxes: most boxes of one image, the largest; there are no more places than the fullest image needs.
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
    semantic_column: str | None = None
    semantic_classes: Sequence[str] | int | None = None
    boxes_column: str | None = None
    box_labels_column: str | None = None
    boxes_format: str = "xyxy_relative"
    max_boxes: int = 32
    train_split: str = "train"
    val_split: str | None = None
    val_fraction: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.val_fraction={self.val_fraction}: give a number between 0 and 1, such as 0.05")
        if self.boxes_format not in FORMATS:
            raise UserError(f"data.boxes_format={self.boxes_format}: choose {', '.join(FORMATS)}")
        if self.max_boxes < 1:
            raise UserError(f"data.max_boxes={self.max_boxes}: give 1 or more, or data.boxes_column=none for no boxes")
        if self.semantic_classes is not None:
            self._check_semantic_classes(self.semantic_classes)

    def _check_semantic_classes(self, classes: Sequence[str] | int) -> None:
        if isinstance(classes, str | int):
            fits = isinstance(classes, int) and not isinstance(classes, bool) and 1 <= classes <= LARGEST_ID + 1
        else:
            fits = 1 <= len(classes) == len(set(classes))
        if not fits:
            raise UserError(
                f"data.semantic_classes={classes}: give a list of different names, a number of classes, or null"
            )

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

    def column_parts(self, table: str, name: str) -> list[pa.Array]:
        """One column of a split, other than images, in parts that follow one another."""
        return self.load_table(table).with_format("arrow")[:].column(name).chunks

    def column(self, table: str, name: str) -> list[Any]:
        """One column of a split, other than images."""
        return [value for part in self.column_parts(table, name) for value in part.to_pylist()]

    @cached_property
    def info(self) -> DataInfo:
        """Name, classes and fingerprint, from types, labels, boxes and files' digests alone.

        Where there are maps and `semantic_classes` does not say of how many classes, the first use looks at the maps.

        Raises:
            UserError: files, splits or columns are not what the options say.
        """
        columns = self._columns
        maps_and_boxes: dict[str, Any] = {}
        if columns.semantic is not None:
            maps_and_boxes["semantic"] = [columns.semantic, len(self._semantic_classes)]
        if self._boxes is not None:
            maps_and_boxes["boxes"] = [columns.boxes, columns.box_labels, self.boxes_format, self._boxes.places]
        return DataInfo(
            name=self.title,
            image_size=self.image_size,
            fingerprint=self.fingerprint_of(
                self.content_digest(),
                {"image": columns.image, "label": columns.label, "caption": columns.caption},
                self._train_table,
                self._val_table,
                self._held_out,
                # only where there are any, so that the fingerprints of other data stay what they are
                *([[MAPS_AND_BOXES_VERSION, maps_and_boxes]] if maps_and_boxes else []),
            ),
            class_names=tuple(map(str, self._class_order or ())),
            semantic_classes=self._semantic_classes,
            box_classes=() if self._boxes is None else tuple(map(str, self._boxes.class_order)),
            has_captions=columns.caption is not None,
        )

    def encoded_split(self, name: str) -> TableSplit:
        """The images of split "train" or "val" before decoding.

        Raises:
            UserError: the files cannot be read, or too few images to hold some out.
        """
        table = self._table_of(name)
        dataset = self._dataset_of(table)
        rows = self._rows(name, len(dataset))
        columns = self._columns
        labels = None if columns.label is None else self._label_ids(table)[rows]
        captions = None
        if columns.caption is not None:
            with self.readable():
                texts = self.column(table, columns.caption)
            captions = [texts[row] or "" for row in rows]  # an empty caption says nothing, like no caption
        semantic = None
        if columns.semantic is not None:
            semantic = SemanticMaps(StoredImages(dataset, columns.semantic, rows), len(self._semantic_classes))
        boxes = None if self._boxes is None else self._boxes.of_table(table).of_rows(rows)

        def describe_row(row: int, image: Any) -> str:
            return self.describe_row(table, row, image)

        return TableSplit(StoredImages(dataset, columns.image, rows), labels, captions, semantic, boxes, describe_row)

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

    def _table_of(self, split: str) -> str:
        return self._val_table if split == "val" and self._val_table else self._train_table

    def _dataset_of(self, table: str) -> Dataset:
        with self.readable():
            dataset = self.load_table(table)
        if not len(dataset):
            raise UserError(f"no images in split {table!r} of {self.where}; choose another")
        return dataset

    @property
    def _held_out(self) -> list[float] | None:
        return None if self._val_table else [self.val_fraction, self.seed]

    @property
    def _tables(self) -> list[str]:
        return [self._train_table, *([self._val_table] if self._val_table else [])]

    @cached_property
    def _columns(self) -> Columns:
        with self.readable():
            features = {table: with_fields(self.features(table)) for table in self._tables}
        train = self._train_table
        columns = choose_columns(
            features[train],
            image=self.image_column,
            label=self.label_column,
            caption=self.caption_column,
            semantic=self.semantic_column,
            boxes=self.boxes_column,
            box_labels=self.box_labels_column,
            where=f"split {train!r} of {self.where}",
        )
        for table, present in features.items():
            for role, name in asdict(columns).items():
                if name is not None and name not in present:
                    raise UserError(
                        f"data.{role}_column: column {name!r} of split {train!r} is missing in split {table!r} of "
                        f"{self.where}; choose another column, none, or another data.val_split"
                    )
        if columns.semantic is None and self.semantic_column is None and self.semantic_classes is not None:
            raise UserError(f"data.semantic_classes: {self.where} has no column of maps; name it: data.semantic_column")
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

    @cached_property
    def _semantic_classes(self) -> tuple[str, ...]:
        """Names of the maps' classes."""
        if self._columns.semantic is None:
            return ()
        classes = self._count_semantic_classes() if self.semantic_classes is None else self.semantic_classes
        return tuple(map(str, range(classes) if isinstance(classes, int) else classes))

    def _count_semantic_classes(self) -> int:
        column = self._columns.semantic
        assert column is not None

        def maps(split: str) -> StoredImages:
            dataset = self._dataset_of(self._table_of(split))
            return StoredImages(dataset, column, self._rows(split, len(dataset)))

        use = [self._train_table, self._val_table, self._held_out, self.limit]
        return count_classes(
            # the maps of both splits, so that they agree
            lambda: [maps("train"), maps("val")],
            # without the image size, on which ids do not depend
            folder=Path(self.cache_dir, "semantic", digest([self.content_digest(), column, use])),
            where=f"column {column!r} of {self.where}",
        )

    @cached_property
    def _boxes(self) -> BoxColumns | None:
        boxes, labels = self._columns.boxes, self._columns.box_labels
        if boxes is None:
            return None
        tables, names = {}, []
        for table in self._tables:
            with self.readable():
                features = with_fields(self.features(table))
                parts = self._parts(table, boxes)
                label_parts = None if labels is None else self._parts(table, labels)
            names.append(None if labels is None else getattr(items(features[labels]), "names", None))
            where = f"split {table!r} of {self.where}"
            tables[table] = read_boxes(parts, label_parts, names[-1], box_format=self.boxes_format, where=where)
        declared = names[0] if all(other == names[0] for other in names) else None
        return BoxColumns(tables, declared, self.boxes_format, self.max_boxes)

    def _parts(self, table: str, name: str) -> list[pa.Array]:
        """The parts of a column, or of a field of one."""
        column, _, field = name.partition(".")
        if not field or name in self.features(table):
            return self.column_parts(table, name)
        return [field_of(part, field) for part in self.column_parts(table, column)]

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

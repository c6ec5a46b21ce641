"""Which column of a table is the image, the label, the caption, the map, the boxes; and class ids from labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ldmlab.errors import UserError

LABEL_NAMES = ("label", "labels", "class", "category", "target", "fine_label")
CAPTION_NAMES = ("caption", "text", "prompt")
SEMANTIC_NAMES = ("semantic", "mask", "segmentation", "semantic_map", "annotation")
BOXES_NAMES = ("boxes", "bboxes", "bbox", "objects.bbox")
BOX_LABELS_NAMES = ("box_labels", "box_classes", "bbox_labels", "bbox_classes", "objects.category")
IMAGE_NAMES = ("image", "img", "picture", "photo")
LEFT_OUT = "none"
"""Value of an option that says: use no such column, even where there is one (null means: find it)."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns in use."""

    image: str
    label: str | None
    caption: str | None
    semantic: str | None = None
    boxes: str | None = None
    box_labels: str | None = None

    @property
    def names(self) -> list[str]:
        """Those that there are, each once; without the boxes', which are read apart from the rows."""
        wanted = (self.image, self.label, self.caption, self.semantic)
        return list(dict.fromkeys(name for name in wanted if name is not None))


def choose_columns(
    features: Mapping[str, Any],
    *,
    image: str | None,
    label: str | None,
    caption: str | None,
    semantic: str | None,
    boxes: str | None,
    box_labels: str | None,
    where: str,
) -> Columns:
    """Columns by the user's choice or, for None, by their types and names.

    Args:
        features: the `datasets.Features` of the table.
        image: a column's name or None; the others may also be "none".
        where: what messages call the table.

    Raises:
        UserError: a named column does not exist or has the wrong type, or there is no image column.
    """
    wanted = {
        "image_column": image,
        "label_column": label,
        "caption_column": caption,
        "semantic_column": semantic,
        "boxes_column": boxes,
        "box_labels_column": box_labels,
    }
    for option, name in wanted.items():
        optional = option != "image_column"
        if name is not None and not (optional and name == LEFT_OUT) and name not in features:
            raise UserError(f"data.{option}: no column {name!r} in {where} (columns: {', '.join(features)})")
    if caption not in (None, LEFT_OUT) and not _is_text(features[caption]):
        raise UserError(f"data.caption_column: column {caption!r} of {where} is not text; give a column of strings")
    if label not in (None, LEFT_OUT) and not _is_label(features[label]):
        raise UserError(
            f"data.label_column: column {label!r} of {where} holds no class labels; give strings or integers"
        )
    for option, name in (("image_column", image), ("semantic_column", semantic)):
        if name not in (None, LEFT_OUT) and not _is_image(features[name]):
            raise UserError(
                f"data.{option}: column {name!r} of {where} holds no images; images are: {_images(features)}"
            )
    if boxes not in (None, LEFT_OUT) and not _is_boxes(features[boxes]):
        raise UserError(
            f"data.boxes_column: column {boxes!r} of {where} holds no boxes; give a column of lists of four numbers "
            "each, or none"
        )
    if box_labels not in (None, LEFT_OUT) and not _is_box_labels(features[box_labels]):
        raise UserError(
            f"data.box_labels_column: column {box_labels!r} of {where} holds no labels of boxes; give a column of "
            "lists of strings or integers, or none"
        )

    def find(name: str | None, names: Iterable[str], fits: Callable[[Any], bool]) -> str | None:
        """The column by choice or, for None, by one of its usual names."""
        if name is None:
            return next((name for name in names if name in features and fits(features[name])), None)
        return None if name == LEFT_OUT else name

    image = image or _find_image(features, where, semantic)
    if semantic == image:
        raise UserError(f"data.semantic_column: column {image!r} of {where} is the image already; choose another")
    boxes_found = find(boxes, BOXES_NAMES, _is_boxes)
    if boxes_found is None and box_labels not in (None, LEFT_OUT):
        raise UserError(
            f"data.box_labels_column={box_labels}: {where} has no boxes that it could name; set data.boxes_column"
        )
    return Columns(
        image=image,
        label=_find_label(features) if label is None else (None if label == LEFT_OUT else label),
        caption=find(caption, CAPTION_NAMES, _is_text),
        semantic=find(semantic, (name for name in SEMANTIC_NAMES if name != image), _is_image),
        boxes=boxes_found,
        box_labels=None if boxes_found is None else find(box_labels, BOX_LABELS_NAMES, _is_box_labels),
    )


def _find_image(features: Mapping[str, Any], where: str, semantic: str | None) -> str:
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image) and name != semantic]
    # a map before its image is no reason to take it for one
    for name in sorted(images, key=lambda name: name in SEMANTIC_NAMES):
        return name
    # files written without `datasets` carry no type for images: a struct with bytes, or bytes under a telling name
    for name in IMAGE_NAMES:
        if name in features and _is_image(features[name]):
            return name
    raise UserError(f"data.image_column: no column of images in {where} (columns: {', '.join(features)}); name it")


def _find_label(features: Mapping[str, Any]) -> str | None:
    import datasets

    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    for name in LABEL_NAMES:
        if name in classes:
            return name
    if len(classes) == 1:
        return classes[0]
    return next((name for name in LABEL_NAMES[:2] if name in features and _is_label(features[name])), None)


def _images(features: Mapping[str, Any]) -> str:
    return ", ".join(name for name, feature in features.items() if _is_image(feature)) or "none"


def _is_image(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _is_label(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return True
    # floats too: pandas turns a column of integers with gaps into floats, and the gap deserves its own message
    dtype = feature.dtype if isinstance(feature, datasets.Value) else ""
    return _is_text(feature) or dtype == "bool" or dtype.startswith(("int", "uint", "float"))


def _is_boxes(feature: Any) -> bool:
    import datasets

    number = items(items(feature))
    return isinstance(number, datasets.Value) and number.dtype.startswith(("int", "uint", "float"))


def _is_box_labels(feature: Any) -> bool:
    import datasets

    label = items(feature)
    if isinstance(label, datasets.ClassLabel):
        return True
    return _is_text(label) or (isinstance(label, datasets.Value) and label.dtype.startswith(("int", "uint")))


def items(feature: Any) -> Any:
    """The type of what a column's lists hold, None for a column of anything else."""
    # `List`, `LargeList` and the older `Sequence` call it so; a list of one type is the oldest way to write it
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)


def with_fields(features: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with the fields of records and of lists of records as columns of their own, `objects.bbox`."""
    import datasets

    found = dict(features)
    for name, feature in features.items():
        record = items(feature) or feature
        if isinstance(record, dict) and not _is_image(record):
            several = record is not feature
            found |= {f"{name}.{key}": datasets.Sequence(part) if several else part for key, part in record.items()}
    return found


def field_of(part: pa.Array, field: str) -> pa.Array:
    """A field of the records, or of the lists of records, in a part of a column."""
    if pa.types.is_struct(part.type):
        return pc.struct_field(part, field)
    return pa.ListArray.from_arrays(part.offsets.cast(pa.int32()), pc.struct_field(part.values, field))


def label_values(values: Sequence[Any], names: Sequence[str] | None, where: str) -> list[str | int]:
    """Labels as strings (through `names`, the names of a `ClassLabel`, if given) or integers.

    Raises:
        UserError: a row without label (None, not-a-number, or the -1 of hidden labels), or a fraction.
    """
    remedy = "choose another column or split, or set data.label_column=none"
    missing = sum(value is None or value != value or (names is not None and value < 0) for value in values)
    if missing:
        raise UserError(f"data.label_column: {missing} of {len(values)} rows of {where} have no label; {remedy}")
    if names is not None:
        return [names[value] for value in values]
    fraction = next((value for value in values if isinstance(value, float) and not value.is_integer()), None)
    if fraction is not None:
        raise UserError(f"data.label_column: {where} holds {fraction}, which is no class; {remedy}")
    return [value if isinstance(value, str) else int(value) for value in values]


def class_order(values: Iterable[str | int]) -> list[str | int]:
    """The different labels in the order of their ids: numbers by size, anything else by name."""
    different = set(values)
    return sorted(different, key=str) if any(isinstance(value, str) for value in different) else sorted(different)


def class_ids(values: Sequence[str | int], order: Sequence[str | int]) -> np.ndarray:
    """Ids of `values`, int64 (N,): their places in `order`."""
    ids = {value: index for index, value in enumerate(order)}
    return np.fromiter((ids[value] for value in values), dtype=np.int64, count=len(values))

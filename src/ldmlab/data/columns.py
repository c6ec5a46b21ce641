"""Which column of a table is the image, the label, the caption; and class ids from whatever the labels are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldmlab.errors import UserError

LABEL_NAMES = ("label", "labels", "class", "category", "target", "fine_label")
CAPTION_NAMES = ("caption", "text", "prompt")
IMAGE_NAMES = ("image", "img", "picture", "photo")
LEFT_OUT = "none"
"""Value of an option that says: use no such column, even where there is one (null means: find it)."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns in use."""

    image: str
    label: str | None
    caption: str | None

    @property
    def names(self) -> list[str]:
        """Those that there are, each once."""
        return list(dict.fromkeys(name for name in (self.image, self.label, self.caption) if name is not None))


def choose_columns(
    features: Mapping[str, Any], *, image: str | None, label: str | None, caption: str | None, where: str
) -> Columns:
    """Columns by the user's choice or, for None, by their types and names.

    Args:
        features: the `datasets.Features` of the table.
        image: a column's name or None; `label` and `caption` may also be "none".
        where: what messages call the table.

    Raises:
        UserError: a named column does not exist or has the wrong type, or there is no image column.
    """
    wanted = {"image_column": image, "label_column": label, "caption_column": caption}
    for option, name in wanted.items():
        if name is not None and name != LEFT_OUT and name not in features:
            raise UserError(f"data.{option}: no column {name!r} in {where} (columns: {', '.join(features)})")
    if caption not in (None, LEFT_OUT) and not _is_text(features[caption]):
        raise UserError(f"data.caption_column: column {caption!r} of {where} is not text; give a column of strings")
    if label not in (None, LEFT_OUT) and not _is_label(features[label]):
        raise UserError(
            f"data.label_column: column {label!r} of {where} holds no class labels; give strings or integers"
        )
    if image is not None and not _is_image(features[image]):
        raise UserError(
            f"data.image_column: column {image!r} of {where} holds no images; images are: {_images(features)}"
        )
    return Columns(
        image=image or _find_image(features, where),
        label=_find_label(features) if label is None else (None if label == LEFT_OUT else label),
        caption=_find_caption(features) if caption is None else (None if caption == LEFT_OUT else caption),
    )


def _find_image(features: Mapping[str, Any], where: str) -> str:
    import datasets

    for name, feature in features.items():
        if isinstance(feature, datasets.Image):
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


def _find_caption(features: Mapping[str, Any]) -> str | None:
    return next((name for name in CAPTION_NAMES if name in features and _is_text(features[name])), None)


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

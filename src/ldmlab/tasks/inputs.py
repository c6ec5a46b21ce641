"""Words, numbers and files that a user tells a model, each read and checked by itself; what is wrong takes one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from ldmlab.data.decoded import to_unit_range
from ldmlab.data.transforms import to_rgb
from ldmlab.errors import UserError


def parse_labels(asked: Any, class_names: tuple[str, ...], n: int) -> list[int]:
    """n class numbers from a name, a number, a list of either, or None for all in turn."""
    if asked is None:
        return [i % len(class_names) for i in range(n)]
    labels = [class_number(label, class_names, "label") for label in (asked if isinstance(asked, list) else [asked])]
    return [labels[i % len(labels)] for i in range(n)]


def parse_captions(asked: Any) -> list[str]:
    """Captions from a text, a list of texts, or a text file with one in each line."""
    if isinstance(asked, list):
        captions = [str(caption) for caption in asked]
        if not captions:
            raise UserError("caption: the list is empty")
        return captions
    text = str(asked)
    if not text.endswith(".txt"):
        return [text]
    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"caption: cannot read {text} ({reason_of(error)}); a file has one caption a line") from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise UserError(f"caption: {text} is empty; a file has one caption a line")
    return captions


def class_number(label: Any, class_names: tuple[str, ...], option: str) -> int:
    """The number of a class that is said by name or by number."""
    if str(label) in class_names:
        return class_names.index(str(label))
    if str(label).isdigit() and int(label) < len(class_names):
        return int(label)
    some = ", ".join(class_names[:12]) + (", ..." if len(class_names) > 12 else "")
    raise UserError(f"{option}: there is no class '{label}'; classes are 0 to {len(class_names) - 1}: {some}")


def read_layout(path: Path, classes: tuple[str, ...]) -> list[tuple[int, list[float]]]:
    """Class numbers and boxes of a file `[{"label": NAME, "box": [x0, y0, x1, y1]}, ...]`, 0 to 1 from the top left.

    A label may be a class number too.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"boxes: cannot read {path} ({reason_of(error)})") from error
    form = 'a list of {"label": NAME, "box": [x0, y0, x1, y1]} is needed'
    if not isinstance(entries, list) or not entries:
        raise UserError(f"boxes: {path}: {form}")
    layout = []
    for entry in entries:
        if not isinstance(entry, dict) or not {"label", "box"} <= entry.keys():
            raise UserError(f"boxes: {path}: {form}, not {json.dumps(entry)}")
        label, box = entry["label"], entry["box"]
        number = class_number(label, classes, f"boxes: {path}")
        numbers = isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in box)
        if not numbers or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise UserError(
                f"boxes: {path}: {json.dumps(box)} is no box within the image: x0 < x1 and y0 < y1, from 0 to 1"
            )
        layout.append((number, [float(x) for x in box]))
    return layout


def open_picture(path: Path, option: str) -> Image.Image:
    """A picture file, read."""
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{option}: cannot read {path} ({reason_of(error)})") from error
    return picture


def read_image(path: Path, option: str) -> Tensor:
    """A picture as float (3, H, W) in [-1, 1]."""
    try:
        pixels = np.array(to_rgb(open_picture(path, option)))
    except ValueError as error:
        raise UserError(f"{option}: cannot read {path} ({reason_of(error)})") from error
    return to_unit_range(pixels.transpose(2, 0, 1).copy())


def read_map(path: Path, classes: tuple[str, ...], size: tuple[int, int]) -> Tensor:
    """Class numbers int64 (H, W) of a PNG with a palette or in grey."""
    picture = open_picture(path, "semantic")
    if picture.mode not in ("P", "L", "1", "I", "I;16"):
        raise UserError(
            f"semantic: {path} is a picture of mode {picture.mode}; a map holds class numbers, grey or with a palette"
        )
    numbers = torch.from_numpy(np.array(picture).astype(np.int64))
    check_size(path, "semantic", numbers.shape, size)
    wrong = numbers[(numbers < 0) | (numbers >= len(classes))]
    if len(wrong):
        raise UserError(f"semantic: {path} has class {wrong[0]}; the model knows 0 to {len(classes) - 1}")
    return numbers


def read_mask(path: Path, size: tuple[int, int]) -> Tensor:
    """Where there is something to paint, bool (1, H, W): where a picture is bright."""
    mask = torch.from_numpy(np.array(open_picture(path, "mask").convert("L")) > 127)
    check_size(path, "mask", mask.shape, size)
    if not mask.any():
        raise UserError(f"mask: {path} is black all over, so there is nothing to paint; paint white what is to change")
    return mask[None]


def check_size(path: Path, option: str, found: Sequence[int], wanted: tuple[int, int]) -> None:
    """Raises UserError for a picture of another size than the model draws."""
    if tuple(found) != wanted:
        raise UserError(
            f"{option}: {path} has {found[1]} x {found[0]} pixels, the model draws {wanted[1]} x {wanted[0]}; "
            f"resize it, or ask for another size=[HEIGHT,WIDTH]"
        )


def coloured(numbers: Tensor, classes: int) -> Tensor:
    """A semantic map (H, W) to look at: float (3, H, W) in [-1, 1], a colour for each class."""
    from matplotlib import colormaps

    palette = torch.tensor([colormaps["tab20"](i % 20)[:3] for i in range(classes)])
    return palette[numbers].permute(2, 0, 1) * 2 - 1


def drawn_boxes(layout: list[tuple[int, list[float]]], classes: tuple[str, ...], size: tuple[int, int]) -> Tensor:
    """A layout to look at: float (3, H, W) in [-1, 1], the outlines of its boxes on white, a colour for each class."""
    colours = (coloured(torch.arange(len(classes))[None], len(classes))[:, 0].T + 1) * 127.5
    corners = torch.tensor([box for _, box in layout]) * torch.tensor([size[1] - 1, size[0] - 1] * 2)
    outlines = [tuple(colours[label].round().int().tolist()) for label, _ in layout]
    paper = torch.full((3, *size), 255, dtype=torch.uint8)
    return draw_bounding_boxes(paper, corners.round(), colors=outlines).float() / 127.5 - 1


def reason_of(error: Exception) -> str:
    """Why a file could not be read, in a line."""
    return getattr(error, "strerror", None) or str(error).splitlines()[0] or type(error).__name__

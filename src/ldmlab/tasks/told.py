"""What a user tells a trained model on the command line, read and checked: a batch of conditions for n images."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from ldmlab.conditioners.base import Conditioner, Conditioners
from ldmlab.conditioners.inpainting import InPainting
from ldmlab.conditioners.super_resolution import SuperResolution
from ldmlab.data.decoded import to_unit_range
from ldmlab.data.transforms import to_rgb
from ldmlab.errors import UserError
from ldmlab.settings import is_number
from ldmlab.tasks.console import say
from ldmlab.types import Batch, DataInfo

Config = dict[str, Any]

ASKED = ("label", "caption", "semantic", "boxes", "image", "mask", "low_resolution")
"""Settings of `ldmlab sample` by which a model is told something."""


@dataclass
class Told:
    """What n images are told.

    Attributes:
        conditions: the batch for the model.
        says: for each image what it is told, for its metadata.
        inputs: pictures that were given, by name, to be kept beside the images: float (B, 3, H, W) in [-1, 1].
        size: height and width of the images that the model draws.
        crop: height and width that are kept of them.
        image, mask: where the model is no in-painting model: the image that sampling begins with, and where it paints.
    """

    conditions: Batch
    says: list[Config]
    inputs: dict[str, Tensor]
    size: tuple[int, int]
    crop: tuple[int, int]
    image: Tensor | None = None
    mask: Tensor | None = None


@dataclass
class Reader:
    """Reads what `ldmlab sample` was told for a model with such conditioners, trained on such data.

    `multiple`: images have sides that are divisible by it.
    """

    config: Config
    conditioner: Conditioners
    info: DataInfo
    multiple: int
    n: int
    conditions: Batch = field(default_factory=dict)
    says: list[Config] = field(default_factory=list)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    size: tuple[int, int] = (0, 0)
    crop: tuple[int, int] = (0, 0)

    def read(self) -> Told:
        """Everything that is told.

        Raises:
            UserError: something cannot be read, does not fit the model, or is missing.
        """
        self.says = [{} for _ in range(self.n)]
        parts = self.conditioner.named_parts
        self.crop = self.size = self.asked_size()
        for part in parts.values():
            if isinstance(part, SuperResolution):
                self.small_image(part)  # first, as the size of everything else follows from it
        untold = [name for name, part in parts.items() if not self.tell(part, alone=len(parts) == 1)]
        for name in untold:
            entry = parts[name].told[0]
            if len(parts) == 1:
                empty = "; caption='' leaves it to the model" if entry == "caption" else ""
                raise UserError(f"{entry}: the model wants to be told, {entry}=...{empty}")
            nothing = parts[name].nothing(self.n, self.size)
            assert nothing is not None
            self.conditions |= nothing
            say(f"{entry}: not told, so the model decides")
        for name, part in parts.items():
            if getattr(part, "position", None) is not None and self.size != (self.info.image_size,) * 2:
                raise UserError(f"size: {name} is attended to in the size of training, {self.info.image_size}")
        image = mask = None
        if self.asked("strength") is not None or (self.asked("mask") is not None and "mask" not in self.used):
            image, mask = self.begin()
        for name in ASKED:
            if self.config[name] is not None and name not in self.used:
                told = f"is told {', '.join(parts)}" if parts else "is told nothing"
                raise UserError(f"{name}: this model {told}; leave it out")
        return Told(self.conditions, self.says, self.inputs, self.size, self.crop, image, mask)

    def tell(self, part: Conditioner, alone: bool) -> bool:
        """Tells one conditioner; False if there is nothing to tell it."""
        if isinstance(part, SuperResolution):
            return True
        if isinstance(part, InPainting) and (alone or self.asked("mask") is not None):
            self.hole()
        elif "label" in part.told and (alone or self.asked("label") is not None):
            self.labels()
        elif "caption" in part.told and self.asked("caption") is not None:
            self.captions()
        elif "semantic" in part.told and self.asked("semantic") is not None:
            self.semantic()
        elif "boxes" in part.told and self.asked("boxes") is not None:
            self.boxes()
        else:
            return False
        return True

    def asked(self, name: str) -> Any:
        """The value of a setting, None if it is not set."""
        return self.config[name]

    def cycle(self, values: Sequence[Any]) -> list[Any]:
        """n values, the given ones in turn."""
        return [values[i % len(values)] for i in range(self.n)]

    def note(self, name: str, values: Sequence[Any]) -> None:
        """Writes down what each image is told."""
        self.used.add(name)
        for says, value in zip(self.says, values, strict=True):
            says[name] = value

    def asked_size(self) -> tuple[int, int]:
        """Height and width of the images: those of training unless others are asked for."""
        asked = self.config["size"]
        if asked is None:
            return self.info.image_size, self.info.image_size
        sides = [asked, asked] if isinstance(asked, int) else asked
        fits = isinstance(sides, list) and len(sides) == 2 and all(isinstance(side, int) for side in sides)
        if not fits or any(side < 1 or side % self.multiple for side in sides):
            raise UserError(f"size: a height and width divisible by {self.multiple} are needed, [64,96], not {asked}")
        return sides[0], sides[1]

    def labels(self) -> None:
        """Class numbers."""
        labels = parse_labels(self.asked("label"), self.info.class_names, self.n)
        self.conditions["label"] = torch.tensor(labels)
        self.note("label", [self.info.class_names[label] for label in labels])

    def captions(self) -> None:
        """Texts, given or in a file."""
        captions = self.cycle(parse_captions(self.asked("caption")))
        self.conditions["caption"] = captions
        self.note("caption", captions)

    def boxes(self) -> None:
        """Labelled boxes from JSON files."""
        paths = self.paths("boxes")
        layouts = self.cycle([read_layout(path, self.info.box_classes) for path in paths])
        most = max(1, *(len(layout) for layout in layouts))
        boxes, labels = torch.zeros(self.n, most, 4), torch.full((self.n, most), -1)
        for row, layout in enumerate(layouts):
            for place, (label, box) in enumerate(layout):
                labels[row, place], boxes[row, place] = label, torch.tensor(box)
        self.conditions |= {"boxes": boxes, "box_labels": labels}
        told = [[{"label": self.info.box_classes[label], "box": box} for label, box in layout] for layout in layouts]
        self.note("boxes", told)
        self.inputs["boxes"] = torch.stack(
            [drawn_boxes(layout, self.info.box_classes, self.crop) for layout in layouts]
        )

    def semantic(self) -> None:
        """Class numbers of every pixel, from PNGs."""
        paths = self.paths("semantic")
        classes = self.info.semantic_classes
        maps = [read_map(path, classes, self.crop) for path in paths]
        self.conditions["semantic"] = self.padded(torch.stack(self.cycle(maps)))
        self.note("semantic", self.cycle([str(path) for path in paths]))
        self.inputs["semantic"] = torch.stack(self.cycle([coloured(numbers, len(classes)) for numbers in maps]))

    def small_image(self, part: SuperResolution) -> None:
        """The small image, and the sizes that follow from it: of what the model draws, and of what is kept of that."""
        taken = any(isinstance(other, InPainting) for other in self.conditioner.named_parts.values())
        taken |= self.asked("strength") is not None or self.asked("mask") is not None
        key = "low_resolution" if taken or self.asked("low_resolution") is not None else "image"
        if self.asked(key) is None:
            raise UserError(f"{key}: super-resolution needs the small image, {key}=small.png")
        if self.config["size"] is not None:
            raise UserError("size: that of super-resolution follows from the small image; leave it out")
        paths = self.paths(key)
        pictures = [read_image(path, key) for path in paths]
        if len({picture.shape for picture in pictures}) > 1:
            raise UserError(f"{key}: small images of one size are needed; start the command once for each size")
        small = torch.stack(self.cycle(pictures))
        self.crop = (small.shape[2] * part.factor, small.shape[3] * part.factor)
        multiple = math.lcm(self.multiple, part.factor)
        self.size = (-(-self.crop[0] // multiple) * multiple, -(-self.crop[1] // multiple) * multiple)
        self.conditions["low_resolution"] = self.padded(small, part.factor)
        self.note(key, self.cycle([str(path) for path in paths]))
        self.inputs["low_resolution"] = small

    def padded(self, pictures: Tensor, factor: int = 1) -> Tensor:
        """Pictures (n, ..., H, W) with their border repeated up to a size that the network takes; it is cut off again.

        `factor`: they are so many times smaller than what is drawn.
        """
        rows, columns = (torch.arange(side // factor) for side in self.size)
        height, width = pictures.shape[-2:]
        return pictures[..., rows.clamp(max=height - 1)[:, None], columns.clamp(max=width - 1)]

    def hole(self) -> None:
        """The image and the mask of an in-painting model."""
        images, masks = self.image_and_mask()
        self.conditions |= {"mask": masks, "masked_image": images.masked_fill(masks, 0.0)}

    def begin(self) -> tuple[Tensor, Tensor | None]:
        """The image that sampling begins with, and the mask of what it may change."""
        strength = self.config["strength"]
        if strength is not None and not (is_number(strength) and 0 < strength <= 1):
            raise UserError(f"strength: a number above 0, 1 at most, is needed, not {strength}")
        if self.asked("mask") is not None:
            return self.image_and_mask()
        return self.whole_image("strength: changing an image needs it"), None

    def whole_image(self, why: str) -> Tensor:
        """The image that was told, (n, 3, H, W)."""
        if self.asked("image") is None:
            raise UserError(f"{why}, image=photo.png")
        paths = self.paths("image")
        pictures = [read_image(path, "image") for path in paths]
        for path, picture in zip(paths, pictures, strict=True):
            check_size(path, "image", picture.shape[1:], self.crop)
        self.note("image", self.cycle([str(path) for path in paths]))
        self.inputs["image"] = torch.stack(self.cycle(pictures))
        return self.padded(self.inputs["image"])

    def image_and_mask(self) -> tuple[Tensor, Tensor]:
        """The image that was told, (n, 3, H, W), and where there is something to paint, bool (n, 1, H, W)."""
        images = self.whole_image("image: in-painting needs it")
        if self.asked("mask") is None:
            raise UserError("mask: in-painting needs it, mask=mask.png, white where there is something to paint")
        paths = self.paths("mask")
        masks = torch.stack(self.cycle([read_mask(path, self.crop) for path in paths]))
        self.note("mask", self.cycle([str(path) for path in paths]))
        self.inputs["masked_image"] = self.inputs.pop("image").masked_fill(masks, 0.0)
        return images, self.padded(masks)

    def paths(self, name: str) -> list[Path]:
        """The file or the files that a setting names."""
        asked = self.config[name]
        paths = [Path(str(path)) for path in asked] if isinstance(asked, list) else [Path(str(asked))]
        if not paths:
            raise UserError(f"{name}: the list is empty")
        return paths


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

"""What a user tells a trained model on the command line, as a batch of conditions for n images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmlab.conditioners.base import Conditioner, Conditioners
from ldmlab.conditioners.inpainting import InPainting
from ldmlab.conditioners.super_resolution import SuperResolution
from ldmlab.errors import UserError
from ldmlab.settings import is_number
from ldmlab.tasks.console import say
from ldmlab.tasks.inputs import (
    check_size,
    coloured,
    drawn_boxes,
    parse_captions,
    parse_labels,
    read_image,
    read_layout,
    read_map,
    read_mask,
)
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

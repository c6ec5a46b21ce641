"""The interface of conditioners, and how several of them are one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldmlab.types import Batch, Conditioning, DataInfo

Drop = Tensor | Mapping[str, Tensor] | None
"""Samples that are to hear nothing, bool (B,): of everything, or for each conditioner by its name; None: no sample."""


class Conditioner(nn.Module):
    """Turns what a batch knows into a `Conditioning`.

    Every conditioner is built with `data`, the description of the data, and `latents`, that of the latents.

    Attributes:
        vector_width: width D of the `vector` route that it fills, 0 if it leaves that route empty.
        token_width: width D of its `tokens`, likewise.
        spatial_channels: channels C of its `spatial` map, likewise.
        needs: the entries of a batch of data that it reads in training.
        told: the entries of a batch that it reads to condition: what a user gives. The same as `needs` unless `tell`
            makes them.
        encoded: those of `told` that are images and that it reads as normalised latents, under the name with
            `_latent` behind it.
        classes: what can be said, where that is a list of names.
    """

    vector_width: int = 0
    token_width: int = 0
    spatial_channels: int = 0
    needs: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    encoded: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def tell(self, batch: Batch, seeds: Sequence[int] | None = None) -> Batch:
        """What a user would have told of the images of a batch, where the data do not say it: a mask, for example.

        Drawn by a seed for each image, or without `seeds` by torch's global generator.
        """
        return {}

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Conditioning:
        """The conditioning of a batch; samples of `drop` (B,) bool hear nothing.

        What they hear instead does not depend on the batch's other entries. Training draws `drop` once per sample for
        all conditioners together, so that the unconditional model is trained at the stated rate.
        """
        raise NotImplementedError

    def nothing(self, count: int, size: tuple[int, int]) -> Batch | None:
        """Entries of a batch that say nothing of `count` images of a size (H, W); None: it has to be told something."""
        return None

    def finish(self, images: Tensor, batch: Batch) -> Tensor:
        """Sampled images (B, 3, H, W) with what the conditions say of them for certain."""
        return images

    def prepare(self, batches: Callable[[], Iterable[Batch]]) -> tuple[float, float]:
        """Does beforehand what need be done once for the training data, of which `batches()` gives all.

        Returns the wall and CPU seconds that it takes, whether it was done now or for an earlier run.
        """
        return 0.0, 0.0

    @classmethod
    def problem_with(cls, data: DataInfo) -> str | None:
        """Why this conditioner cannot be trained on such data, in a few words; None if it can."""
        return None


class Conditioners(Conditioner):
    """Any number of conditioners by name, each on its own routes; none at all is the unconditional model.

    Vectors and maps are put side by side. Tokens too, once they have the same width: where there are several
    conditioners with tokens, each passes through a linear layer of its own, by which attention can tell them apart.
    """

    def __init__(self, parts: Mapping[str, Conditioner]):
        super().__init__()
        self.parts = nn.ModuleDict(dict(parts))
        self.vector_width = sum(part.vector_width for part in parts.values())
        self.spatial_channels = sum(part.spatial_channels for part in parts.values())
        widths = {name: part.token_width for name, part in parts.items() if part.token_width}
        self.token_width = max(widths.values(), default=0)
        several = widths if len(widths) > 1 else {}
        self.projections = nn.ModuleDict({name: nn.Linear(width, self.token_width) for name, width in several.items()})
        self.needs, self.told, self.encoded = (
            tuple(dict.fromkeys(entry for part in parts.values() for entry in getattr(part, kind)))
            for kind in ("needs", "told", "encoded")
        )

    @property
    def named_parts(self) -> dict[str, Any]:
        """The conditioners by name."""
        return dict(self.parts.items())

    def tell(self, batch: Batch, seeds: Sequence[int] | None = None) -> Batch:
        """What all of them tell."""
        told: Batch = {}
        for part in self.named_parts.values():
            told |= part.tell(batch, seeds)
        return told

    def forward(self, batch: Batch, drop: Drop = None) -> Conditioning:
        """The conditioning of a batch by all of them."""
        said = {name: part(batch, drop_of(drop, name)) for name, part in self.named_parts.items()}
        for name, projection in self.projections.items():
            said[name].tokens = projection(said[name].tokens)
        spoken = [part for part in said.values() if part.tokens is not None]
        return Conditioning(
            vector=side_by_side([part.vector for part in said.values()]),
            tokens=side_by_side([part.tokens for part in spoken]),
            token_mask=side_by_side([part.heard() for part in spoken]),
            spatial=side_by_side([part.spatial for part in said.values()]),
        )

    def null(self, batch: Batch, count: int, device: torch.device) -> Conditioning:
        """What samples hear that hear nothing: the unconditional model. `batch` is that of `count` samples."""
        return self(batch, torch.ones(count, dtype=torch.bool, device=device))

    def prepare(self, batches: Callable[[], Iterable[Batch]]) -> tuple[float, float]:
        """What all of them do beforehand."""
        costs = [part.prepare(batches) for part in self.named_parts.values()]
        return sum(wall for wall, _ in costs), sum(cpu for _, cpu in costs)

    def finish(self, images: Tensor, batch: Batch) -> Tensor:
        """Sampled images with what any of the conditions says of them for certain."""
        for part in self.named_parts.values():
            images = part.finish(images, batch)
        return images


def drop_of(drop: Drop, name: str) -> Tensor | None:
    """The samples that do not hear the conditioner of a name."""
    return drop.get(name) if isinstance(drop, Mapping) else drop


def side_by_side(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Those that there are, joined along their second dimension."""
    present = [part for part in parts if part is not None]
    return torch.cat(present, dim=1) if present else None


def draw_drop(names: Sequence[str], batch_size: int, probability: float, alone: float, device: torch.device) -> Drop:
    """Which samples of a training batch hear nothing, and which miss a single condition.

    Each sample is told nothing at all with `probability`, drawn once for all conditioners. Otherwise, where there are
    several, it misses each one with probability `alone`, independently, but never all of them: the unconditional model
    is trained at the stated rate, whatever `alone` is.
    """
    nothing = torch.rand(batch_size, device=device) < probability
    if len(names) < 2 or alone == 0:
        return nothing
    missed = torch.rand(len(names), batch_size, device=device) < alone
    missed &= ~missed.all(0)
    return {name: nothing | row for name, row in zip(names, missed, strict=True)}

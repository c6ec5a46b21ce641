"""A model under conditions, as guidance and samplers see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldmlab.diffusion.guidance import Guidance
from ldmlab.diffusion.predictions import Prediction
from ldmlab.modules.sampling_modes import Blend
from ldmlab.types import Batch, Conditioning

if TYPE_CHECKING:  # the model samples through this
    from ldmlab.modules.model import ConditionalDenoiser, LatentDiffusion


class GuidedDenoiser:
    """What a sampler sees of the model: `denoise(xt, t)` for `count` samples under `conditions`, guided.

    `blend` may lead from these conditions to others. `rows` counts what went through the network, and the guide's:
    guidance sends two rows for each sample.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        network: ConditionalDenoiser,
        conditions: Batch,
        count: int,
        guidance: Guidance,
        blend: Blend | None = None,
    ):
        self.model, self.network, self.guidance, self.count = model, network, guidance, count
        self.device = next(network.parameters()).device
        self.blend = None if blend is None or blend.conditions is None else blend
        batches = [conditions] if self.blend is None else [conditions, self.blend.conditions or {}]
        self.batches = [model.with_latents(network, batch) for batch in batches]
        self.null = network.conditioner.null(self.batches[0], count, self.device)
        self.heard: dict[tuple[Any, ...], Conditioning] = {}
        self.rows = 0

    def __call__(self, xt: Tensor, t: Tensor) -> Prediction:
        """x0 and noise at xt (B, C, h, w), t (B,)."""
        # clipped after guidance, which leaves the range of what it is given
        return self.model.clip(self.guidance(self, xt, t), xt, t)

    def conditional(self, xt: Tensor, t: Tensor) -> Prediction:
        """The model's prediction under its conditions."""
        return self.without(frozenset(), xt, t)

    def both(self, xt: Tensor, t: Tensor, batched: bool) -> tuple[Prediction, Prediction]:
        """The conditional and the unconditional prediction, from one evaluation of 2B samples if `batched`."""
        if not batched or self.blend is not None:
            return self.conditional(xt, t), self._evaluate(xt, t, self.null)
        twice = self.told(frozenset(), 0).concatenate(self.null)
        both = self._evaluate(torch.cat([xt, xt]), torch.cat([t, t]), twice)
        parts = [(None, None) if part is None else part.chunk(2) for part in (both.x0, both.noise, both.variance)]
        told, null = (Prediction(*half) for half in zip(*parts, strict=True))
        return told, null

    def without(self, names: frozenset[str], xt: Tensor, t: Tensor) -> Prediction:
        """The prediction under all conditions but those of the conditioners `names`."""
        return self._blended(lambda batch: self._evaluate(xt, t, self.told(names, batch)))

    def weaker(self, guide: LatentDiffusion, xt: Tensor, t: Tensor) -> Prediction:
        """The prediction of `guide`, another model, under the same conditions."""

        def evaluate(batch: int) -> Prediction:
            self.rows += xt.shape[0]
            if ("guide", batch) not in self.heard:
                self.heard["guide", batch] = guide.network.conditioner(self.batches[batch])
            return guide.denoise(guide.network, xt, t, self.heard["guide", batch])

        return self._blended(evaluate)

    def with_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Prediction:
        """The prediction of which x0 is known."""
        return self.model.with_x0(x0, xt, t)

    def told(self, without: frozenset[str], batch: int) -> Conditioning:
        """What the network is told of a batch of conditions, by all conditioners but some; made once."""
        if (without, batch) not in self.heard:
            gone = torch.ones(self.count, dtype=torch.bool, device=self.device)
            drop = dict.fromkeys(without, gone)
            self.heard[without, batch] = self.network.conditioner(self.batches[batch], drop or None)
        return self.heard[without, batch]

    def _blended(self, evaluate: Callable[[int], Prediction]) -> Prediction:
        """The prediction under the conditions, or between those under two."""
        one = evaluate(0)
        return one if self.blend is None else self.blend.prediction(one, evaluate(1))

    def _evaluate(self, xt: Tensor, t: Tensor, told: Conditioning) -> Prediction:
        self.rows += xt.shape[0]
        return self.model.denoise(self.network, xt, t, told)

"""How every metric answers to damage of a known kind and size, and to the number of images alone.

    python benchmarks/metrics.py data=parquet data.path=../cifar10 data.image_size=32 metrics.samples=5000

prints two tables in Markdown; any setting of `ldmlab reference` may be given. Damaged images are of the training split,
N = metrics.samples of them, and their reference as many of the validation split. The second table compares undamaged
images of the two splits, of which any difference is chance or bias.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from ldmlab.data.loader import in_order, random_subset
from ldmlab.hydra_errors import find_folder
from ldmlab.metrics.extractors import Features, to_uint8
from ldmlab.metrics.names import DISTANCES
from ldmlab.metrics.references import Reference
from ldmlab.metrics.suite import Measured, compare_with
from ldmlab.tasks import build
from ldmlab.tasks.console import say
from ldmlab.tasks.quality import Quality, quality_of

Damage = Callable[[Tensor], Tensor]
"""uint8 images (B, 3, H, W) -> damaged ones."""

BATCH = 250
NUMBERS = (250, 500, 1000, 2000, 5000, 10_000)
FOUR = ("precision", "recall", "density", "coverage")
HEADER = ["images", "KID ×10³", "FD", "FD∞", "sFD", "IS", *FOUR]


def noise(deviation: float) -> Damage:
    """Gaussian noise of a deviation in levels of 0..255."""
    generator = torch.Generator().manual_seed(0)
    return lambda x: (x + deviation * torch.randn(x.shape, generator=generator)).round().clamp(0, 255).to(torch.uint8)


def blur(deviation: float) -> Damage:
    """A Gaussian blur of a deviation in pixels."""
    size = 2 * int(np.ceil(3 * deviation)) + 1
    return lambda x: gaussian_blur(x.float(), [size, size], [deviation, deviation]).round().to(torch.uint8)


def jpeg(quality: int) -> Damage:
    """JPEG and back."""

    def one(image: Tensor) -> Tensor:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
        return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)

    return lambda x: torch.stack([one(image) for image in x])


def untouched(x: Tensor) -> Tensor:
    """The images as they are."""
    return x


def features_of(quality: Quality, split: str, rows: Sequence[int], damage: Damage = untouched) -> Features:
    """Features of damaged images of a split."""
    batches = in_order(quality.data.split(split), rows, BATCH)
    return Features.cat([quality.extractor(damage(to_uint8(batch["image"]))) for batch in batches])


def sets(quality: Quality, n: int) -> Iterator[tuple[str, Features]]:
    """Named sets of n images, from harmless to ruined."""
    train = quality.data.split("train")
    order = random_subset(len(train), len(train), quality.seed)
    yield "undamaged", features_of(quality, "train", order[:n])
    damages: list[tuple[str, Damage]] = [
        *((f"noise, deviation {d} of 255", noise(d)) for d in (2, 5, 10, 20, 40)),
        *((f"blur, {d} px", blur(d)) for d in (0.5, 1.0, 2.0)),
        *((f"JPEG, quality {q}", jpeg(q)) for q in (75, 40, 15)),
    ]
    for name, damage in damages:
        yield name, features_of(quality, "train", order[:n], damage)
    classes = quality.data.info.num_classes
    if classes > 1:
        labels = torch.cat([batch["label"] for batch in in_order(train, order, 5000)]).tolist()
        for kept in sorted({classes * 8 // 10, classes // 2, max(classes // 5, 1), 1}, reverse=True):
            rows = [row for row, label in zip(order, labels, strict=True) if label < kept]
            if len(rows) >= n:
                yield f"{kept} of {classes} classes", features_of(quality, "train", rows[:n])
    for times in (2, 5, 50):
        distinct = features_of(quality, "train", order[: n // times])
        yield f"each image {times} times", distinct[[i % (n // times) for i in range(n)]]


def line(name: str, found: dict[str, Measured], quality: Quality) -> str:
    """A row of a table."""

    def measured(metric: str) -> Measured | None:
        return found.get(quality.extractor.metric_name(metric))

    def text(metric: str, digits: int, scale: float = 1.0) -> str:
        value = measured(metric)
        if value is None:
            return "–"
        error = "" if value.standard_error is None else f" ± {scale * value.standard_error:.{digits}f}"
        return f"{scale * value.value:.{digits}f}{error}"

    cells = [text("kid", 2, 1000), text("fd", 1), text("fdinf", 1), text("sfd", 0), text("is", 1)]
    cells += [" / ".join(text(f"{metric}_k{k}", 2) for k in (3, 5)) for metric in FOUR]
    return "| " + " | ".join([name, *cells]) + " |"


def table(heading: str) -> None:
    """The head of a table."""
    print(f"\n{heading}\n\n| " + " | ".join(HEADER) + " |")
    print("|" + "|".join([" --- ", *[" ---: "] * (len(HEADER) - 1)]) + "|", flush=True)


def main(overrides: list[str]) -> None:
    """Prints the two tables."""
    with initialize_config_dir(str(find_folder("conf")), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("reference", overrides), resolve=True)
    data = build.build_data(config)
    quality = quality_of(config, data, build.best_device())
    judge = quality.extractor
    n = min(config["metrics"]["samples"], len(data.split("val")), len(data.split("train")))
    order = random_subset(len(data.split("val")), len(data.split("val")), quality.seed)
    whole = features_of(quality, "val", order)

    table(f"{data.info.name}, {judge.name}, N = {n:,} against {n:,}; of k = 3 / 5 neighbours")
    reference = Reference("val", n, "", whole[:n])
    for name, features in sets(quality, n):
        print(line(name, compare_with(reference, features, judge, DISTANCES), quality), flush=True)

    table("the same distribution, N against N")
    train = features_of(quality, "train", random_subset(len(data.split("train")), max(NUMBERS), quality.seed + 1))
    for count in NUMBERS:
        if count <= min(len(whole), len(train)):
            pair = Reference("val", count, "", whole[:count]), train[:count]
            print(line(f"{count:,}", compare_with(*pair, judge, DISTANCES), quality), flush=True)
    say(f"extractor {judge.hash[:12]}, torch {torch.__version__}, {Path(sys.argv[0]).name}")


if __name__ == "__main__":
    main(sys.argv[1:])

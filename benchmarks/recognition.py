"""Is an autoencoder's gain real? What a classifier, trained on real images alone, still recognises in reconstructions.

    python benchmarks/recognition.py runs/autoencoder_losses/*

trains a small network from nothing on the training split of the first run's data, and shows it the validation split as
each run gives it back. It shares no weights, no architecture and no training data with the networks that losses and
metrics look through. `same class` is the share of images whose reconstruction it takes for the same class as the image
itself, whether that is right or not. `rFD` is the Fréchet distance between the images and their reconstructions in its
last features, `likeness` the cosine between an image's features and those of its reconstruction.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from ldmlab.data.loader import EndlessBatches, in_order
from ldmlab.errors import UserError
from ldmlab.metrics.frechet import frechet_distance
from ldmlab.tasks import build, measure
from ldmlab.tasks.console import say
from ldmlab.tasks.run import read_run
from ldmlab.types import ImageSource

WIDTHS = (32, 64, 128, 256)
BATCH = 64
EPOCHS = 30
SHIFT = 4  # pixels by which training images are shifted at random


class Block(nn.Module):
    """Two convolutions with batch norm and a residual; halves the size."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.skip = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels_in, channels_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, channels_out, h / 2, w / 2)."""
        return F.relu(self.body(x) + self.skip(x))


def classifier(classes: int) -> nn.Sequential:
    """Images (B, 3, H, W) in [-1, 1] to logits (B, classes); the last layer takes features (B, D) to these."""
    stem = nn.Sequential(nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
    blocks = [Block(a, b) for a, b in zip(WIDTHS[:1] + WIDTHS, WIDTHS, strict=False)]
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3))
    return nn.Sequential(stem, *blocks, *pooled, nn.Linear(WIDTHS[-1], classes))


def augmented(images: Tensor) -> Tensor:
    """Mirrored and shifted at random, image by image."""
    flip = torch.rand(len(images), 1, 1, 1) < 0.5
    images = torch.where(flip, images.flip(3), images)
    padded = F.pad(images, [SHIFT] * 4, mode="reflect")
    size = images.shape[-1]
    starts = torch.randint(2 * SHIFT + 1, (len(images), 2)).tolist()
    crops = [image[:, top : top + size, left : left + size] for image, (top, left) in zip(padded, starts, strict=True)]
    return torch.stack(crops)


def train(network: nn.Module, source: ImageSource) -> None:
    """Trains by stochastic gradient descent with a one-cycle learning rate."""
    steps = EPOCHS * len(source) // BATCH
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    network.train()
    said = time.monotonic()
    for step, rows in zip(range(steps), EndlessBatches(len(source), BATCH, seed=0), strict=False):
        batch = source.__getitems__(rows)
        loss = F.cross_entropy(network(augmented(batch["image"])), batch["label"], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if time.monotonic() - said > 20:
            said = time.monotonic()
            say(f"step {step} of {steps}, loss {loss.item():.3f}")


class Seen(NamedTuple):
    """Of N images: the classes that they are taken for, those that they are of, and their last features (N, D)."""

    found: Tensor
    true: Tensor
    features: Tensor


@torch.inference_mode()
def look(network: nn.Sequential, source: ImageSource, autoencoder: Any = None) -> Seen:
    """What a trained classifier sees in the images of a source, or in their reconstructions."""
    network.eval()
    parts = []
    for batch in in_order(source, range(len(source)), BATCH):
        images = batch["image"] if autoencoder is None else measure.reconstruct(autoencoder, batch["image"])
        features = network[:-1](images)
        parts.append((network[-1](features).argmax(1), batch["label"], features))
    return Seen(*(torch.cat(column) for column in zip(*parts, strict=True)))


def shown(values: Tensor, digits: int) -> str:
    """The mean of a value for each image with its standard error."""
    told = measure.with_error(values, {})
    return f"{told['value']:.{digits}f} ± {told['standard_error']:.{digits}f}"


def share(hits: Tensor) -> str:
    """A share in percent with its standard error."""
    return shown(100 * hits.double(), 1)


def main(paths: list[str]) -> None:
    """Prints the table."""
    runs = [read_run(path, "autoencoder", "run") for path in paths if (Path(path) / "config.yaml").exists()]
    if not runs:
        raise UserError("recognition: name runs of train-vae")
    data = build.build_data(runs[0].config)
    if not data.info.num_classes:
        raise UserError(f"recognition: data '{data.info.name}' has no labels")
    torch.manual_seed(0)
    network = classifier(data.info.num_classes)
    train(network, data.split("train"))
    val = data.split("val")
    own = look(network, val)
    print(f"{data.info.name}, {data.info.num_classes} classes, {len(own.true)} validation images\n")
    print("| images | right class, % | same class, % | rFD | likeness |\n| --- | ---: | ---: | ---: | ---: |")
    print(f"| real | {share(own.found == own.true)} | | | |")
    for run in runs:
        if yaml.safe_dump(run.config["data"]) != yaml.safe_dump(runs[0].config["data"]):
            raise UserError(f"recognition: {run} is of other data")
        seen = look(network, val, build.load_autoencoder(run.path)[0])
        distance = frechet_distance(own.features, seen.features)
        likeness = shown(F.cosine_similarity(own.features, seen.features), 3)
        print(
            f"| {run.path.name} | {share(seen.found == own.true)} | {share(seen.found == own.found)} "
            f"| {distance:.3f} | {likeness} |"
        )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))

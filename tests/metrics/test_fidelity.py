"""Judges of whether images show what a model was told."""

from types import SimpleNamespace

import pytest
import torch

from ldmlab.conditioners.super_resolution import SuperResolution
from ldmlab.data.shapes import Shapes
from ldmlab.metrics.fidelity import InPaintingJudge, OracleJudge, Probe, SuperResolutionJudge, bicubic
from ldmlab.types import DataInfo, LatentInfo


def examples(count=4, size=16):
    torch.manual_seed(0)
    image = ((torch.rand(count, 3, size, size) * 255).round() / 127.5 - 1).clamp(-1, 1)
    mask = torch.zeros(count, 1, size, size, dtype=torch.bool)
    mask[:, :, 2:6, 3:9] = True
    conditioner = SuperResolution(DataInfo("photos", size, "0"), LatentInfo(4, 3), factor=4)
    return {"image": image, "mask": mask, **conditioner.tell({"image": image})}, conditioner


def test_the_oracle_is_shown_what_a_file_would_hold_and_asked_for_what_was_told():
    seen = {}

    class Oracle:
        def scores(self, images, told, entries):
            seen.update(images=images, entries=entries)
            return {"label": torch.ones(len(images))}

    batch, _ = examples()
    images = batch["image"] + 1e-4
    assert OracleJudge(Oracle(), ["label"])(images, batch, None)["oracle_label"].tolist() == [1] * 4
    torch.testing.assert_close(seen["images"], batch["image"])
    assert seen["entries"] == ("label",)


def test_real_shapes_are_what_they_are_said_to_be():
    data = Shapes(image_size=32, train_images=0, val_images=8)
    batch = data.split("val").__getitems__(range(8))
    judge = OracleJudge(data.oracle(), ["label", "caption"])
    right = judge(batch["image"], batch, None)
    assert right["oracle_label"].mean() == right["oracle_caption_all"].mean() == 1
    wrong = judge(batch["image"].roll(1, 0), batch, None)
    assert wrong["oracle_label"].mean() < 0.5


def test_a_probe_tells_classes_that_features_tell():
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    centres = torch.randn(3, 20)
    features = centres[labels] * 3 + torch.randn(300, 20)
    extractor = SimpleNamespace(metric_name=lambda name: f"{name}_x", manifest=lambda: {"extractor": "x"})
    probe = Probe(features[:200], labels[:200], extractor, seed=5)
    name = "probe_label_n200_x"
    found = probe(torch.zeros(100, 3, 4, 4), {"label": labels[200:]}, features[200:])[name]
    assert found.mean() > 0.95
    lied_to = probe(torch.zeros(100, 3, 4, 4), {"label": (labels[200:] + 1) % 3}, features[200:])[name]
    assert lied_to.mean() < 0.05
    told = {"judge": "logistic regression on features", "extractor": "x", "fitted_to": 200, "fitted_seed": 5}
    assert probe.manifest() == told


def test_super_resolution_is_held_against_the_original_and_the_small_image():
    batch, conditioner = examples()
    judge = SuperResolutionJudge(conditioner.shrink, None)
    near = (batch["image"] + 0.02 * torch.randn_like(batch["image"])).clamp(-1, 1)
    found = judge(near, batch, None)
    error = (near - batch["image"]).square().flatten(1).mean(1) / 4
    torch.testing.assert_close(found["super_resolution_psnr"], -10 * error.log10(), atol=1e-3, rtol=0)
    exact = judge(batch["image"], batch, None)["super_resolution_consistency_psnr"]
    assert exact.tolist() == pytest.approx([58.92] * 4, abs=0.01)  # as good as rounding allows, not infinite
    moved = judge(batch["image"].roll(4, -1), batch, None)
    assert (moved["super_resolution_consistency_psnr"] < found["super_resolution_consistency_psnr"] - 10).all()


def test_interpolation_is_consistent_with_the_small_image_and_blurred():
    batch, conditioner = examples(size=32)
    smooth = torch.nn.functional.interpolate(batch["image"][:, :, :4, :4], size=(32, 32), mode="bicubic").clamp(-1, 1)
    small = conditioner.shrink(smooth)
    judge = SuperResolutionJudge(conditioner.shrink, None)
    found = judge(bicubic(small, (32, 32)), {"image": smooth, "low_resolution": small}, None)
    assert (found["super_resolution_consistency_psnr"] > 25).all()
    assert (found["super_resolution_psnr"] > 20).all()


def test_in_painting_is_measured_inside_and_checked_outside():
    batch, _ = examples()
    painted = torch.where(batch["mask"], batch["image"] + 20 / 127.5, batch["image"]).clamp(-1, 1)
    found = InPaintingJudge()(painted, batch, None)
    assert found["inpainting_outside_error"].tolist() == [0] * 4
    assert ((found["inpainting_inside_psnr"] > 21) & (found["inpainting_inside_psnr"] < 24)).all()
    spilled = painted.clone()
    spilled[0, 0, 0, 0] = batch["image"][0, 0, 0, 0] - 3 / 127.5
    assert InPaintingJudge()(spilled, batch, None)["inpainting_outside_error"][0].item() == pytest.approx(3, abs=0.01)

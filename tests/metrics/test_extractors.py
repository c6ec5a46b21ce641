import hashlib
import sys
import urllib.error

import pytest
import torch
from PIL import Image

from ldmlab.errors import UserError
from ldmlab.metrics.extractors import EffNetLite0, Features, InceptionV3, check_judge, inception, to_uint8


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lite():
    return EffNetLite0(input_size=64, batch_size=3)


def images(count=4, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_name_and_input_size_are_part_of_the_metrics_names(lite):
    assert (lite.metric_name("fd"), lite.metric_name("kid")) == ("fd_lite0_64", "kid_lite0_64")
    assert lite.metric_name("recall") == "recall_lite0_64"
    manifest = lite.manifest()
    assert (manifest["extractor"], manifest["input_size"]) == ("lite0_64", 64)
    assert manifest["weights_sha256"].startswith("57934424")


def test_features_do_not_depend_on_the_batch(lite):
    x = images(7)
    together = lite(x)
    assert together.pooled.shape == (7, lite.dimensions)
    assert together.pooled.dtype == torch.float32
    apart = Features.cat([lite(one[None]) for one in x])
    torch.testing.assert_close(apart.pooled, together.pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(apart.spatial, together.spatial, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "side", "channels"), [(64, 4, 80), (128, 8, 20)])
def test_spatial_features_know_where_and_are_about_as_many_as_the_pooled_ones(size, side, channels):
    lite = EffNetLite0(input_size=size)
    one, other = images(2, size)[:, None]
    other[..., size // 2 :] = one[..., size // 2 :]
    maps = [lite(x).spatial.reshape(channels, side, side) for x in (one, other)]
    # the images differ on the left only
    difference = (maps[0] - maps[1]).square().mean((0, 1))
    assert difference[0] > 2 * difference[-1]


def test_logits_are_those_of_the_whole_network(lite):
    x = images(2)
    expected = lite.network((x.float() - 127) / 128)
    torch.testing.assert_close(lite.logits(lite(x).pooled), expected, rtol=1e-4, atol=1e-4)


def test_images_resized_beforehand_and_inside_give_the_same_features(lite):
    # both sides of a comparison see the same quantised pixels, whoever resized them
    x = images(2, size=32)
    floats = torch.nn.functional.interpolate(x.float(), (64, 64), mode="bicubic", antialias=True)
    resized = floats.clamp(0, 255).round().to(torch.uint8)
    torch.testing.assert_close(lite(x).pooled, lite(resized).pooled, rtol=0, atol=1e-6)


def test_the_resize_is_pillows_bicubic_within_a_byte(lite, monkeypatch):
    seen = []
    monkeypatch.setattr(lite.network, "stages", lambda x: seen.append(x) or [torch.zeros(len(x), 112, 4, 4)] * 8)
    smooth = torch.nn.functional.interpolate(images(1, 6).float(), (96, 96), mode="bilinear").to(torch.uint8)
    lite(smooth)
    pillow = Image.fromarray(smooth[0].permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BICUBIC)
    expected = torch.frombuffer(bytearray(pillow.tobytes()), dtype=torch.uint8).reshape(64, 64, 3).permute(2, 0, 1)
    got = seen[0][0] * 128 + 127
    assert torch.equal(got, got.round())
    assert (got - expected.float()).abs().max() <= 1


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_anything_but_a_batch_of_bytes_is_refused(lite, bad):
    with pytest.raises(ValueError, match="uint8"):
        lite(bad)


def test_a_host_module_neither_trains_nor_saves_nor_casts_the_extractor(lite):
    host = torch.nn.Linear(2, 2)
    host.extractor = lite
    before = lite(images(2)).pooled
    host.train().to(torch.bfloat16).requires_grad_(True)
    assert set(host.state_dict()) == {"weight", "bias"}
    assert sum(1 for _ in host.parameters()) == 2
    assert not any(module.training for module in lite.network.modules())
    assert not any(p.requires_grad for p in lite.network.parameters())
    assert torch.equal(lite(images(2)).pooled, before)


def test_mixed_precision_of_a_trainer_does_not_reach_the_features(lite):
    expected = lite(images(2)).pooled
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lite(images(2)).pooled, expected)


def test_to_uint8_undoes_the_scaling_of_bytes_exactly_and_clamps():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_uint8(levels.float() / 127.5 - 1), levels)
    assert to_uint8(torch.tensor([-3.0, -1.0, 1.0, 3.0])[:, None, None, None]).flatten().tolist() == [0, 0, 255, 255]
    # nearest byte, not the one below: half a step short of 255 is 255
    assert to_uint8(torch.full((1, 3, 1, 1), 254.6 / 127.5 - 1)).unique().tolist() == [255]


def test_to_uint8_refuses_nan():
    x = torch.zeros(3, 3, 4, 4)
    x[1, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="1 of 3 images hold NaN"):
        to_uint8(x)


def test_inception_offline_ends_in_one_line_that_says_where_the_file_goes(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="weights_path") as raised:
        InceptionV3()
    message = str(raised.value)
    assert "\n" not in message
    assert str(tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth") in message


def test_inception_refuses_a_missing_file_and_other_weights(tmp_path):
    with pytest.raises(UserError, match="are not at"):
        InceptionV3(weights_path=tmp_path / "absent.pth")
    (tmp_path / "other.pth").write_bytes(b"other weights")
    with pytest.raises(UserError, match="would not give FID"):
        InceptionV3(weights_path=tmp_path / "other.pth")


def test_inception_without_torch_fidelity_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match=r"pip install ldmlab\[metrics\]"):
        InceptionV3()


def test_inception_is_torch_fidelitys_network_under_the_plain_names(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    # random weights stand in for the file that cannot be downloaded here; only its hash differs
    monkeypatch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    monkeypatch.setattr(fidelity, "load_state_dict_from_url", lambda *args, **kwargs: {})
    torch.manual_seed(0)
    reference = fidelity.FeatureExtractorInceptionV3("reference", ["2048"])
    monkeypatch.undo()
    path = tmp_path / "weights.pth"
    torch.save(reference.state_dict(), path)
    monkeypatch.setattr(inception, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())

    judge = InceptionV3(weights_path=path)
    names = [judge.metric_name(metric) for metric in ("fd", "kid", "sfd", "fdinf", "recall_k3", "is")]
    assert names == ["fid", "kid", "sfid", "fidinf", "recall_k3", "is"]
    x = images(2, size=32)
    features = judge(x)
    assert features.pooled.shape == (2, judge.dimensions) == (2, 2048)
    torch.testing.assert_close(features.pooled, reference(x)[0])
    assert features.spatial.shape == (2, 17 * 17 * 7)

    # the logits of the Inception score, and seven channels of mixed_6/conv, taken from the network by its own means
    unbiased = fidelity.FeatureExtractorInceptionV3(
        "other", ["logits_unbiased"], feature_extractor_weights_path=str(path)
    )
    torch.testing.assert_close(judge.logits(features.pooled), unbiased(x)[0], rtol=1e-4, atol=1e-4)
    seen = {}
    reference.Mixed_6d.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0]))
    reference(x)
    expected = reference.Mixed_6d.branch1x1(seen["x"])[:, :7]
    torch.testing.assert_close(
        features.spatial, expected.permute(0, 2, 3, 1).flatten(1)
    )  # as ADM: rows, columns, channels


def test_a_network_that_the_loss_was_trained_against_is_no_judge():
    check_judge("metrics.features", "aaaa", ["bbbb"])
    with pytest.raises(UserError, match=r"metrics.features: .* trained to please"):
        check_judge("metrics.features", "aaaa", ["bbbb", "aaaa"])

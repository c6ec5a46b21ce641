"""LPIPS, as a metric and as a loss, on random weights; the real ones with LDMLAB_NETWORK=1."""

import pytest
import torch

from ldmlab.autoencoders import perceptual
from ldmlab.errors import UserError
from ldmlab.metrics.extractors import check_judge
from ldmlab.metrics.reconstruction import LPIPS


@pytest.fixture
def random_backbones(monkeypatch):
    """LPIPS with torchvision's networks at random: their weights cannot be downloaded here."""
    import torchvision.models

    for name in ("alexnet", "squeezenet1_1", "vgg16"):
        make = getattr(torchvision.models, name)

        def untrained(weights=None, make=make, **kwargs):
            torch.manual_seed(0)
            return make(weights=None)

        monkeypatch.setattr(torchvision.models, name, untrained)


@pytest.mark.parametrize("network", ["alex", "squeeze"])
def test_lpips_is_torchmetrics_per_image(network, random_backbones):
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    x, y = torch.rand(2, 3, 3, 64, 64)
    lpips = LPIPS(network)
    assert lpips.name == f"lpips_{network}"
    got = lpips(x, y)
    metric = LearnedPerceptualImagePatchSimilarity(network, normalize=True)
    assert got.mean() == pytest.approx(metric(x, y).item(), rel=1e-5)
    assert got.shape == (3,)
    assert lpips(x, x).abs().max() < 1e-6


def test_lpips_offline_and_of_an_unknown_network_end_in_one_line(monkeypatch):
    import torch.hub

    def offline(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nowhere")
    monkeypatch.setattr("os.makedirs", lambda *args, **kwargs: None)
    with pytest.raises(UserError, match=r"metrics.lpips: the weights of vgg.*or metrics.lpips=null") as raised:
        LPIPS("vgg")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"autoencoder.perceptual.network: .* or autoencoder/perceptual=effnet_lite1"):
        perceptual.LPIPS("vgg")
    with pytest.raises(UserError, match="one of alex, vgg, squeeze"):
        LPIPS("resnet")


def test_the_loss_is_the_metric_with_a_gradient_and_the_same_weights_cannot_judge(random_backbones):
    x, y = torch.rand(2, 2, 3, 64, 64)
    made = (y * 2 - 1).requires_grad_()
    loss, judge = perceptual.LPIPS("squeeze", weight=0.5), LPIPS("squeeze")
    value = loss(made, x * 2 - 1)
    assert value.item() == pytest.approx(judge(x, y).mean().item(), rel=1e-4)
    value.backward()
    assert made.grad.abs().sum() > 0
    assert loss.name == "lpips_squeeze"
    with pytest.raises(UserError, match="trained to please this very network"):
        check_judge("metrics.lpips", judge.hash, loss.trained_against)
    check_judge("metrics.lpips", LPIPS("alex").hash, loss.trained_against)


@pytest.mark.network
def test_the_real_lpips_can_be_had():
    x = torch.rand(1, 3, 64, 64)
    assert LPIPS("alex")(x, x).item() == pytest.approx(0, abs=1e-6)

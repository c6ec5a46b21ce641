"""DINOv2 and CLIP on stand-ins of a few random weights; the real ones with LDMLAB_NETWORK=1."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ldmlab.errors import UserError
from ldmlab.metrics.clip_score import CLIPScore
from ldmlab.metrics.extractors import CLIP, DINOv2
from ldmlab.metrics.extractors.transformer import resample_positions

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def images(count=3, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, image_size=518, patch_size=14))
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    folder = tmp_path_factory.mktemp("dinov2")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of random weights, whose tokenizer knows single letters."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    sizes = {**SIZES, "intermediate_size": 64, "projection_dim": 24}
    text = {**sizes, "vocab_size": len(words), "max_position_embeddings": 12, "eos_token_id": len(words) - 1}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": 64, "patch_size": 16}, projection_dim=24
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def test_dinov2_is_the_class_token_of_images_prepared_as_in_edm2(dinov2):
    judge = DINOv2(str(dinov2))
    assert judge.metric_name("fd") == "fd_dinov2_32"
    x = images()
    got = judge(x).pooled
    # EDM2, calculate_metrics.py: bicubic with antialiasing, neither clamped nor rounded
    pixels = F.interpolate(x.float(), (224, 224), mode="bicubic", antialias=True) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    model = transformers.Dinov2Model.from_pretrained(dinov2).eval()
    model.embeddings.position_embeddings.data = resample_positions(model.embeddings.position_embeddings.data, 16)
    with torch.inference_mode():
        expected = model(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(got, expected)
    assert judge.logits(got) is None


def test_position_embeddings_are_sampled_with_the_originals_offset():
    # along a ramp, bicubic sampling reads off the places that are sampled: (i + 1/2) · 37 / 16.1 - 1/2
    ramp = torch.arange(37.0).expand(37, 37)
    positions = torch.cat([torch.zeros(1, 1, 1), ramp.reshape(1, -1, 1)], 1)
    got = resample_positions(positions, 16)[0, 1:, 0].reshape(16, 16)[5]
    places = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    # torch's bicubic filter follows a ramp within 0.05; without the offset the last places are 0.2 away
    assert (got - places)[1:-1].abs().max() < 0.06
    assert abs(got[14] - (14.5 * 37 / 16 - 0.5)) > 0.15


def test_clip_resizes_as_pillow_does(clip):
    judge = CLIP(str(clip))
    assert judge.name == "clip_vit32_16_64"
    smooth = F.interpolate(images(2, 8).float(), (96, 96), mode="bicubic").clamp(0, 255).to(torch.uint8)
    resized = [Image.fromarray(i.permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BICUBIC) for i in smooth]
    by_pillow = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in resized])
    got, expected = judge(smooth).pooled, judge(by_pillow).pooled
    assert got.shape == (2, 24)
    assert (got - expected).norm() / expected.norm() < 0.01


def test_the_digest_is_that_of_the_weights_and_not_of_the_file(dinov2, tmp_path):
    model = transformers.Dinov2Model.from_pretrained(dinov2)
    model.save_pretrained(tmp_path / "same")
    assert DINOv2(str(tmp_path / "same")).hash == DINOv2(str(dinov2)).hash
    model.layernorm.bias.data += 1
    model.save_pretrained(tmp_path / "other")
    assert DINOv2(str(tmp_path / "other")).hash != DINOv2(str(dinov2)).hash


def test_a_model_of_another_kind_is_refused_and_not_filled_with_random_weights(dinov2):
    with pytest.raises(UserError, match="holds no CLIPVisionModelWithProjection"):
        CLIP(str(dinov2))


@pytest.mark.parametrize(("model", "said"), [("/nowhere/at/all", "no such folder"), ("nobody/nothing", "hf download")])
def test_a_model_that_is_not_to_be_had_ends_in_one_line(model, said, monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "model_info", offline)
    with pytest.raises(UserError, match=said) as raised:
        DINOv2(model)
    assert "\n" not in str(raised.value)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install ldmlab\[metrics\]"):
        DINOv2("facebook/dinov2-large")


def test_clip_score_is_a_hundred_times_the_cosine_and_never_below_zero(clip):
    score = CLIPScore(str(clip))
    x, captions = images(40, size=64), [chr(ord("a") + i % 26) for i in range(40)]
    got = score(x, captions)
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    tokens = transformers.CLIPTokenizer.from_pretrained(clip)(captions, padding=True, return_tensors="pt")
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (x.float() / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        output = model(pixel_values=pixels, **tokens)
    cosines = (output.image_embeds * output.text_embeds).sum(-1)
    torch.testing.assert_close(got, 100 * cosines.clamp(min=0), rtol=1e-4, atol=1e-4)
    assert got.min() == 0 < got.max()  # random embeddings point either way


def test_a_caption_longer_than_the_model_can_read_is_cut(clip):
    score = CLIPScore(str(clip))
    long = "a b c d e f g h i j k l m n o p q r s t u v w x y z"
    torch.testing.assert_close(score(images(1), [long]), score(images(1), [long[:19]]))


@pytest.mark.network
def test_the_real_dinov2_and_clip_can_be_had():
    assert DINOv2().metric_name("fd") == "fd_dinov2_vitl14"
    assert DINOv2()(images(1)).pooled.shape == (1, 1024)
    assert CLIP()(images(1)).pooled.shape == (1, 768)
    score = CLIPScore("openai/clip-vit-base-patch16")
    red = torch.zeros(2, 3, 224, 224, dtype=torch.uint8)
    red[:, 0] = 255
    told = score(red, ["a red square", "a photo of a cat"])
    assert told[0] > told[1]

"""Autoencoders against diffusers: parameter counts of the paper's sizes, and weights loaded from its files."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file

from ldmlab.autoencoders.convolutional import PaperAutoencoder
from ldmlab.autoencoders.regularizers import VQ
from ldmlab.errors import UserError
from ldmlab.hydra_app import find_folder
from ldmlab.interop import autoencoders as interop

diffusers = pytest.importorskip("diffusers")

KINDS = ("kl", "vq")
FACTORS = (2, 4, 8, 16, 32)


def blocks(multipliers, attention_levels):
    down = [f"{'Attn' if level in attention_levels else ''}DownEncoderBlock2D" for level in range(len(multipliers))]
    up = [f"{'Attn' if level in attention_levels else ''}UpDecoderBlock2D" for level in range(len(multipliers))]
    return {"down_block_types": down, "up_block_types": up[::-1]}


def of_diffusers(kind, latent_channels, multipliers, attention_levels, codes=256, channels=128, groups=32, **more):
    settings = {
        "block_out_channels": [channels * multiplier for multiplier in multipliers],
        "layers_per_block": 2,
        "latent_channels": latent_channels,
        "norm_num_groups": groups,
        **blocks(multipliers, attention_levels),
        **more,
    }
    if kind == "kl":
        return diffusers.AutoencoderKL(**settings)
    return diffusers.VQModel(num_vq_embeddings=codes, **settings)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_paper_s_sizes_have_as_many_parameters_as_the_public_configurations(kind, factor):
    with initialize_config_dir(str(find_folder("conf")), version_base="1.3"):
        config = compose("train_vae", [f"autoencoder={kind}", "autoencoder/size=paper", f"downsampling=f{factor}"])
    paper = config.downsampling.paper[kind]
    with torch.device("meta"):
        ours = instantiate(config.autoencoder.network, _convert_="all")
        theirs = of_diffusers(
            kind, paper.latent_channels, paper.channel_multipliers, paper.attention_levels, paper.get("codes")
        )
    count = sum(parameter.numel() for parameter in ours.parameters())
    if kind == "vq":
        count += ours.regularizer.codebook.numel()  # follows running means here, so it is no parameter
    assert count == sum(parameter.numel() for parameter in theirs.parameters())


# small ones of every kind of structure: attention at some level or nowhere, convolutions around the latent or none
STRUCTURES = {
    "kl": ("kl", {}),
    "kl, attention": ("kl", {"attention_levels": [1, 2]}),
    "kl, no attention at all": ("kl", {"mid_block_add_attention": False}),
    "kl, as in Stable Diffusion 3": (
        "kl",
        {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06},
    ),
    "vq": ("vq", {}),
    "vq, attention": ("vq", {"attention_levels": [2]}),
    "vq, other length of codes": ("vq", {"vq_embed_dim": 5}),
}


def random_weights(model):
    """Every weight at random, norms too, so that none can take another's place unseen."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5 / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 0.5)
    if isinstance(model, diffusers.VQModel):
        torch.nn.init.normal_(model.quantize.embedding.weight)
    return model.eval()


def small(name):
    kind, more = STRUCTURES[name]
    more = dict(more)
    attention_levels = more.pop("attention_levels", [])
    return random_weights(of_diffusers(kind, 3, [1, 2, 2], attention_levels, 32, channels=8, groups=4, **more))


@torch.inference_mode()
def assert_equal_functions(ours, theirs, factor):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    wanted = theirs.encode(images)
    if isinstance(theirs, diffusers.AutoencoderKL):
        wanted = wanted.latent_dist
        torch.testing.assert_close(ours.encode(images).std, wanted.std, atol=1e-4, rtol=1e-4)
        wanted = wanted.mean
    else:
        wanted = wanted.latents
    latents = ours.encode(images).mean
    assert latents.shape[-1] == 32 // factor
    torch.testing.assert_close(latents, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.decode(latents), theirs.decode(latents).sample, atol=1e-4, rtol=1e-4)
    assert ours.decode(latents).std() > 1e-3  # weights of zero would be equal too


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_diffusers_folder_gives_the_same_latents_and_images(name, tmp_path):
    theirs = small(name)
    theirs.save_pretrained(tmp_path)
    assert_equal_functions(interop.load(str(tmp_path), 4), theirs, 4)


def test_an_autoencoder_in_a_pipeline_s_folder_is_found(tmp_path):
    theirs = small("kl")
    theirs.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    assert_equal_functions(interop.load(str(tmp_path), 4), theirs, 4)


def test_the_tiny_autoencoder_gives_the_same_latents_and_images(tmp_path):
    theirs = random_weights(
        diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 2, 2), num_decoder_blocks=(2, 2, 1),
        )
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    assert_equal_functions(interop.load(str(tmp_path), 4), theirs, 4)


def test_scaling_is_that_of_the_folder_unless_it_is_to_be_measured(tmp_path):
    theirs = small("kl, as in Stable Diffusion 3")
    theirs.save_pretrained(tmp_path)
    ours = interop.load(str(tmp_path), 4)
    latents = torch.randn(2, 3, 4, 4)
    expected = (latents - theirs.config.shift_factor) * theirs.config.scaling_factor
    torch.testing.assert_close(ours.normalize(latents), expected)
    images = [torch.rand(256, 3, 32, 32) * 2 - 1]
    ours.measure_statistics(images)
    torch.testing.assert_close(ours.normalize(latents), expected)

    measured = interop.load(str(tmp_path), 4, scaling="measured")
    measured.measure_statistics(images)
    normalised = measured.normalize(measured.encode(images[0]).sample())
    assert normalised.mean((0, 2, 3)).abs().max() < 0.05
    assert (normalised.std((0, 2, 3)) - 1).abs().max() < 0.05


# diffusers' names of layers to those of CompVis, written down independently of what is tested
def compvis_names(state, levels):
    renamed = {}
    for name, weight in state.items():
        parts = name.split(".")
        if parts[0] in ("encoder", "decoder") and parts[1] in ("down_blocks", "up_blocks"):
            way = parts[1].removesuffix("_blocks")
            level = int(parts[2]) if way == "down" else levels - 1 - int(parts[2])
            rest = {
                "resnets": ["block", parts[4], *parts[5:]],
                "attentions": ["attn", parts[4], *parts[5:]],
                "downsamplers": ["downsample", *parts[5:]],
                "upsamplers": ["upsample", *parts[5:]],
            }[parts[3]]
            parts = [parts[0], way, str(level), *rest]
        elif len(parts) > 2 and parts[1] == "mid_block":
            inner = {("resnets", "0"): "block_1", ("resnets", "1"): "block_2", ("attentions", "0"): "attn_1"}
            parts = [parts[0], "mid", inner[parts[2], parts[3]], *parts[4:]]
        new = ".".join(parts).replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "attn" in new:
            for theirs, old in (
                ("group_norm", "norm"),
                ("to_q", "q"),
                ("to_k", "k"),
                ("to_v", "v"),
                ("to_out.0", "proj_out"),
            ):
                new = new.replace(theirs, old)
            if weight.ndim == 2:
                weight = weight[:, :, None, None]
        renamed[new] = weight
    return renamed


class Callback:
    """What Lightning pickles into its checkpoints: an object with a state."""

    def __init__(self):
        self.best = {"score": 1.0}


class Program:
    """A pickle that, opened as pickles are, makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["kl", "kl, attention", "vq", "vq, attention", "vq, other length of codes"])
@pytest.mark.parametrize("whole_model", [False, True])
def test_a_checkpoint_of_compvis_gives_the_same_latents_and_images(name, whole_model, tmp_path, monkeypatch):
    theirs = small(name)
    weights = compvis_names(theirs.state_dict(), 3)
    extra = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(1)}
    state = {**weights, **extra}
    if whole_model:
        state = {f"first_stage_model.{key}": value for key, value in state.items()}
        state |= {"scale_factor": torch.tensor(0.25), "model.diffusion_model.time_embed.0.weight": torch.zeros(2)}
    file = tmp_path / "model.ckpt"
    callbacks = {Callback: {"best": 1.0}, "other": Callback()}
    torch.save({"state_dict": state, "global_step": 7, "callbacks": callbacks}, file)
    monkeypatch.setattr(interop, "COMPVIS_GROUPS", 4)  # 32 in every published one, which needs wider networks
    ours = interop.load(str(file), 4)
    assert_equal_functions(ours, theirs, 4)
    assert ours.scaled is whole_model
    if whole_model:
        torch.testing.assert_close(ours.latent_std, torch.full_like(ours.latent_std, 4.0))

    safe = tmp_path / "model.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, safe)
    assert_equal_functions(interop.load(str(safe), 4), theirs, 4)


def test_a_loaded_autoencoder_is_built_again_from_its_settings(tmp_path):
    small("vq, attention").save_pretrained(tmp_path)
    ours = interop.load(str(tmp_path), 4)
    again = instantiate(ours.settings, _convert_="all")
    again.load_state_dict(ours.state_dict())
    latents = torch.randn(1, 3, 4, 4)
    assert torch.equal(again.eval().decode(latents), ours.decode(latents))
    json.dumps(ours.settings)


def test_what_cannot_be_loaded_ends_in_one_line(tmp_path):
    small("kl").save_pretrained(tmp_path / "right")
    with pytest.raises(ValueError, match=r"downsamples by 4, not by 8: use downsampling=f4"):
        interop.load(str(tmp_path / "right"), 8)
    with pytest.raises(UserError, match="no such folder or file"):
        interop.load(str(tmp_path / "none"), 4)
    with pytest.raises(UserError, match="no such file"):
        interop.load(str(tmp_path / "none.ckpt"), 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no AutoencoderKL"):
        interop.load(str(tmp_path / "empty"), 4)
    (tmp_path / "broken.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"broken\.ckpt"):
        interop.load(str(tmp_path / "broken.ckpt"), 4)
    (tmp_path / "page.ckpt").write_text("<!DOCTYPE html><html>not found</html>")
    with pytest.raises(UserError, match="perhaps a page"):
        interop.load(str(tmp_path / "page.ckpt"), 4)
    torch.save([torch.zeros(1)], tmp_path / "list.ckpt")
    with pytest.raises(UserError, match="holds no weights by name"):
        interop.load(str(tmp_path / "list.ckpt"), 4)
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not those of such an autoencoder"):
        interop.load(str(tmp_path / "other.safetensors"), 4)
    weights = tmp_path / "right" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(UserError, match="give the folder"):
        interop.load(str(weights), 4)
    half = {name: weight for name, weight in load_file(weights).items() if "decoder.up_blocks.1" not in name}
    save_file(half, weights)
    with pytest.raises(UserError, match=r"Missing key.* \.\.\.$") as raised:
        interop.load(str(tmp_path / "right"), 4)
    assert len(str(raised.value)) < 500
    (tmp_path / "right" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        interop.load(str(tmp_path / "right"), 4)


@pytest.mark.parametrize("zipped", [True, False])
def test_programs_in_pickles_do_not_run(zipped, tmp_path):
    content = {"state_dict": {"weight": torch.zeros(1)}, "callback": Program(tmp_path / "made")}
    torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    problem = "not those of such an autoencoder" if zipped else "holds more than weights"
    with pytest.raises(UserError, match=problem):
        interop.load(str(tmp_path / "model.ckpt"), 4)
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "model.ckpt", weights_only=False)["callback"].close()
    assert (tmp_path / "made").exists()  # as it would have, opened without care


def test_an_untrained_network_of_the_paper_has_its_published_structure():
    ours = PaperAutoencoder(4, 3, VQ(3, 16), channels=8, channel_multipliers=(1, 2, 2), groups=4)
    theirs = small("vq")
    names = set(interop.renamed(theirs.state_dict(), interop.DIFFUSERS))
    assert names == {name for name, _ in ours.named_parameters()} | {"regularizer.codebook"}


@pytest.mark.network
def test_an_autoencoder_of_the_hub_can_be_had():
    ours = interop.load("madebyollin/taesd", 8)
    assert ours.encode(torch.zeros(1, 3, 64, 64)).mean.shape == (1, 4, 8, 8)


def test_without_a_network_an_address_ends_in_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"autoencoder.path: nobody/nothing could not be loaded") as raised:
        interop.load("nobody/nothing", 8)
    assert "\n" not in str(raised.value)

import copy
from itertools import pairwise

import pytest
import torch

from ldmlab.autoencoders.convolutional import PaperAutoencoder, SmallAutoencoder
from ldmlab.autoencoders.regularizers import FSQ, KL
from ldmlab.autoencoders.tiling import ramps, spans


def small():
    torch.manual_seed(0)
    return SmallAutoencoder(4, 3, KL(1e-4), channels=16, channel_multipliers=(1, 2)).eval()


def tiled(autoencoder, pixels):
    copied = copy.deepcopy(autoencoder)
    copied.tile(pixels)
    return copied


@pytest.mark.parametrize("length", [7, 32, 33, 47, 100, 257])
def test_tiles_cover_everything_and_share_enough(length):
    found = list(spans(length, 32, 8))
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(stop - start <= 32 for start, stop in found)
    for (_, stop), (start, _) in pairwise(found):
        assert stop - start >= 8


def test_weights_fall_towards_both_ends():
    assert ramps(8, 2, torch.device("cpu")).tolist() == [0.25, 0.75, 1, 1, 1, 1, 0.75, 0.25]


@torch.inference_mode()
def test_what_fits_into_one_tile_is_not_cut():
    whole, images = small(), torch.rand(2, 3, 32, 48) * 2 - 1
    posterior, expected = tiled(whole, 64).encode(images), whole.encode(images)
    torch.testing.assert_close(posterior.mean, expected.mean)
    torch.testing.assert_close(posterior.std, expected.std)
    torch.testing.assert_close(tiled(whole, 64).decode(expected.mean), whole.decode(expected.mean))


def without_norms(autoencoder):
    """The same with nothing that looks further than a neighbourhood, so that tiles can be exact."""
    for module in autoencoder.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    return autoencoder


@torch.inference_mode()
def test_overlaps_take_the_error_of_tiles_away():
    whole, images = without_norms(small()), torch.rand(1, 3, 96, 160) * 2 - 1
    latents = whole.encode(images).mean
    side_by_side = torch.cat([whole.encode(part).mean for part in images.split(32, dim=3)], dim=3)
    error = (tiled(whole, 64).encode(images).mean - latents).abs().mean()
    assert error < 0.25 * (side_by_side - latents).abs().mean()
    decoded = whole.decode(latents)
    side_by_side = torch.cat([whole.decode(part) for part in latents.split(8, dim=3)], dim=3)
    assert (tiled(whole, 64).decode(latents) - decoded).abs().mean() < 0.25 * (side_by_side - decoded).abs().mean()


def seam(image, position):
    """How much larger steps across a column are than those on both sides of it, on average."""
    steps = (image[..., 1:] - image[..., :-1]).abs().mean((0, 1, 2))
    return (
        steps[position - 1] / torch.cat([steps[position - 6 : position - 1], steps[position : position + 5]]).mean()
    ).item()


def test_blending_leaves_no_seam_where_tiles_put_side_by_side_have_one():
    """Trained for a moment on smooth images, so that an edge would be seen."""
    whole = small()
    smooth = torch.nn.functional.interpolate(torch.randn(8, 3, 4, 4), (128, 128), mode="bicubic").clamp(-1, 1)
    optimizer = torch.optim.Adam(whole.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        crop = torch.randint(64, ())
        batch = smooth[..., crop : crop + 64, crop : crop + 64]
        (whole(batch).images - batch).abs().mean().backward()
        optimizer.step()
    with torch.inference_mode():
        latents = whole.encode(smooth).mean
        side_by_side = torch.cat([whole.decode(part) for part in latents.split(16, dim=3)], dim=3)
        blended = tiled(whole, 64).decode(latents)
        at_once = whole.decode(latents)
    edges = [4 * place for span in spans(32, 16, 4) for place in span if 0 < place < 32]
    # patches of the decoder may have steps at these places themselves
    seams = [seam(blended, edge) / seam(at_once, edge) for edge in edges]
    print(f"side by side {seam(side_by_side, 64) / seam(at_once, 64):.2f}, blended {max(seams):.2f}")
    assert seam(side_by_side, 64) / seam(at_once, 64) > 1.4
    assert max(seams) < 1.1


@torch.inference_mode()
def test_attention_and_codes_work_in_tiles():
    paper = PaperAutoencoder(4, 3, FSQ(3, [5, 5, 5]), channels=8, channel_multipliers=(1, 1, 1), groups=4).eval()
    paper.tile(32)
    images = torch.rand(1, 3, 48, 80) * 2 - 1
    latents = paper.encode(images).mean
    assert latents.shape == (1, 3, 12, 20)
    assert paper.decode(latents).shape == images.shape


def test_tiles_are_no_part_of_the_weights():
    whole = small()
    assert tiled(whole, 32).state_dict().keys() == whole.state_dict().keys()


@pytest.mark.parametrize("pixels", [30, 12, 0, "all"])
def test_sizes_that_do_not_fit_are_named(pixels):
    with pytest.raises(ValueError, match="tile: null or a multiple of the factor"):
        small().tile(pixels)

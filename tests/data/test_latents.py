from pathlib import Path

import numpy as np
import pytest
import torch
from two_processes import in_two_processes

from ldmlab.data.latents import CachedLatents, WithImages, cache_latents, latents_key


class Source:
    """Eleven images whose pixels are their number, with labels and captions."""

    def __len__(self):
        return 11

    def __getitems__(self, indices):
        numbers = torch.tensor(list(indices))
        return {
            "image": numbers[:, None, None, None].float().repeat(1, 3, 4, 4),
            "label": numbers % 3,
            "caption": [f"number {i}" for i in indices],
            "semantic": numbers[:, None, None].repeat(1, 4, 4),
        }


def encode(images):
    return images[:, :1, ::2, ::2] / 2, torch.full((len(images), 1, 2, 2), 0.25)


def test_a_cache_gives_the_moments_and_what_the_conditioner_reads(tmp_path):
    latents = cache_latents(Source(), encode, tmp_path / "c", ("label", "caption"), batch_size=4)
    assert len(latents) == 11
    batch = latents.__getitems__([10, 3])
    assert batch["latent_mean"][:, 0, 0, 0].tolist() == [5.0, 1.5]
    assert batch["latent_std"].unique().tolist() == [0.25]
    assert batch["label"].tolist() == [1, 0]
    assert batch["caption"] == ["number 10", "number 3"]
    assert "semantic" not in batch
    assert "image" not in batch


def test_semantic_maps_take_two_bytes_a_pixel_on_the_disk(tmp_path):
    class Maps(Source):
        def __getitems__(self, rows):
            maps = torch.tensor(rows)[:, None, None].expand(-1, 4, 4) * 20
            return {**super().__getitems__(rows), "semantic": maps}

    latents = cache_latents(Maps(), encode, tmp_path / "c", ("semantic",), batch_size=4)
    batch = latents.__getitems__([10, 0])
    assert batch["semantic"].dtype == torch.int64
    assert batch["semantic"][:, 0, 0].tolist() == [200, 0]
    assert np.load(tmp_path / "c" / "00000" / "semantic.npy").dtype == np.int16


def test_latents_lie_beside_the_images_that_they_are_of(tmp_path):
    latents = cache_latents(Source(), encode, tmp_path / "c", ("label",))
    batch = WithImages(latents, Source()).__getitems__([7, 2])
    assert batch["image"][:, 0, 0, 0].tolist() == [7, 2]
    assert batch["latent_mean"][:, 0, 0, 0].tolist() == [3.5, 1]


def test_a_cache_is_made_once(tmp_path):
    cache_latents(Source(), encode, tmp_path / "c", ("label",))
    again = cache_latents(Source(), lambda images: pytest.fail("encoded again"), tmp_path / "c", ("label",))
    assert again.__getitems__([4])["latent_mean"][0, 0, 0, 0] == 2


def test_an_interrupted_cache_leaves_nothing_behind(tmp_path):
    def broken(images):
        if images.max() > 5:
            raise KeyboardInterrupt
        return encode(images)

    with pytest.raises(KeyboardInterrupt):
        cache_latents(Source(), broken, tmp_path / "c", ("label",), batch_size=4)
    assert not (tmp_path / "c").exists()
    assert len(cache_latents(Source(), encode, tmp_path / "c", ("label",))) == 11


def test_workers_open_the_files_themselves(tmp_path):
    import pickle

    latents = cache_latents(Source(), encode, tmp_path / "c")
    copy = pickle.loads(pickle.dumps(latents))
    assert isinstance(copy, CachedLatents)
    assert copy.__getitems__([2])["latent_mean"][0, 0, 0, 0] == 1


def test_the_key_depends_on_everything_the_content_depends_on():
    base = ("a", "d", "train", False, ("label",))
    others = [("b", *base[1:]), ("a", "e", *base[2:]), ("a", "d", "val", *base[3:]), (*base[:3], True, base[4])]
    keys = {latents_key(*arguments) for arguments in [base, *others, (*base[:4], ("caption",))]}
    assert len(keys) == 6


def encode_in_two(rank, folder):
    folder = Path(folder)
    latents = cache_latents(Source(), encode, folder / "c", ("label", "caption"), batch_size=2)
    batch = latents.__getitems__([10, 0, 5, 4])
    assert batch["latent_mean"][:, 0, 0, 0].tolist() == [5.0, 0.0, 2.5, 2.0]
    assert batch["label"].tolist() == [1, 0, 2, 1]
    assert batch["caption"] == ["number 10", "number 0", "number 5", "number 4"]


@pytest.mark.slow
def test_two_processes_encode_a_shard_each_that_one_reads_too(tmp_path):
    in_two_processes(encode_in_two, tmp_path)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["00000", "00001", "cost.json"]
    assert len(np.load(tmp_path / "c" / "00000" / "mean.npy")) == 5
    one = cache_latents(Source(), lambda images: pytest.fail("encoded again"), tmp_path / "c", ("label", "caption"))
    assert len(one) == 11
    alone = cache_latents(Source(), encode, tmp_path / "d", ("label", "caption"))
    everything = range(11)
    for key, values in alone.__getitems__(everything).items():
        other = one.__getitems__(everything)[key]
        assert values == other if key == "caption" else torch.equal(values, other)

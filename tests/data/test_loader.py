from itertools import islice

import pytest
import torch

from ldmlab.data.loader import EndlessBatches, Flipped, ResumableLoader, random_subset


class Numbers:
    """A source whose image i is full of i, but for its first column."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitems__(self, indices):
        image = torch.tensor(list(indices), dtype=torch.float32)[:, None, None, None].repeat(1, 1, 2, 3)
        image[..., 0] = -1
        boxes = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]).repeat(len(indices), 1, 1)
        return {"image": image, "label": torch.tensor(list(indices)), "boxes": boxes}


def test_each_pass_holds_every_image_once_in_another_order():
    stream = [index for batch in islice(EndlessBatches(10, 4, seed=0), 10) for index in batch]
    passes = [stream[i : i + 10] for i in (0, 10, 20)]
    assert [sorted(p) for p in passes] == [list(range(10))] * 3
    assert passes[0] != passes[1]


def test_a_data_set_smaller_than_a_batch_fills_it():
    (batch,) = islice(EndlessBatches(3, 8, seed=0), 1)
    assert len(batch) == 8
    assert set(batch) == {0, 1, 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restored_loader_goes_on_where_the_other_stopped(workers):
    def loader():
        return ResumableLoader(Numbers(10), EndlessBatches(10, 4, seed=3), num_workers=workers)

    full = [batch["label"].tolist() for batch in islice(loader(), 9)]
    first = loader()
    head = [batch["label"].tolist() for batch in islice(first, 4)]
    second = loader()
    second.load_state_dict(first.state_dict())
    tail = [batch["label"].tolist() for batch in islice(second, 5)]
    assert head + tail == full


def test_processes_share_a_global_batch_without_overlap():
    parts = [list(islice(EndlessBatches(12, 2, 0, rank, 3), 2)) for rank in range(3)]
    assert sorted(index for part in parts for batch in part for index in batch) == list(range(12))


def test_the_second_half_of_a_flipped_source_is_the_first_mirrored():
    batch = Flipped(Numbers(5)).__getitems__([2, 7])
    assert batch["label"].tolist() == [2, 2]
    assert torch.equal(batch["image"][1], batch["image"][0].flip(-1))
    assert not torch.equal(batch["image"][1], batch["image"][0])
    torch.testing.assert_close(batch["boxes"][1, 0], torch.tensor([0.7, 0.2, 0.9, 0.4]))


def test_a_random_subset_has_no_repeats_and_a_fixed_order():
    subset = random_subset(100, 30, seed=1)
    assert len(set(subset)) == 30
    assert subset == random_subset(100, 30, seed=1)
    assert subset[:10] == random_subset(100, 10, seed=1)

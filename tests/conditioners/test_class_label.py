import pytest
import torch

from ldmlab.conditioners.base import NoConditioner
from ldmlab.conditioners.class_label import ClassLabel
from ldmlab.types import DataInfo

DATA = DataInfo("pets", 32, "0", class_names=("cat", "dog", "fish"))
CPU = torch.device("cpu")


def test_dropped_samples_hear_what_the_null_conditioning_says():
    conditioner = ClassLabel(DATA, width=8)
    told = conditioner({"label": torch.tensor([0, 1, 2])}, torch.tensor([False, True, False])).vector
    null = conditioner.null(1, CPU).vector[0]
    assert torch.equal(told[1], null)
    assert not torch.equal(told[0], null)
    assert torch.equal(told[2], conditioner.embedding.weight[2])


def test_the_null_class_follows_from_the_number_of_classes():
    assert ClassLabel(DATA).embedding.num_embeddings == 4


@pytest.mark.parametrize(("classes", "fits"), [((), False), (("cat",), True)])
def test_unlabelled_data_is_a_problem(classes, fits):
    assert (ClassLabel.problem_with(DataInfo("pets", 32, "0", class_names=classes)) is None) == fits


def test_no_conditioner_says_nothing():
    conditioner = NoConditioner(DATA)
    assert conditioner({"label": torch.tensor([0])}).vector is None
    assert conditioner.null(2, CPU).vector is None
    assert list(conditioner.parameters()) == []

"""What every conditioner promises, and how several are one."""

import pytest
import torch

from ldmlab.conditioners.base import Conditioners, draw_drop
from ldmlab.conditioners.class_label import ClassLabel
from ldmlab.conditioners.inpainting import InPainting
from ldmlab.conditioners.layout import Layout
from ldmlab.conditioners.semantic import SemanticMap
from ldmlab.conditioners.super_resolution import SuperResolution
from ldmlab.conditioners.text import Text
from ldmlab.types import ROUTES, DataInfo, LatentInfo

DATA = DataInfo(
    "pets",
    16,
    "0",
    class_names=("cat", "dog", "fish"),
    semantic_classes=("ground", "pet"),
    box_classes=("head", "tail"),
    has_captions=True,
)
LATENTS = LatentInfo(4, 3)
CPU = torch.device("cpu")

MEMBERS = {
    "class": lambda: ClassLabel(DATA, LATENTS, width=8),
    "class as token": lambda: ClassLabel(DATA, LATENTS, width=8, mechanism="cross_attention"),
    "text": lambda: Text(DATA, LATENTS, width=8, layers=1, heads=2),
    "layout": lambda: Layout(DATA, LATENTS, width=8, layers=1, heads=2),
    "semantic": lambda: SemanticMap(DATA, LATENTS, channels=4, width=6),
    "semantic as tokens": lambda: SemanticMap(DATA, LATENTS, channels=4, width=6, mechanism="cross_attention"),
    "super-resolution": lambda: SuperResolution(DATA, LATENTS, factor=4),
    "super-resolution x2": lambda: SuperResolution(DATA, LATENTS, factor=2),
    "super-resolution x8": lambda: SuperResolution(DATA, LATENTS, factor=8),
    "in-painting": lambda: InPainting(DATA, LATENTS),
}


def every(test):
    return pytest.mark.parametrize("build", MEMBERS.values(), ids=MEMBERS.keys())(test)


def batch(count=3, seed=0):
    """Everything that conditioners may be told of `count` images."""
    torch.manual_seed(seed)
    captions = ["a cat", "a dog that is left of a fish", "größer"]
    labels = torch.randint(-1, 2, (count, 4))
    return {
        "image": torch.rand(count, 3, 16, 16) * 2 - 1,
        "label": torch.randint(3, (count,)),
        "caption": [captions[i % 3] for i in range(count)],
        "semantic": torch.randint(2, (count, 16, 16)),
        "boxes": torch.rand(count, 4, 4),
        "box_labels": labels,
    }


def told(conditioner, data):
    """The batch with what the conditioner makes of its images, latents included."""
    data = {**data, **conditioner.tell(data, range(len(data["image"])))}
    for name in conditioner.encoded:
        data[f"{name}_latent"] = torch.nn.functional.avg_pool2d(data[name], LATENTS.factor)
    return data


def routes(conditioning):
    return {name: getattr(conditioning, name) for name in ROUTES if getattr(conditioning, name) is not None}


def heard(conditioning, row):
    """What one sample hears: tokens that are masked are not heard."""
    parts = {name: value[row] for name, value in routes(conditioning).items() if name != "token_mask"}
    if conditioning.token_mask is not None:
        parts["tokens"] = parts["tokens"][conditioning.token_mask[row]]
    return parts


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)


@every
def test_the_routes_have_the_sizes_that_are_stated(build):
    conditioner = build().eval()
    found = conditioner(told(conditioner, batch()))
    sizes = {"vector": conditioner.vector_width, "tokens": conditioner.token_width}
    for route, width in sizes.items():
        value = getattr(found, route)
        assert (0 if value is None else value.shape[-1]) == width
    spatial = found.spatial
    assert (0 if spatial is None else spatial.shape[1]) == conditioner.spatial_channels
    if spatial is not None:
        assert spatial.shape[2:] == (4, 4)  # of the latents


@every
def test_conditions_of_two_images_differ(build):
    conditioner = build().eval()
    found = conditioner(told(conditioner, batch()))
    one, other = heard(found, 0), heard(found, 1)
    assert any(one[name].shape != other[name].shape or not torch.allclose(one[name], other[name]) for name in one)


@every
def test_who_hears_nothing_hears_the_same_whatever_is_said(build):
    conditioner = build().eval()
    data = told(conditioner, batch())
    partly = conditioner(data, torch.tensor([False, True, False]))
    null = conditioner(told(conditioner, batch(seed=1)), torch.ones(3, dtype=torch.bool))
    assert_same(heard(partly, 1), heard(null, 0), rtol=1e-5, atol=1e-6)
    assert_same(heard(partly, 0), heard(conditioner(data), 0), rtol=1e-5, atol=1e-6)
    both = heard(partly, 0), heard(null, 0)
    assert any(
        both[0][name].shape != both[1][name].shape or not torch.equal(both[0][name], both[1][name]) for name in both[0]
    )


@every
def test_to_say_nothing_is_to_be_dropped(build):
    conditioner = build().eval()
    nothing = conditioner.nothing(2, (16, 16))
    if nothing is None:
        assert isinstance(conditioner, SuperResolution)  # an image is a large thing to leave out
        return
    for name in conditioner.encoded:
        nothing[f"{name}_latent"] = torch.full((2, 3, 4, 4), 0.3)  # whatever grey is encoded to
    null = conditioner(told(conditioner, batch()), torch.ones(3, dtype=torch.bool))
    assert_same(heard(conditioner(nothing), 0), heard(null, 0), rtol=1e-5, atol=1e-6)


@every
def test_a_sample_hears_the_same_alone_and_in_a_batch(build):
    conditioner = build().eval()
    data = told(conditioner, batch())
    together = conditioner(data)
    for row in range(3):
        alone = conditioner({key: value[row : row + 1] for key, value in data.items()})
        assert_same(heard(alone, 0), heard(together, row), rtol=1e-4, atol=1e-6)


@every
@pytest.mark.parametrize("dropped", [2, 0, 8])
def test_every_weight_is_trained_by_every_batch(build, dropped):
    # processes that train together wait for the gradient of each
    conditioner = build()
    found = conditioner(told(conditioner, batch(8)), torch.arange(8) < dropped)
    parameters = dict(conditioner.named_parameters())
    if parameters:
        loss = sum(value.square().sum() + value.sum() for name, value in routes(found).items() if name != "token_mask")
        loss.backward()
    assert [name for name, parameter in parameters.items() if parameter.grad is None] == []


@every
def test_what_is_drawn_for_an_image_depends_on_its_seed_alone(build):
    conditioner = build()
    data = batch()
    together = conditioner.tell(data, [5, 6, 7])
    alone = conditioner.tell({key: value[1:2] for key, value in data.items()}, [6])
    for name, value in together.items():
        assert torch.equal(value[1:2], alone[name])


def test_no_conditioners_at_all_are_the_unconditional_model():
    nobody = Conditioners({})
    assert routes(nobody({"label": torch.tensor([0])})) == {}
    assert routes(nobody.null({}, 2, CPU)) == {}
    assert list(nobody.parameters()) == []


def test_the_routes_of_several_stand_side_by_side():
    parts = {"class": MEMBERS["class"](), "text": MEMBERS["text"](), "layout": Layout(DATA, LATENTS, width=12, heads=2)}
    parts |= {"semantic": MEMBERS["semantic"](), "inpainting": MEMBERS["in-painting"]()}
    several = Conditioners(parts).eval()
    found = several(told(several, batch()))
    assert found.vector.shape == (3, 8)
    assert found.tokens.shape == (3, 30 + 5, 12)  # the longest caption, a blank and its start; four boxes and theirs
    assert found.token_mask.shape == (3, 35)
    assert found.spatial.shape == (3, 4 + 4, 4, 4)
    assert set(several.needs) == {"label", "caption", "boxes", "box_labels", "semantic", "image"}
    alone = parts["semantic"](batch()).spatial
    torch.testing.assert_close(found.spatial[:, :4], alone)


def test_each_of_several_can_be_left_out_alone():
    several = Conditioners({"class": MEMBERS["class"](), "semantic": MEMBERS["semantic"]()}).eval()
    data = batch()
    full, null = several(data), several.null(data, 3, CPU)
    partly = several(data, {"class": torch.tensor([True, True, True])})
    assert torch.equal(partly.vector, null.vector)
    assert torch.equal(partly.spatial, full.spatial)


@pytest.mark.parametrize("names", [["class"], ["class", "text"], ["a", "b", "c"]])
def test_nothing_is_heard_at_the_stated_rate(names):
    torch.manual_seed(0)
    drop = draw_drop(names, 40_000, 0.15, 0.3, CPU)
    gone = drop if isinstance(drop, torch.Tensor) else torch.stack(list(drop.values()))
    nothing = gone if len(names) == 1 else gone.all(0)
    assert nothing.float().mean().item() == pytest.approx(0.15, abs=0.006)


def test_one_of_several_is_missed_as_often_as_asked():
    torch.manual_seed(0)
    drop = draw_drop(["class", "text"], 40_000, 0.1, 0.2, CPU)
    only = (drop["class"] & ~drop["text"]).float().mean().item()
    assert only == pytest.approx(0.9 * 0.2 * 0.8, abs=0.006)
    assert isinstance(draw_drop(["class", "text"], 4, 0.1, 0.0, CPU), torch.Tensor)


@pytest.mark.parametrize(
    ("kind", "lacks"),
    [(Text, "captions"), (Layout, "boxes"), (SemanticMap, "semantic maps"), (ClassLabel, "class labels")],
)
def test_data_that_do_not_know_it_are_a_problem(kind, lacks):
    assert lacks in kind.problem_with(DataInfo("pets", 16, "0"))
    assert kind.problem_with(DATA) is None


def test_the_null_class_follows_from_the_number_of_classes():
    assert MEMBERS["class"]().embedding.num_embeddings == 4

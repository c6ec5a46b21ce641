"""Scores are 1 for real pictures with their own descriptions, low for those of others, and right for made-up cases."""

import math

import pytest
import torch
from sklearn.metrics import jaccard_score

from ldmlab.data.shapes import CLASS_NAMES, COLOURS, RELATIONS, SHAPE_NAMES, SIZES, Shapes, captions, scenes
from ldmlab.data.shapes_oracle import SeenObject, ShapesOracle
from ldmlab.data.shapes_scores import (
    Told,
    read_caption,
    score_boxes,
    score_captions,
    score_labels,
    score_semantic,
)

NAN = math.nan


def thing(words, x=0.5, y=0.5, box=(0.4, 0.4, 0.6, 0.6)):
    """A seen object described like "small red circle", at `x`, `y`."""
    size, colour, shape = words.split()
    numbers = SHAPE_NAMES.index(shape), list(COLOURS).index(colour), list(SIZES).index(size)
    return SeenObject(*numbers, box=box, centre=(x, y), area=0.04, likeness=1.0)


def told(*objects, relation=None):
    """The same for captions, with "-" for what is left open."""
    lists = SHAPE_NAMES, list(COLOURS), list(SIZES)
    numbers = []
    for words in objects:
        size, colour, shape = words.split()
        pairs = zip(lists, (shape, colour, size), strict=True)
        numbers.append(tuple(None if word == "-" else names.index(word) for names, word in pairs))
    return Told(tuple(numbers), None if relation is None else RELATIONS.index(relation))


def scored(scores):
    return {name: pytest.approx(values.tolist(), nan_ok=True) for name, values in scores.items()}


@pytest.fixture(scope="module", params=[(32, 3, 1.0, 60), (64, 3, 1.0, 30), (32, 1, 1.6, 30)], ids=str)
def real(request):
    torch.set_num_threads(1)  # a module's fixture comes before conftest's, which does the same
    size, max_objects, zoom, count = request.param
    batch = Shapes(size, max_objects=max_objects, zoom=zoom).split("val").__getitems__(range(count))
    return batch, *ShapesOracle(max_objects, zoom).read(batch["image"])


# Real pictures


def test_real_pictures_show_all_that_their_captions_tell(real):
    batch, seen, _ = real
    for values in score_captions(seen, batch["caption"]).values():
        assert (values.isnan() | (values == 1)).all()


def test_real_pictures_show_their_classes_boxes_and_maps(real):
    batch, seen, maps = real
    assert score_labels(seen, batch["label"])["label"].eq(1).all()
    assert score_boxes(seen, batch["boxes"], batch["box_labels"])["iou"].mean() > 0.99
    semantic = score_semantic(maps, batch["semantic"], 1 + len(SHAPE_NAMES))
    assert semantic["iou"].mean() > 0.99
    assert semantic["accuracy"].mean() > 0.998


def test_descriptions_of_other_pictures_score_low(real):
    batch, seen, maps = real
    swapped = score_captions(seen, batch["caption"][1:] + batch["caption"][:1])
    assert swapped["all"].nanmean() < 0.05
    assert swapped["shape"].nanmean() < 0.4
    assert swapped["colour"].nanmean() < 0.4
    assert score_labels(seen, batch["label"].roll(1))["label"].mean() < 0.1
    assert score_boxes(seen, batch["boxes"].roll(1, 0), batch["box_labels"].roll(1, 0))["iou"].mean() < 0.2
    assert score_semantic(maps, batch["semantic"].roll(1, 0), 9)["iou"].mean() < 0.5


def test_an_empty_picture_scores_zero(real):
    batch, seen, _ = real
    nothing = [[] for _ in seen]
    for values in score_captions(nothing, batch["caption"]).values():
        assert (values.isnan() | (values == 0)).all()
    for values in (
        *score_labels(nothing, batch["label"]).values(),
        score_boxes(nothing, batch["boxes"], batch["box_labels"])["iou"],
    ):
        assert values.eq(0).all()


# Captions


@pytest.mark.parametrize("max_objects", [1, 2, 3])
def test_read_caption_inverts_captions(max_objects):
    scene = scenes(3, range(300), max_objects)
    for row, caption in enumerate(captions(scene)):
        read = read_caption(caption)
        count = scene.count[row]
        expected = zip(
            *(column[row, :count].tolist() for column in (scene.shape, scene.colour, scene.size)), strict=True
        )
        assert read.objects == tuple(expected)
        if count == 1:
            assert read.relation is None
        else:
            x, y = scene.centre[row, 0] - scene.centre[row, 1]
            assert (
                RELATIONS[read.relation]
                == max({"left of": -x, "right of": x, "above": -y, "below": y}.items(), key=lambda pair: pair[1])[0]
            )


def test_class_names_are_captions():
    for number, name in enumerate(CLASS_NAMES):
        assert read_caption(name) == Told(((number // 8, number % 8, None),))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a blue star", told("- blue star")),
        ("Star", told("- - star")),
        ("a large ring", told("large - ring")),
        ("something pink", told("- pink -")),
        ("an orange circle, red square", told("- orange circle", "- red square")),
        ("a star to the left of a small white heart", told("- - star", "small white heart", relation="left of")),
        ("red circle above blue cross, below green ring",
         told("- red circle", "- blue cross", "- green ring", relation="above")),
        ("a star and a heart below a ring", told("- - star", "- - heart", "- - ring")),
        ("a star above the ground", told("- - star")),
        ("circle circle", told("- - circle", "- - circle")),
        ("", None),
        ("a large photograph of the left of a house", None),
    ],
)  # fmt: skip
def test_read_caption_understands_shorter_prompts(caption, expected):
    assert read_caption(caption) == expected


def test_caption_scores_are_shares_of_the_told_objects():
    seen = [thing("large blue star", y=0.2), thing("small red ring", y=0.8)]
    scores = score_captions([seen], ["a large blue star above a medium red circle, and a small green ring"])
    # One of two seen objects is matched with the circle for its colour or with the ring for its shape and size.
    assert scored(scores) == {"shape": [2 / 3], "colour": [1 / 3], "size": [2 / 3], "relation": [0], "all": [0]}


def test_what_a_caption_leaves_open_is_not_scored():
    seen = [thing("large blue star")]
    assert scored(score_captions([seen] * 3, ["blue", "a star", "nothing"])) == {
        "shape": [NAN, 1, NAN],
        "colour": [1, NAN, NAN],
        "size": [NAN, NAN, NAN],
        "relation": [NAN, NAN, NAN],
        "all": [1, 1, NAN],
    }


def test_an_object_too_many_spoils_all_and_nothing_else():
    seen = [thing("large blue star"), thing("small red ring")]
    scores = score_captions([seen], ["a large blue star"])
    assert scored(scores) == {"shape": [1], "colour": [1], "size": [1], "relation": [NAN], "all": [0]}


def test_one_seen_object_does_not_stand_for_two():
    scores = score_captions([[thing("small red ring")]], ["a small red ring above a small red ring"])
    assert scored(scores) == {"shape": [0.5], "colour": [0.5], "size": [0.5], "relation": [0], "all": [0]}


@pytest.mark.parametrize(
    ("x", "y", "relation"),
    [(0.1, 0.4, "left of"), (0.9, 0.6, "right of"), (0.6, 0.1, "above"), (0.4, 0.9, "below")],
)
def test_relations_follow_the_larger_offset(x, y, relation):
    seen = [thing("small blue star", x, y), thing("large red ring")]
    prompts = [f"a blue star {words} a red ring" for words in RELATIONS]
    scores = score_captions([seen] * 4, prompts)
    assert scores["relation"].tolist() == scores["all"].tolist() == [float(words == relation) for words in RELATIONS]


def test_of_two_equal_objects_either_may_be_the_first():
    seen = [thing("small red ring", x=0.2), thing("small red ring", x=0.8)]
    prompts = ["a red ring left of a red ring", "a red ring right of a red ring", "a red ring above a red ring"]
    assert score_captions([seen] * 3, prompts)["relation"].tolist() == [1, 1, 0]


# Labels, boxes and maps


def test_labels_are_scored_by_the_largest_object():
    seen = [[thing("large blue star"), thing("small red ring")], [thing("small red ring"), thing("small red star")], []]
    labels = torch.tensor([CLASS_NAMES.index("blue star"), CLASS_NAMES.index("red star"), 0])
    assert scored(score_labels(seen, labels)) == {"label": [1, 0, 0], "shape": [1, 0, 0], "colour": [1, 1, 0]}


def test_boxes_are_matched_one_to_one_for_the_largest_sum():
    star, ring = SHAPE_NAMES.index("star"), SHAPE_NAMES.index("ring")
    seen = [thing("small red star", box=(0.0, 0.0, 0.4, 0.2)), thing("small red star", box=(0.0, 0.0, 0.2, 0.2))]
    boxes = torch.tensor([[[0.0, 0.0, 0.2, 0.2], [0.0, 0.0, 0.3, 0.2], [0.0, 0.0, 0.2, 0.2], [0.0, 0.0, 0.0, 0.0]]] * 2)
    labels = torch.tensor([[star, star, ring, -1], [-1, -1, -1, -1]])
    assert scored(score_boxes([seen, seen], boxes, labels)) == {"iou": [(1 + 0.75 + 0) / 3, NAN]}


def test_semantic_scores_equal_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    maps, other = torch.randint(0, 5, (2, 6, 10, 10), generator=generator)
    maps[0], other[0] = 0, 0
    maps[1] = 8
    scores = score_semantic(maps, other, 9)
    for row, (seen, truth) in enumerate(zip(maps.flatten(1), other.flatten(1), strict=True)):
        assert scores["iou"][row].item() == pytest.approx(jaccard_score(truth, seen, average="macro", zero_division=0))
        assert scores["accuracy"][row] == (seen == truth).float().mean()


def test_the_data_set_s_own_oracle_finds_in_real_images_what_they_say():
    data = Shapes(image_size=32, train_images=0, val_images=20)
    batch = data.split("val").__getitems__(range(20))
    entries = ("label", "caption", "boxes", "semantic")
    scores = data.oracle().scores(batch["image"], batch, entries)
    assert {"label", "label_shape", "caption_all", "boxes_iou", "semantic_iou", "likeness"} <= scores.keys()
    assert all(value.shape == (20,) for value in scores.values())
    assert all(value.nanmean() > 0.9 for value in scores.values())
    only = data.oracle().scores(batch["image"], batch, ("label",))
    assert set(only) == {"label", "label_shape", "label_colour", "likeness"}

"""The embedded shapes: what captions, labels, maps and boxes say is what the pictures show."""

import colorsys
import math
import pickle
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy import ndimage
from torch.utils.data import DataLoader

from ldmlab.data.shapes import CLASS_NAMES, COLOURS, SHAPE_NAMES, SIZES, Shapes, _splitmix
from ldmlab.data.signed_distance import SHAPES
from ldmlab.errors import UserError

CONFIG = Path(__file__).parents[2] / "conf" / "data" / "shapes.yaml"
TENSORS = ("image", "label", "semantic", "boxes", "box_labels")


def read(image_size, count, split="train", **options):
    source = Shapes(image_size, **options).split(split)
    return source.__getitems__(range(count))


@pytest.fixture(scope="module")
def scenes():
    return read(128, 160)


@pytest.fixture(scope="module")
def lone_objects():
    return read(256, 160, max_objects=1)


def phrases(caption):
    """The objects of a caption, each as size, colour and shape, and the relation of the first two, if any."""
    relation = next((word for word in ("left of", "right of", "above", "below") if word in caption), None)
    text = caption.replace(", and ", "|")
    if relation:
        text = text.replace(f" {relation} ", "|")
    return [tuple(phrase.removeprefix("a ").split(" ")) for phrase in text.split("|")], relation


# Signed distances


def outline(name):
    """Corners of the shape's outline, as complex numbers, from the shape's definition."""
    if name == "heart":
        lobe = 0.25 + 0.75j + math.sqrt(2) / 4 * np.exp(1j * np.linspace(-math.pi / 4, 3 * math.pi / 4, 400))
        right = np.concatenate([[0], lobe])
        return 1.6 * (np.concatenate([right, -np.conj(right[::-1])]) - 0.56j)
    turn = np.exp(1j * np.linspace(0, 2 * math.pi, 720, endpoint=False))
    if name == "circle":
        return 0.9 * turn
    if name == "square":
        return 0.76 * np.array([1 + 1j, -1 + 1j, -1 - 1j, 1 - 1j])
    if name == "triangle":
        return 1.08j * turn[::240]
    if name == "star":
        return 1j * np.stack([1.08 * turn[::144], 0.46 * turn[72::144]], axis=1).ravel()
    if name == "diamond":
        return np.array([0.66, 1.08j, -0.66, -1.08j])
    arm = np.array([0.98 - 0.30j, 0.98 + 0.30j, 0.30 + 0.30j])
    return np.concatenate([arm * 1j**quarter for quarter in range(4)])


def distance_to_outline(points, corners):
    """Brute force: the nearest of all edges, with the sign from the winding number."""
    start, edge = corners, np.roll(corners, -1) - corners
    keep = np.abs(edge) > 1e-12
    start, edge = start[keep], edge[keep]
    offset = points[..., None] - start
    along = ((offset * edge.conj()).real / np.abs(edge) ** 2).clip(0, 1)
    winding = np.angle((start + edge - points[..., None]) / (start - points[..., None])).sum(axis=-1)
    return np.abs(offset - along * edge).min(axis=-1) * np.where(np.abs(winding) > 1, -1, 1)


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "ring"])
def test_signed_distance_equals_the_brute_force_distance_to_the_outline(name):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-2, 2, (2, 400))
    expected = distance_to_outline(x + 1j * y, outline(name))
    np.testing.assert_allclose(SHAPES[name](torch.from_numpy(x), torch.from_numpy(y)).numpy(), expected, atol=1e-4)


def test_ring_is_a_disc_with_a_smaller_disc_taken_out():
    x, y = torch.rand(2, 400, dtype=torch.float64) * 4 - 2
    radius = torch.hypot(x, y)
    expected = torch.maximum(radius - 0.94, 0.50 - radius)
    torch.testing.assert_close(SHAPES["ring"](x, y), expected)


# What a picture shows


def test_a_batch_has_the_shapes_types_and_ranges_of_the_data_protocol():
    batch = read(16, 40)
    assert batch["image"].shape == (40, 3, 16, 16)
    assert batch["image"].dtype == torch.float32
    assert batch["image"].min() >= -1
    assert batch["image"].max() <= 1
    assert batch["image"].min() < -0.8  # the range is used
    assert batch["image"].max() > 0.8
    assert [(tuple(batch[key].shape), batch[key].dtype) for key in TENSORS[1:]] == [
        ((40,), torch.int64),
        ((40, 16, 16), torch.int64),
        ((40, 3, 4), torch.float32),
        ((40, 3), torch.int64),
    ]
    assert [type(caption) for caption in batch["caption"]] == [str] * 40


def test_circles_have_the_area_pi_r_squared(lone_objects):
    seen = 0
    for shapes, box, semantic in zip(
        lone_objects["box_labels"], lone_objects["boxes"], lone_objects["semantic"], strict=True
    ):
        if SHAPE_NAMES[shapes[0]] == "circle":
            radius = (box[0, 2] - box[0, 0]).item() / 2
            area = (semantic == 1).sum().item() / 256**2
            assert area == pytest.approx(math.pi * radius**2, rel=0.01)
            seen += 1
    assert seen > 5


def test_boxes_are_tight_round_the_pixels_of_the_semantic_map(lone_objects):
    for box, label, semantic in zip(
        lone_objects["boxes"], lone_objects["box_labels"], lone_objects["semantic"], strict=True
    ):
        rows, columns = torch.nonzero(semantic == 1 + label, as_tuple=True)
        edges = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        # A sharp tip covers less than half of its last pixels: a star's, 36 degrees wide, of the last 3.
        assert ((box[0] * 256 - edges).abs() < 3.5).all()
        assert ((box[0, :2] * 256 < edges[:2] + 0.5) & (box[0, 2:] * 256 > edges[2:] - 0.5)).all()


def test_objects_lie_apart_and_inside_and_each_has_its_box(scenes):
    for semantic, boxes, labels in zip(scenes["semantic"].numpy(), scenes["boxes"], scenes["box_labels"], strict=True):
        parts, number = ndimage.label(semantic > 0, np.ones((3, 3)))
        assert number == (labels >= 0).sum()
        assert not np.concatenate([semantic[[0, -1]], semantic[:, [0, -1]].T]).any()
        middles = [np.mean(np.nonzero(parts == part), axis=1)[::-1] / 128 for part in range(1, number + 1)]
        found = {int(semantic[parts == part][0]) - 1 for part in range(1, number + 1)}
        assert found == set(labels[labels >= 0].tolist())
        for box, label in zip(boxes, labels, strict=True):
            if label < 0:
                assert (box == 0).all()
            else:
                assert (
                    sum(bool((box[:2] < m).all() and (box[2:] > m).all()) for m in torch.tensor(np.array(middles))) == 1
                )


def test_label_is_the_colour_and_shape_that_the_caption_names_first(scenes):
    for label, caption in zip(scenes["label"], scenes["caption"], strict=True):
        (_, colour, shape), *_ = phrases(caption)[0]
        assert CLASS_NAMES[label] == f"{colour} {shape}"


def test_caption_names_every_shape_in_the_order_of_the_boxes(scenes):
    for labels, caption in zip(scenes["box_labels"], scenes["caption"], strict=True):
        objects, relation = phrases(caption)
        assert [shape for _, _, shape in objects] == [SHAPE_NAMES[label] for label in labels if label >= 0]
        assert (relation is None) == (len(objects) == 1)


def test_captions_are_plain_english(scenes):
    thing = rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    pattern = re.compile(rf"{thing}( (left of|right of|above|below) {thing}(, and {thing})?)?")
    assert all(pattern.fullmatch(caption) for caption in scenes["caption"])


def test_relation_in_the_caption_is_where_the_boxes_are():
    scenes, seen = read(8, 2000), set()
    for boxes, caption in zip(scenes["boxes"], scenes["caption"], strict=True):
        relation = phrases(caption)[1]
        if relation:
            x, y = ((boxes[0, :2] + boxes[0, 2:]) - (boxes[1, :2] + boxes[1, 2:])).tolist()
            assert max(abs(x), abs(y)) > 1.15 * min(abs(x), abs(y))  # no diagonals
            sideways = "left of" if x < 0 else "right of"
            assert relation == (sideways if abs(x) > abs(y) else "above" if y < 0 else "below")
            seen.add(relation)
    assert seen == {"left of", "right of", "above", "below"}


def test_size_in_the_caption_is_the_size_of_the_box_and_the_main_object_is_the_largest(scenes):
    widths = {size: [] for size in SIZES}
    for boxes, caption in zip(scenes["boxes"], scenes["caption"], strict=True):
        sizes = [size for size, _, _ in phrases(caption)[0]]
        assert all(list(SIZES).index(size) < list(SIZES).index(sizes[0]) for size in sizes[1:])
        for box, size in zip(boxes, sizes, strict=False):
            widths[size].append((box[3] - box[1]).item())
    assert [round(np.median(values), 1) for values in widths.values()] == [0.2, 0.3, 0.4]
    # Shapes differ in height by a quarter at most, so sizes overlap little.
    assert max(widths["small"]) < 0.31 < min(widths["large"])


def test_colour_in_the_caption_is_the_hue_of_the_object(lone_objects):
    hues = {"red": 0, "orange": 30, "yellow": 56, "green": 130, "cyan": 183, "blue": 234, "pink": 320}
    seen = set()
    for image, semantic, caption in zip(
        lone_objects["image"], lone_objects["semantic"].numpy(), lone_objects["caption"], strict=True
    ):
        inner = torch.from_numpy(ndimage.binary_erosion(semantic > 0, iterations=2))
        hue, saturation, _ = colorsys.rgb_to_hsv(*(image[:, inner].mean(dim=1).double() / 2 + 0.5).tolist())
        colour = phrases(caption)[0][0][1]
        if colour == "white":
            assert saturation < 0.02
        else:
            assert abs((360 * hue - hues[colour] + 180) % 360 - 180) < 8
        seen.add(colour)
    assert seen == set(COLOURS)


def test_every_object_stands_out_from_every_background(lone_objects):
    for image, semantic in zip(lone_objects["image"], lone_objects["semantic"], strict=True):
        rgb = image / 2 + 0.5
        object_colour = rgb[:, semantic > 0].mean(dim=1)
        ground = rgb[:, ndimage.binary_dilation(semantic.numpy() > 0, iterations=3) == 0]
        assert (ground - object_colour[:, None]).norm(dim=0).min() > 0.25
        assert (ground.amax(dim=0) - ground.amin(dim=0)).max() < 0.3  # muted: nearly grey


def test_a_turned_square_does_not_become_a_diamond(lone_objects):
    ratios = {"square": [], "diamond": []}
    for label, box, semantic in zip(
        lone_objects["box_labels"], lone_objects["boxes"][:, 0], lone_objects["semantic"], strict=True
    ):
        if (name := SHAPE_NAMES[label]) in ratios:
            box_area = ((box[2] - box[0]) * (box[3] - box[1])).item()
            ratios[name].append((semantic > 0).sum().item() / 256**2 / box_area)
    # A square fills 1 / (cos + sin)^2 of its box, which is 0.71 at 12 degrees and one half at 45; a diamond a half.
    assert min(ratios["square"]) > 0.69
    assert max(ratios["diamond"]) < 0.55


def test_a_larger_picture_averaged_down_is_the_smaller_one():
    small, large = read(32, 100), read(96, 100)
    averaged = torch.nn.functional.avg_pool2d(large["image"], 3)
    difference = (averaged - small["image"]).abs()
    assert difference.mean() < 0.003
    assert (difference > 0.2).float().mean() < 0.0005  # sharp tips only
    assert torch.equal(small["boxes"], large["boxes"])
    assert small["caption"] == large["caption"]


# What a data set is


def test_hash_is_splitmix64():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # first outputs of seed 0
    assert _splitmix(np.arange(1, 4, dtype=np.uint64)).tolist() == published


@pytest.mark.parametrize("image_size", [32, 33])
def test_a_scene_does_not_depend_on_the_batch_that_it_is_in(image_size):
    source = Shapes(image_size).split("train")
    indices = [7, 49_999, 0, 7, 123]
    together = source.__getitems__(indices)
    for place, index in enumerate(indices):
        alone = source.__getitems__([index])
        for key in TENSORS:
            assert torch.equal(together[key][place], alone[key][0])
        assert together["caption"][place] == alone["caption"][0]


def test_large_pictures_drawn_in_several_passes_are_the_same():
    source = Shapes(200).split("train")
    together = source.__getitems__(range(15))
    for key in ("image", "semantic"):
        assert torch.equal(together[key], torch.cat([source.__getitems__([i])[key] for i in range(15)]))


def test_validation_scenes_are_those_after_the_training_scenes():
    validation = read(16, 30, "val", train_images=20, val_images=30)
    whole = read(16, 50)
    assert torch.equal(validation["image"], whole["image"][20:])


def test_no_picture_is_in_both_splits_or_twice_in_one():
    pictures = [read(8, 1000, split, train_images=1000, val_images=1000)["image"] for split in ("train", "val")]
    assert len(torch.cat(pictures).flatten(1).unique(dim=0)) == 2000


def test_another_seed_gives_other_scenes():
    first, second = read(8, 50), read(8, 50, seed=1)
    assert not (first["image"] == second["image"]).flatten(1).all(dim=1).any()


def test_classes_and_numbers_of_objects_are_equally_frequent():
    batch = read(8, 6400)
    counts = torch.bincount(batch["label"], minlength=64)
    assert len(counts) == 64
    assert ((counts - 100).abs() < 5 * math.sqrt(100)).all()
    numbers = torch.bincount((batch["box_labels"] >= 0).sum(dim=1), minlength=4)
    assert numbers[0] == 0
    assert ((numbers[1:] - 6400 / 3).abs() < 5 * math.sqrt(6400 * 2 / 9)).all()


def test_other_objects_are_of_any_class_but_that_of_the_main_object():
    seen = set()
    for caption in read(8, 800)["caption"]:
        main, *others = [(colour, shape) for _, colour, shape in phrases(caption)[0]]
        assert main not in others
        seen.update(others)
    assert len(seen) == 64


@pytest.mark.parametrize("max_objects", [1, 2])
def test_max_objects_limits_the_objects_of_a_scene(max_objects):
    batch = read(8, 100, max_objects=max_objects)
    assert batch["boxes"].shape == (100, max_objects, 4)
    assert (batch["box_labels"] >= 0).sum(dim=1).max() == max_objects
    assert max(len(phrases(caption)[0]) for caption in batch["caption"]) == max_objects


def test_info_names_what_the_batch_numbers():
    info = Shapes(image_size=16).info
    assert (info.name, info.image_size, info.num_classes, info.has_captions) == ("shapes", 16, 64, True)
    assert "red circle" in info.class_names
    assert len(set(info.class_names)) == 64
    assert info.semantic_classes == ("background", *info.box_classes)


def test_fingerprint_changes_with_every_option_and_only_then():
    options = [{}, {"image_size": 16}, {"train_images": 1}, {"val_images": 1}, {"seed": 1}, {"max_objects": 1}]
    assert len({Shapes(**option).info.fingerprint for option in options}) == len(options)
    assert Shapes().info.fingerprint == Shapes(32, 50_000, 5_000, 0, 3).info.fingerprint


def test_config_is_the_data_set_with_its_defaults():
    built = instantiate(OmegaConf.load(CONFIG))
    assert isinstance(built, Shapes)
    assert built.info == Shapes().info


def test_a_data_loader_reads_a_split_a_batch_at_a_time():
    source = pickle.loads(pickle.dumps(Shapes(8, train_images=10).split("train")))
    batches = list(DataLoader(source, batch_size=4, collate_fn=dict))
    assert [len(batch["caption"]) for batch in batches] == [4, 4, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 7}, "image_size is 7"),
        ({"max_objects": 0}, "max_objects is 0"),
        ({"max_objects": 4}, "max_objects is 4"),
        ({"train_images": -1}, "train_images is -1"),
        ({"val_images": -1}, "val_images is -1"),
    ],
)
def test_a_bad_option_is_a_user_error_in_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        Shapes(**options)
    assert "\n" not in str(caught.value)


def test_an_unknown_split_is_a_user_error():
    with pytest.raises(UserError, match='no split "test"'):
        Shapes().split("test")


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_out_of_range_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"index {index} "):
        Shapes(train_images=10).split("train").__getitems__([0, index])


def test_an_empty_batch_is_empty():
    batch = read(16, 0)
    assert batch["image"].shape == (0, 3, 16, 16)
    assert batch["caption"] == []


@pytest.mark.slow
def test_one_thread_draws_five_thousand_pictures_a_second():
    source = Shapes().split("train")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = []
        for start in range(0, 20 * 256, 256):
            begun = time.process_time()
            source.__getitems__(range(start, start + 256))
            rates.append(256 / (time.process_time() - begun))
    finally:
        torch.set_num_threads(threads)
    assert max(rates) > 5000  # the best batch: others share the machine


def test_zoomed_objects_are_larger_and_inside_the_picture():
    plain, zoomed = (
        Shapes(val_images=500, max_objects=1, zoom=zoom).split("val").__getitems__(range(500)) for zoom in (1.0, 1.7)
    )
    assert zoomed["label"].equal(plain["label"])
    sides = [batch["boxes"][:, 0, 2:] - batch["boxes"][:, 0, :2] for batch in (plain, zoomed)]
    ratio = sides[1] / sides[0]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1.7), atol=1e-4, rtol=0)
    assert zoomed["boxes"].min() > 0
    assert zoomed["boxes"].max() < 1


@pytest.mark.parametrize(("zoom", "max_objects"), [(1.8, 1), (0.4, 1), (1.1, 2)])
def test_a_zoom_for_which_there_is_no_room_is_refused(zoom, max_objects):
    with pytest.raises(UserError, match=r"data\.zoom"):
        Shapes(zoom=zoom, max_objects=max_objects)

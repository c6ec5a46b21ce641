"""Every conditioner from training to samples, by the two commands."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from tiny import TINY_DIFFUSION

from ldmlab.data.shapes import CLASS_NAMES
from ldmlab.tasks.build import load_diffusion

pytestmark = pytest.mark.slow

EVERY = "class+text+semantic+layout+super_resolution+inpainting"


@pytest.fixture(scope="module")
def models(trained, tmp_path_factory):
    """A function that trains a tiny model with a conditioner on `runs/t/vae-f4`, once, and returns its folder."""
    from ldmlab.cli import main

    made = {}

    def train(conditioner, *more):
        key = (conditioner, *more)
        if key not in made:
            name = f"told-{len(made)}"
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(trained)
                patch.setattr("sys.argv", ["ldmlab"])
                arguments = ["study=t", f"name={name}", "autoencoder_from=runs/t/vae-f4", *TINY_DIFFUSION]
                with pytest.raises(SystemExit) as stop:
                    main(["train-ldm", *arguments, "budget.steps=4", f"conditioner={conditioner}", *more])
                assert stop.value.code == 0
            made[key] = trained / "runs" / "t" / name
        return made[key]

    return train


@pytest.fixture
def files(ldmlab):
    """Pictures and a layout, to be told."""
    place = ldmlab.folder
    dice = np.random.default_rng(0)
    Image.fromarray(dice.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / "photo.png")
    Image.fromarray(dice.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(place / "small.png")
    Image.fromarray(dice.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(place / "small2.png")
    Image.fromarray(dice.integers(0, 256, (5, 7, 3), dtype=np.uint8)).save(place / "odd.png")
    Image.fromarray(dice.integers(0, 9, (16, 16), dtype=np.uint8)).save(place / "map.png")
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[4:9, 2:12] = 255
    Image.fromarray(mask).save(place / "mask.png")
    Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(place / "black.png")
    (place / "layout.json").write_text('[{"label": "circle", "box": [0.1, 0.1, 0.6, 0.7]}]')
    (place / "captions.txt").write_text("a red circle\na blue star\n")
    return place


def pictures(folder):
    return [np.array(Image.open(path)) for path in sorted(folder.glob("0*.png"))]


def making(folder, row=0):
    return json.loads(Image.open(folder / f"{row:05d}.png").text["ldmlab"])


@pytest.mark.parametrize(
    ("conditioner", "told", "noted"),
    [
        ("none", [], {}),
        ("class", ["label=red circle"], {"label": "red circle"}),
        ("text", ["caption=a red circle"], {"caption": "a red circle"}),
        ("text", ["caption=captions.txt"], {"caption": "a red circle"}),
        ("text", ["caption=''"], {"caption": ""}),
        ("text_pretrained", ["caption=a red circle"], {"caption": "a red circle"}),
        ("semantic", ["semantic=map.png"], {"semantic": "map.png"}),
        ("layout", ["boxes=layout.json"], {"boxes": [{"label": "circle", "box": [0.1, 0.1, 0.6, 0.7]}]}),
        ("super_resolution", ["image=small.png"], {"image": "small.png"}),
        ("inpainting", ["image=photo.png", "mask=mask.png"], {"image": "photo.png", "mask": "mask.png"}),
        (EVERY, ["label=3", "caption=a star", "image=photo.png", "mask=mask.png", "low_resolution=small.png"], {}),
        ("none", ["image=photo.png", "strength=0.5"], {"image": "photo.png"}),
        ("none", ["image=photo.png", "mask=mask.png"], {"mask": "mask.png"}),
        ("none", ["interpolate=noise"], {}),
        ("class", ["interpolate=condition", "label=[red circle,blue star]"], {}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_a_model_is_trained_and_told(models, ldmlab, files, conditioner, told, noted):
    run = models(conditioner)
    assert ldmlab("sample", f"from={run}", "n=3", "output=out", *told) == 0
    images = pictures(files / "out")
    assert len(images) == 3
    assert images[0].shape == (16, 16, 3)
    assert noted.items() <= making(files / "out").items()


def test_what_is_not_masked_is_the_photo(models, ldmlab, files):
    for conditioner in ("inpainting", "none"):
        assert ldmlab("sample", f"from={models(conditioner)}", "image=photo.png", "mask=mask.png", "n=2",
                      f"output={conditioner}") == 0  # fmt: skip
        photo, mask = (np.array(Image.open(files / name)) for name in ("photo.png", "mask.png"))
        for image in pictures(files / conditioner):
            assert (image[mask == 0] == photo[mask == 0]).all()
            assert (image[mask > 0] != photo[mask > 0]).any()
    assert (files / "inpainting" / "masked_image.png").exists()


def test_super_resolution_takes_images_of_other_sizes(models, ldmlab, files):
    assert ldmlab("sample", f"from={models('super_resolution')}", "image=odd.png", "n=1", "output=out") == 0
    assert pictures(files / "out")[0].shape == (20, 28, 3)


def test_a_size_other_than_in_training(models, ldmlab, files):
    assert ldmlab("sample", f"from={models('none')}", "size=[24,32]", "n=1", "output=out") == 0
    assert pictures(files / "out")[0].shape == (24, 32, 3)


def test_of_several_conditions_some_may_be_left_to_the_model(models, ldmlab, files):
    run = models("class+text")
    assert ldmlab("sample", f"from={run}", "caption=a star", "n=2", "output=out") == 0
    assert "label: not told" in ldmlab.said.err
    assert "label" not in making(files / "out")
    assert ldmlab("sample", f"from={run}", "caption=a star", "label=1", "guidance=composition",
                  "guidance.scales={text:2,class:1}", "n=2", "output=both") == 0  # fmt: skip
    assert "no such conditioner" in ldmlab.error(
        "sample", f"from={run}", "caption=a star", "guidance=composition", "guidance.scales={words:2}"
    )


@pytest.mark.parametrize(
    ("conditioner", "told", "said"),
    [
        ("class", ["label=red sircle"], "label: there is no class 'red sircle'"),
        ("class", ["caption=a circle"], "caption: this model is told class"),
        ("text", [], "caption: the model wants to be told"),
        ("text", ["caption=nothing.txt"], "caption: cannot read nothing.txt"),
        ("text", ["caption=empty.txt"], "caption: empty.txt is empty"),
        ("semantic", ["semantic=small.png"], "semantic: small.png is a picture of mode RGB"),
        ("semantic", ["semantic=wide.png"], "wide.png has 20 x 16 pixels, the model draws 16 x 16"),
        ("semantic", ["semantic=high.png"], "high.png has class 77; the model knows 0 to 8"),
        ("layout", ["boxes=outside.json"], "is no box within the image"),
        ("layout", ["boxes=unknown.json"], "there is no class 'dragon'"),
        ("layout", ["boxes=broken.json"], "boxes: cannot read broken.json"),
        ("super_resolution", [], "image: super-resolution needs the small image"),
        ("super_resolution", ["image=broken.json"], "image: cannot read broken.json"),
        ("inpainting", ["image=photo.png"], "mask: in-painting needs it"),
        ("inpainting", ["image=photo.png", "mask=black.png"], "mask: black.png is black all over"),
        ("inpainting", ["image=small.png", "mask=mask.png"], "small.png has 4 x 4 pixels, the model draws 16 x 16"),
        ("none", ["label=1"], "label: this model is told nothing"),
        ("none", ["image=photo.png", "strength=2"], "strength: a number above 0, 1 at most"),
        ("none", ["strength=0.5"], "image=photo.png"),
        ("none", ["size=[17,16]"], "size: a height and width divisible by 8"),
        ("none", ["interpolate=seeds"], "interpolate: one of noise, condition"),
        ("class", ["interpolate=condition", "label=1"], "interpolate: between conditions the model has to be told two"),
        ("super_resolution+inpainting", ["image=photo.png", "mask=mask.png"], "low_resolution: super-resolution needs"),
        (
            "super_resolution",
            ["interpolate=condition", "image=[small.png,small2.png]"],
            "has to be the same at both ends",
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_told_ends_in_one_line(models, ldmlab, files, conditioner, told, said):
    (files / "empty.txt").write_text("\n")
    (files / "broken.json").write_text("{")
    (files / "outside.json").write_text('[{"label": "circle", "box": [0.1, 0.1, 1.2, 0.7]}]')
    (files / "unknown.json").write_text('[{"label": "dragon", "box": [0.1, 0.1, 0.2, 0.7]}]')
    Image.fromarray(np.zeros((16, 20), dtype=np.uint8)).save(files / "wide.png")
    Image.fromarray(np.full((16, 16), 77, dtype=np.uint8)).save(files / "high.png")
    assert said in ldmlab.error("sample", f"from={models(conditioner)}", *told)


def test_other_pictures_have_the_size_that_follows_from_the_small_one(models, ldmlab, files):
    dice = np.random.default_rng(0)
    Image.fromarray(dice.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(files / "six.png")
    Image.fromarray(dice.integers(0, 9, (24, 20), dtype=np.uint8)).save(files / "map24.png")
    run = models("semantic+super_resolution")
    told = ["image=six.png", "semantic=map24.png"]
    assert ldmlab("sample", f"from={run}", *told, "n=1", "output=out") == 0
    assert pictures(files / "out")[0].shape == (24, 20, 3)
    assert "map.png has 16 x 16 pixels, the model draws 20 x 24" in ldmlab.error(
        "sample", f"from={run}", "image=six.png", "semantic=map.png"
    )


def test_a_map_that_is_attended_to_has_the_size_of_training(models, ldmlab, files):
    run = models("class+semantic", "conditioner.semantic.mechanism=cross_attention")
    assert ldmlab("sample", f"from={run}", "label=1", "semantic=map.png", "n=1", "output=out") == 0
    assert "size of training" in ldmlab.error("sample", f"from={run}", "label=1", "size=[24,16]")


def test_images_of_a_way_say_where_on_it_they_are(models, ldmlab, files):
    run = models("class")
    assert ldmlab("sample", f"from={run}", "label=[red circle,5]", "interpolate=condition", "n=3", "output=a") == 0
    middle = making(files / "a", 1)
    assert (middle["from"]["label"], middle["to"]["label"]) == ("red circle", CLASS_NAMES[5])
    assert (middle["weight"], middle["seed"]) == (0.5, "0/0")
    assert ldmlab("sample", f"from={run}", "label=5", "interpolate=noise", "n=3", "output=b", "batch_size=2") == 0
    assert making(files / "b", 2)["seed"] == {"from": "0/0", "to": "0/2", "weight": 1.0}
    assert ldmlab("sample", f"from={run}", "label=5", "n=3", "output=c") == 0
    ends = [abs(pictures(files / "b")[row].astype(int) - pictures(files / "c")[row]).max() for row in (0, 2)]
    assert max(ends) <= 1


def test_one_file_of_images_has_labels_where_all_were_told_one(models, ldmlab, files):
    run = models("class+text")
    assert ldmlab("sample", f"from={run}", "caption=a star", "n=2", "output=untold.npz") == 0
    assert "arr_1" not in np.load(files / "untold.npz")
    assert ldmlab("sample", f"from={run}", "caption=a star", "label=7", "n=2", "output=told.npz") == 0
    assert np.load(files / "told.npz")["arr_1"].tolist() == [7, 7]
    assert "a star" in str(np.load(files / "told.npz")["manifest"])


def test_long_captions_and_other_seeds_have_folders_of_their_own(models, ldmlab, files):
    run = models("text")
    for caption, seed in (("a " * 80 + "x", 0), ("a " * 80 + "y", 0), ("a " * 80 + "y", 1), ("圓" * 200, 0)):
        assert ldmlab("sample", f"from={run}", f"caption='{caption}'", f"seed={seed}", "n=1") == 0
    folders = [path.name for path in (run / "samples").iterdir() if path.is_dir()]
    assert len(folders) == 4
    assert all(len(name.encode()) < 150 for name in folders)


def test_a_model_of_captions_keeps_the_words_of_its_training_data(models):
    diffusion, _ = load_diffusion(models("text"))
    conditioner = diffusion.network.conditioner.named_parts["text"]
    ids, _ = conditioner.tokenize(["a red circle above a large blue square"])
    assert ids.shape == (1, 9)


def test_a_guide_that_speaks_another_language_is_refused(models, ldmlab):
    run = models("super_resolution")
    other = models("super_resolution", "conditioner.super_resolution.factor=2")
    said = ldmlab.error("evaluate", f"from={run}", "guidance=autoguidance", f"guidance.guide={other}")
    assert "other conditions" in said


def test_single_conditions_are_composed_only_where_they_were_trained(models, ldmlab, files):
    run = models("class+text", "drop_each_probability=0")
    wish = ["guidance=composition", "guidance.scales={text:2}", "caption=a star", "label=1"]
    assert "drop_each_probability above 0" in ldmlab.error("sample", f"from={run}", *wish)


@pytest.mark.parametrize(
    ("conditioner", "metrics"),
    [
        ("class", ["oracle_label@{}", "oracle_label@real", "oracle_label@reconstruction"]),
        ("text", ["oracle_caption_colour@{}", "oracle_caption_colour@real"]),
        ("semantic", ["oracle_semantic_iou@{}", "oracle_semantic_iou@real"]),
        ("layout", ["oracle_boxes_iou@{}", "oracle_boxes_iou@real"]),
        ("super_resolution", ["super_resolution_psnr@{}", "super_resolution_psnr@bicubic", "kid_lite0_32@bicubic"]),
        ("inpainting", ["inpainting_inside_psnr@{}", "inpainting_outside_error@{}"]),
    ],
)
def test_a_run_measures_whether_images_show_what_it_was_told(models, conditioner, metrics):
    found = json.loads((models(conditioner) / "summary.json").read_text())["metrics"]
    for name in metrics:
        assert f"val/{name.format('euler2')}" in found
    if conditioner == "inpainting":
        assert found["val/inpainting_outside_error@euler2"]["value"] == 0
    if conditioner == "class":
        assert found["val/oracle_label@real"]["value"] > 0.8
    assert all(math.isfinite(metric["value"]) for metric in found.values())


def test_a_run_s_fidelity_is_measured_again_to_the_last_digit(models, ldmlab):
    assert ldmlab("evaluate", "--reproduce", str(models(EVERY) / "summary.json")) == 0


def test_the_comparison_shows_fidelity_beside_what_can_be_reached(models, ldmlab, files):
    models("class"), models("super_resolution")
    assert ldmlab("compare", str(models("class").parent), "--output", str(files / "page.html")) == 0
    page = (files / "page.html").read_text()
    assert "SR psnr" in page
    assert "(bicubic " in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["conditioner=txt"], "txt"),
        (["conditioner=text+clas"], "clas"),
        (["conditioner=class", "conditioner.class.width=0"], "conditioner.class.width"),
        (["conditioner=super_resolution", "conditioner.super_resolution.factor=5"], "super_resolution.factor"),
        (["conditioner=text", "conditioner.text.heads=3"], "conditioner.text.heads"),
        (["conditioner=class", "conditioner.width=64"], "conditioner.width"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_wrong_conditioners_end_in_one_line(ldmlab, arguments, said):
    assert said in ldmlab.error("train-ldm", *TINY_DIFFUSION, "budget.steps=2", "downsampling=f1", *arguments)

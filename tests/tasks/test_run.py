import stat

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ldmlab.errors import UserError
from ldmlab.hydra_app import combined
from ldmlab.locks import locked
from ldmlab.tasks import headline_value
from ldmlab.tasks.run import Run, check_zip, first_difference, read_run, run_name


def test_a_name_says_what_was_changed_and_no_more():
    overrides = ["seed=1", "study=x", "data=cifar10", "data.image_size=64", "budget.steps=3", "scheduler=cosine"]
    assert run_name("ldm", "f4", overrides) == "ldm-f4-scheduler-cosine-seed-1"


def test_a_stage_one_name_drops_the_group():
    assert run_name("vae", "f8", ["autoencoder.batch_size=8"]) == "vae-f8-batch_size-8"
    assert run_name("vae", "f8", ["autoencoder/size=paper", "autoencoder=vq"]) == "vae-f8-size-paper-autoencoder-vq"


def test_groups_within_a_seldom_named_group_are_as_seldom_named():
    assert run_name("vae", "f8", ["metrics/features=inception"]) == "vae-f8"
    assert run_name("vae", "f8", ["metrics/features=inception"], ["metrics/features"]) == (
        "vae-f8-metrics_features-inception"
    )


def test_a_sweep_names_its_runs_by_what_it_varies():
    overrides = ["data=cifar10", "budget.cpu_seconds=300"]
    assert run_name("ldm", "f4", overrides, ["budget.cpu_seconds"]) == "ldm-f4-budget.cpu_seconds-300"


def test_a_name_needs_no_quotes_in_an_override():
    name = run_name(
        "ldm", "f4", ["denoiser.channel_multipliers=[1,2,2]", "downsampling.latent_channels=8", "+a.b='x y'"]
    )
    (parsed,) = OverridesParser.create().parse_overrides([f"from=runs/t/{name}"])
    assert parsed.value() == f"runs/t/{name}"
    assert name == "ldm-f4-a.b-_x_y_-denoiser.channel_multipliers-_1_2_2_-downsampling.latent_channels-8"


def test_the_first_difference_is_named_and_volatile_settings_do_not_count():
    old = {"seed": 0, "logger": {"wandb": True}, "sampler": {"steps": 5}}
    assert first_difference(old, {**old, "logger": {"wandb": False}}) is None
    assert first_difference(old, {**old, "sampler": {"steps": 9}}) == "sampler.steps: 5, now 9"


def test_how_data_came_here_makes_no_other_run():
    old = {"data": {"download": True, "max_cache_gb": 8, "flip": True}}
    assert first_difference(old, {"data": {"download": False, "max_cache_gb": 0, "flip": True}}) is None


def test_a_search_without_kernel_distances_minimises_the_frechet_distance():
    values = {"val/fd_lite0@real": 1.0, "val/fd_lite0@euler20": 3.0, "val/recall_lite0@euler20": 0.5}
    assert headline_value({"metrics": {name: {"value": value} for name, value in values.items()}}) == 3.0
    assert headline_value({"metrics": {"val/recall_lite0@euler20": {"value": 0.5}}}) is None


def test_a_search_over_autoencoders_minimises_the_distance_of_reconstructions():
    values = {"val/kid_lite0@real": 0.0, "val/kid_lite0@reconstruction": 0.2}
    assert headline_value({"metrics": {name: {"value": value} for name, value in values.items()}}) == 0.2


def test_another_user_of_a_group_can_take_the_lock(tmp_path):
    with locked(tmp_path / "study" / "run", "runs_dir", lambda: None):
        assert stat.S_IMODE((tmp_path / "study" / ".run.lock").stat().st_mode) == 0o666


def test_a_folder_that_cannot_be_made_ends_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"runs_dir: cannot write in .*file/study .*: choose another"),
        locked(tmp_path / "file" / "study" / "run", "runs_dir", lambda: None),
    ):
        pass


def test_what_is_no_zip_is_damaged(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"half")
    with pytest.raises(UserError, match=r"damaged or cut off.*delete it"):
        check_zip(tmp_path / "x.ckpt", "delete it")


def test_a_folder_without_a_config_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is no run"):
        read_run(tmp_path, "autoencoder", "autoencoder_from")


def test_an_unfinished_run_is_not_used(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match="not complete"):
        read_run(tmp_path, "diffusion", "from")


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("conditioner=text", "conditioner=text"),
        ("conditioner=text+class", "conditioner=[text,class]"),
        ("conditioner=class,text+class,none", "conditioner=class,[text,class],none"),
        ("conditioner=[text,class]", "conditioner=[text,class]"),
        ("conditioner=[text,class],class", "conditioner=[text,class],class"),
        ("conditioner.text.width=8", "conditioner.text.width=8"),
        ("caption=red+blue", "caption=red+blue"),
        ("conditioner=choice(text+class,none)", "conditioner=choice([text,class],none)"),
    ],
)
def test_several_conditioners_are_joined_by_a_plus(override, wanted):
    assert combined(override) == wanted


def test_a_run_of_several_conditioners_is_named_after_them():
    for override in ("conditioner=[text,class]", "conditioner=text+class"):
        assert run_name("ldm", "f4", [override]) == "ldm-f4-conditioner-text+class"


def test_nothing_is_not_joined_with_something():
    with pytest.raises(UserError, match="none is alone"):
        combined("conditioner=none+text")


def test_what_a_run_left_that_never_saved_is_not_gone_on_with(tmp_path):
    run = Run(tmp_path / "ldm-f4", {"lr": 1})
    run.prepare("new", "train-ldm", [], "0a1b")
    (run.path / "metrics.jsonl").write_text('{"step": 5}\n')
    again = Run(run.path, {"lr": 2})
    assert again.state(overwrite=False) == "new"
    again.prepare("new", "train-ldm", [], "0a1b")
    assert not (run.path / "metrics.jsonl").exists()


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    """The same folder may have got more of them."""
    run = Run(tmp_path / "r", {"overwrite": False})
    run.prepare("new", "train-ldm", [], "0a1b")
    run.last_checkpoint.write_text("weights")
    run.prepare("begun", "train-ldm", [], "0a1b")
    with pytest.raises(UserError, match=r"was begun on data that have changed since, .*overwrite=true"):
        run.prepare("begun", "train-ldm", [], "2c3d")
    assert run.last_checkpoint.exists()
    Run(tmp_path / "r", {"overwrite": True}).prepare("begun", "train-ldm", [], "2c3d")
    assert not run.last_checkpoint.exists()

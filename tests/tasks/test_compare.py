"""What `ldmlab compare` promises: comparable things side by side, nothing hidden, a page that needs nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldmlab.errors import UserError
from ldmlab.tasks.compare import compare
from ldmlab.tasks.comparison.looks import run_styles
from ldmlab.tasks.comparison.plots import plots_of, training_curve
from ldmlab.tasks.comparison.runs import find_runs
from ldmlab.tasks.comparison.tables import all_runs, group_by_data

SHAPES = {"name": "shapes", "fingerprint": "ab12", "image_size": 32}


def distances(detail: str, kid: float, fd: float, **manifest: Any) -> dict[str, Any]:
    manifest = {
        "extractor": "lite0",
        "input_size": 128,
        "samples": 1000,
        "reference": "shapes/val",
        "reference_hash": "9f3a",
        "resize": "bicubic",
        **manifest,
    }
    return {
        f"val/kid_lite0_128@{detail}": {"value": kid, "standard_error": 0.001, "manifest": manifest},
        f"val/fd_lite0_128@{detail}": {"value": fd, "manifest": manifest},
    }


def euler20(kid: float = 0.31, fd: float = 200.0, **manifest: Any) -> dict[str, Any]:
    sampler = {"sampler": "euler", "steps": 20, "nfe": 20, "guidance": {"scale": 2.0}}
    speed = {"speed/images_per_s@euler20": {"value": 233.0, "manifest": {}}}
    return {**distances("euler20", kid, fd, **sampler, **manifest), **speed}


def cost(cpu_seconds: float) -> dict[str, float]:
    return {"steps": 10, "images": 640, "flops": 1e9, "seconds": cpu_seconds / 2, "cpu_seconds": cpu_seconds}


def write_run(folder: Path, metrics: dict[str, Any], stage: str = "diffusion", factor: int = 4, **changes: Any) -> Path:
    summary = {
        "study": "demo",
        "name": folder.name,
        "stage": stage,
        "status": "complete",
        "seed": 0,
        "choices": {"downsampling": f"f{factor}"},
        "data": SHAPES,
        "cost": cost(600),
        "cost_autoencoder": None,
        "parameters": {"denoiser": 1_400_000, "autoencoder": 300_000},
        "autoencoder_from": None,
        "metrics": metrics,
        "samples": "samples/final.png",
        **changes,
    }
    (folder / "samples").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    config = f"seed: {summary['seed']}\ndownsampling:\n  factor: {factor}\noptimizer:\n  lr: 0.0003\n"
    (folder / "config.yaml").write_text(config)
    (folder / "overrides.yaml").write_text("command: train-ldm\noverrides: [downsampling=f4, 'caption=a red circle']\n")
    picture = "reconstructions_0001.png" if stage == "autoencoder" else "final.png"
    Image.new("RGB", (16, 8), "red").save(folder / "samples" / picture)
    return folder


def records(page: Path) -> dict[str, Any]:
    return json.loads(page.with_suffix(".json").read_text())


def markdown_tables(page: Path) -> list[list[dict[str, str]]]:
    """The tables of the Markdown file, read back: one dict a row, by heading."""
    tables = []
    for block in page.with_suffix(".md").read_text().split("\n\n"):
        if block.startswith("|"):
            heads, _, *lines = ([c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines())
            tables.append([dict(zip(heads, line, strict=True)) for line in lines])
    return tables


class _Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_run_with_two_sampler_settings_has_two_rows(tmp_path: Path) -> None:
    heun = distances("heun10", 0.29, 190.0, sampler="heun", steps=10, nfe=20)
    write_run(tmp_path / "demo/ldm-f4", {**euler20(), **heun})
    page = compare([tmp_path / "demo"])
    assert page == tmp_path / "demo/comparison.html"
    (rows,) = markdown_tables(page)
    assert [(row["run"], row["f"], row["sampler@steps"], row["NFE"]) for row in rows] == [
        ("ldm-f4", "f4", "heun@10", "20"),
        ("ldm-f4", "f4", "euler@20", "20"),
    ]
    assert rows[0]["KID ×10³"] == "**290.0 ± 1.0**"
    assert rows[1]["KID ×10³"] == "310.0 ± 1.0"
    assert (rows[0]["images/s"], rows[1]["images/s"]) == ("–", "233")


def test_rows_are_sorted_by_factor_then_kid(tmp_path: Path) -> None:
    for name, factor, kid in (("a", 8, 0.1), ("b", 2, 0.4), ("c", 2, 0.3), ("d", 16, 0.05)):
        write_run(tmp_path / name, euler20(kid), factor=factor)
    assert [row["name"] for row in records(compare([tmp_path]))["diffusion"]] == ["c", "b", "a", "d"]


def test_training_cost_counts_the_autoencoder_in(tmp_path: Path) -> None:
    write_run(tmp_path / "ldm", euler20(), cost_autoencoder=cost(300), autoencoder_from="runs/vae")
    write_run(tmp_path / "pixels", euler20(), factor=1)
    (rows,) = markdown_tables(compare([tmp_path]))
    assert {row["run"]: row["CPU min"] for row in rows} == {"ldm": "15.0", "pixels": "10.0"}


def test_an_unrecorded_autoencoder_cost_is_said_and_never_wins(tmp_path: Path) -> None:
    write_run(tmp_path / "borrowed", euler20(), cost=cost(60), autoencoder_from="pretrained/vae")
    write_run(tmp_path / "pixels", euler20(), factor=1)
    page = compare([tmp_path])
    (rows,) = markdown_tables(page)
    assert {row["run"]: row["CPU min"] for row in rows} == {"borrowed": "≥ 1.00", "pixels": "10.0"}
    assert "whose cost is not recorded: borrowed" in page.read_text()


def test_floors_come_from_the_runs_own_measurements(tmp_path: Path) -> None:
    floors = {
        **distances("reconstruction", 0.012, 30.0),
        **distances("real", 0.0006, 6.0, samples=500, reference_hash="half"),
    }
    write_run(tmp_path / "ldm", {**euler20(), **floors})
    page = compare([tmp_path])
    (rows,) = markdown_tables(page)
    assert (rows[0]["floor: recon. KID ×10³"], rows[0]["floor: real KID ×10³"]) == ("12.0", "0.6")
    (record,) = records(page)["diffusion"]
    assert record["frechet_reconstruction"] == 30.0
    assert record["frechet_real"] is None, "a Fréchet distance of 500 images is no floor for one of 1000"


def test_frechet_distances_at_different_n_never_share_a_column(tmp_path: Path) -> None:
    write_run(tmp_path / "a", euler20(fd=200.0, samples=500))
    write_run(tmp_path / "b", euler20(fd=150.0, samples=1000))
    page = compare([tmp_path])
    (rows,) = markdown_tables(page)
    by_run = {row["run"]: (row["FD (N=500)"], row["FD (N=1000)"]) for row in rows}
    assert by_run == {"a": ("200", "–"), "b": ("–", "150")}, "alone in its column, neither is the best of anything"
    assert "not comparable (N differs: 500, 1000)" in page.read_text()


@pytest.mark.parametrize(
    ("key", "value"),
    [("extractor", "dinov2"), ("input_size", 224), ("reference_hash", "0000"), ("resize", "bilinear")],
)
def test_different_yardsticks_get_tables_of_their_own(tmp_path: Path, key: str, value: object) -> None:
    write_run(tmp_path / "a", euler20())
    write_run(tmp_path / "b", euler20(**{key: value}))
    page = compare([tmp_path])
    assert [len(rows) for rows in markdown_tables(page)] == [1, 1]
    assert f"not comparable with each other ({key.replace('_', ' ')}: " in page.read_text()


def test_the_frechet_distance_leads_from_5000_samples(tmp_path: Path) -> None:
    write_run(tmp_path / "a", euler20(kid=0.1, fd=30.0, samples=5000))
    write_run(tmp_path / "b", euler20(kid=0.2, fd=20.0, samples=5000))
    page = compare([tmp_path])
    (rows,) = markdown_tables(page)
    assert [row["run"] for row in rows] == ["b", "a"]
    assert "Lowest Fréchet distance: b euler@20" in page.read_text()


def test_runs_on_different_data_are_in_different_groups(tmp_path: Path) -> None:
    write_run(tmp_path / "a", euler20())
    write_run(tmp_path / "b", euler20(), data={**SHAPES, "fingerprint": "ffff"})
    write_run(tmp_path / "c", euler20(), data={**SHAPES, "name": "flowers"})
    page = compare([tmp_path])
    assert [[row["run"] for row in rows] for rows in markdown_tables(page)] == [["c"], ["a"], ["b"]]
    headings = re.findall(r"<h2>(.*?)</h2>", page.read_text())
    assert headings[:3] == ["flowers, 32 px (data ab12)", "shapes, 32 px (data ab12)", "shapes, 32 px (data ffff)"]


def test_autoencoders_have_a_table_of_their_own(tmp_path: Path) -> None:
    recon = {"val/recon_psnr": {"value": 24.0, "manifest": {}}, "val/recon_ssim": {"value": 0.9, "manifest": {}}}
    write_run(tmp_path / "ldm", euler20())
    write_run(tmp_path / "vae", {**recon, **distances("reconstruction", 0.012, 30.0)}, stage="autoencoder")
    diffusion, autoencoders = markdown_tables(compare([tmp_path]))
    assert [row["run"] for row in diffusion] == ["ldm"]
    (vae,) = autoencoders
    assert (vae["PSNR dB"], vae["SSIM"], vae["KID ×10³"], vae["FD (N=1000)"]) == ("24.0", "0.900", "12.0 ± 1.0", "30.0")


def test_a_distance_that_is_not_a_number_is_shown_and_never_best(tmp_path: Path) -> None:
    write_run(tmp_path / "diverged", euler20(kid=float("nan"), fd=float("nan")))
    write_run(tmp_path / "fine", euler20(kid=0.2))
    write_run(tmp_path / "better", euler20(kid=0.1, fd=float("nan")))
    write_run(tmp_path / "worse", euler20(kid=0.3, fd=210.0))
    (rows,) = markdown_tables(compare([tmp_path]))
    assert [(row["run"], row["KID ×10³"], row["FD (N=1000)"]) for row in rows] == [
        ("better", "**100.0 ± 1.0**", "not finite"),
        ("fine", "200.0 ± 1.0", "**200**"),
        ("worse", "300.0 ± 1.0", "210"),
        ("diverged", "not finite", "not finite"),
    ]


def test_unfinished_runs_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "done", euler20())
    write_run(tmp_path / "stopped", euler20(), status="interrupted")
    (tmp_path / "running").mkdir()
    (tmp_path / "running/config.yaml").write_text("a: 1\n")
    page = compare([tmp_path])
    terminal = capsys.readouterr().out
    assert "not finished: stopped (status: interrupted)" in terminal
    assert "not finished: running" in terminal
    for document in (page, page.with_suffix(".md")):
        assert "stopped" in document.read_text()
        assert "running" in document.read_text()
    assert [row["name"] for row in records(page)["diffusion"]] == ["done"]


@pytest.mark.parametrize(
    ("content", "reason"), [('{"study": ', "line 1"), ('{"status": "complete"}', "'stage' is missing"), ("[]", "")]
)
def test_a_broken_summary_is_named_and_the_rest_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, reason: str
) -> None:
    write_run(tmp_path / "done", euler20())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/summary.json").write_text(content)
    page = compare([tmp_path])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("not readable: broken"))
    assert reason in line
    assert [row["name"] for row in records(page)["diffusion"]] == ["done"]


def test_without_a_finished_run_the_error_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "running").mkdir()
    (tmp_path / "running/config.yaml").write_text("a: 1\n")
    with pytest.raises(UserError) as error:
        compare([tmp_path])
    message = str(error.value)
    assert message.startswith(f"no finished run below {tmp_path}: `ldmlab train-ldm` makes one")
    assert "running" in message
    assert "\n" not in message


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "done", euler20())
    with pytest.raises(UserError, match=r"no such folder: .*/absent"):
        compare([tmp_path / "done", tmp_path / "absent"])


def test_a_run_reached_by_two_paths_counts_once_and_last_times_page_is_no_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo/ldm", euler20())
    for inside in (run / "export", tmp_path / "demo/wandb/files", tmp_path / "demo/.hydra"):
        inside.mkdir(parents=True)
        (inside / "config.yaml").write_text("a: 1\n")
    page = compare([tmp_path])
    again = records(compare([tmp_path / "demo", run, run / "summary.json", page]))
    assert len(again["diffusion"]) == 1
    assert again["not_finished"] == []


def test_runs_that_share_a_name_are_told_apart_by_their_study(tmp_path: Path) -> None:
    write_run(tmp_path / "one/ldm", euler20(), study="one")
    write_run(tmp_path / "two/ldm", euler20(), study="two")
    page = compare([tmp_path / "one", tmp_path / "two"])
    assert page.parent == tmp_path
    assert {row["name"] for row in records(page)["diffusion"]} == {"one/ldm", "two/ldm"}


def test_output_may_be_a_folder_or_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "ldm", euler20())
    assert compare([run], tmp_path / "new/folder") == tmp_path / "new/folder/comparison.html"
    assert compare([run], tmp_path / "mine.html") == tmp_path / "mine.html"
    assert (tmp_path / "mine.md").is_file()
    assert (tmp_path / "mine.json").is_file()


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    for name, kid in (("a", 0.2), ("b", 0.3)):
        write_run(tmp_path / name, euler20(kid))
    write_run(tmp_path / "vae", distances("reconstruction", 0.01, 30.0), stage="autoencoder")
    html = compare([tmp_path]).read_text()
    tags = _Tags(html).found
    assert not any("src" in attributes for tag, attributes in tags if tag == "script")
    html = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)  # test_page.py sees that they ask for nothing
    tags = _Tags(html).found
    pictures = [attributes["src"] or "" for tag, attributes in tags if tag == "img"]
    assert len(pictures) == 3
    assert all(picture.startswith("data:image/png;base64,") for picture in pictures)
    assert sum(tag == "svg" for tag, _ in tags) == 3
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    links = [
        value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href", "xlink:href")
    ]
    assert all(link and link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"url\((?!#)|@import", html)
    assert "ldmlab train-ldm downsampling=f4 &#39;caption=a red circle&#39;" in html
    assert "lr: 0.0003" in html


def test_previews_are_drawn_over_training_with_the_autoencoders_cost_in_front(tmp_path: Path) -> None:
    run = write_run(tmp_path / "ldm", euler20(), cost_autoencoder=cost(300))
    lines = [json.dumps({"cpu_seconds": 60.0 * i, "val/kid_lite0_128@preview": 1 / i}) for i in (1, 5, 9)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"cpu_sec')  # the last line was cut short
    (group,) = group_by_data(find_runs([tmp_path]).runs)
    (table,) = group.diffusion
    minutes, kid = zip(*training_curve(table.rows[0], "kid"), strict=True)
    assert minutes == pytest.approx((6.0, 10.0, 14.0))
    assert kid == pytest.approx((1000.0, 200.0, 1000 / 9))
    plots = plots_of(table, run_styles(group.runs("diffusion")))
    assert [plot.title for plot in plots] == ["Quality against training cost"]


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    name = "<script>alert(1)</script> & $x$ [red] a|b"
    for folder, kid in (("a", 0.2), ("b", 0.3)):
        write_run(tmp_path / folder, euler20(kid), name=name if folder == "a" else "b", data={**SHAPES, "name": "<i>"})
    page = compare([tmp_path])
    assert "i" not in {tag for tag, _ in _Tags(page.read_text()).found}
    assert "<script>alert" not in page.read_text()
    assert "&lt;script&gt;alert(1)" in page.read_text()
    for tag in ("<script>", "<i>"):
        assert tag not in page.with_suffix(".md").read_text()
    (rows,) = markdown_tables(page)
    assert "a\\|b" in rows[0]["run"]


def test_a_missing_or_damaged_grid_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "ldm", euler20())
    (run / "samples/final.png").write_bytes(b"\x89PNG")
    assert "no images in this run" in compare([tmp_path]).read_text()


def test_a_narrow_terminal_keeps_the_main_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    write_run(tmp_path / "ldm-f4", euler20())
    compare([tmp_path])
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("ldm-f4"))
    assert row.split() == ["ldm-f4", "f4", "euler@20", "2", "310.0", "±", "1.0", "200", "233", "20", "10.0"]
    floors = "floor: recon. KID ×10³, floor: real KID ×10³, floor: recon. FD, floor: real FD"
    hidden = f"N, {floors}, min, images seen, parameters, seed"
    assert hidden in " ".join(out.split())


def test_the_command_starts_without_torch() -> None:
    heavy = "{'torch', 'lightning', 'hydra', 'matplotlib'}"
    code = f"import ldmlab.tasks.compare, sys; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plots_are_saved_as_png_files_that_say_which_run_is_which(tmp_path: Path) -> None:
    for factor in (2, 4):
        write_run(tmp_path / "s" / f"ldm-f{factor}", euler20(kid=0.3 / factor), factor=factor)
    compare([tmp_path / "s"], figures=tmp_path / "figures")
    found = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert found
    assert all(name.endswith(".png") for name in found)
    for what in ("compression", "training-cost", "minutes", "images-seen", "training-steps", "training-flops"):
        assert any(name.endswith(f"quality-against-{what}.png") for name in found), what
    for path in (tmp_path / "figures").iterdir():
        assert len(Image.open(path).convert("L").getcolors()) > 10  # something is drawn


def with_seeds(folder: Path, **kids: list[float]) -> None:
    """A recipe for each name, named after its factor, and a run of it for each distance, in thousandths."""
    for name, values in kids.items():
        for seed, kid in enumerate(values):
            label = f"ldm-{name}-seed-{seed}" if len(values) > 1 else f"ldm-{name}"
            write_run(folder / label, euler20(kid / 1000), seed=seed, factor=int(name[1:]))


def test_runs_that_differ_in_their_seed_alone_are_told_with_their_mean_and_look_the_same(tmp_path: Path) -> None:
    with_seeds(tmp_path, f4=[340, 320, 300], f2=[330])
    page = compare([tmp_path])
    (group,) = group_by_data(find_runs([tmp_path]).runs)
    means, runs = markdown_tables(page)
    assert len(runs) == 4
    by_recipe = {row["runs of"]: row for row in means}
    assert by_recipe["ldm-f4"]["seeds"] == "0, 1, 2"
    assert by_recipe["ldm-f4"]["KID ×10³"] == "**320 ± 20**"
    assert (by_recipe["ldm-f2"]["seeds"], by_recipe["ldm-f2"]["KID ×10³"]) == ("0", "330")
    assert by_recipe["ldm-f4"]["images/s"] == "**233**"
    assert group.diffusion[0].best == "Lowest mean KID ×10³: ldm-f4 euler@20, 320 ± 20."
    single, record = records(page)["over_seeds"]
    assert single["runs"] == ["ldm-f2"]
    assert record["seeds"] == [[0, None], [1, None], [2, None]]
    assert record["stage"] == "diffusion"
    assert record["values"]["KID ×10³"] == {
        "mean": pytest.approx(320),
        "standard_deviation": pytest.approx(20),
        "runs": 3,
    }
    styles = run_styles(all_runs([group]))
    assert {styles[f"ldm-f4-seed-{seed}"].name for seed in range(3)} == {"ldm-f4"}
    assert len({styles[f"ldm-f4-seed-{seed}"] for seed in range(3)}) == 1
    assert styles["ldm-f2"] != styles["ldm-f4-seed-0"]
    plot = next(plot for plot in plots_of(group.diffusion[0], styles) if plot.title == "Quality against compression")
    line = next(line for line in plot.figure.axes[0].lines if len(line.get_xdata()) == 2)
    assert list(line.get_ydata()) == pytest.approx([330, 320])  # not the luckiest seed


@pytest.mark.parametrize(
    ("kids", "note"),
    [
        (
            {"f4": [300, 310, 320], "f2": [309, 318, 327], "f8": [500, 520], "f1": [330]},
            "Its seeds do not tell ldm-f4 euler@20 from ldm-f2 euler@20 (Welch's t-test, 5%). "
            "Of one run: ldm-f1 euler@20.",
        ),
        (
            {"f4": [300, 301, 302], "f2": [309, 310, 311], "f8": [500, 900]},
            # by as little as f2 is behind, but without knowing what f8 is
            "Its seeds do not tell ldm-f4 euler@20 from ldm-f8 euler@20 (Welch's t-test, 5%).",
        ),
        (
            {"f4": [300, 301, 302], "f2": [309, 310, 311]},
            "ldm-f4 euler@20 is ahead of ldm-f2 euler@20 by more than its seeds (Welch's t-test, 5%).",
        ),
        (
            {"f4": [300, 300], "f2": [300, 300]},
            "Its seeds do not tell ldm-f2 euler@20 from ldm-f4 euler@20 (Welch's t-test, 5%).",
        ),
        (
            {"f4": [300, 301, 302], "f2": [200]},
            "ldm-f2 euler@20 is of one run: whether it is ahead by more than its seed is not known.",
        ),
        (
            # a recipe of which a run diverged is not the best for what the others reached
            {"f4": [100, float("nan")], "f2": [300, 301], "f8": [400, 401]},
            "ldm-f2 euler@20 is ahead of ldm-f8 euler@20 by more than its seeds (Welch's t-test, 5%).",
        ),
        ({"f4": [300, 301]}, "Within two standard errors of the best: ldm-f4-seed-1 euler@20."),
    ],
)  # fmt: skip
def test_what_seeds_do_not_tell_apart_is_said(tmp_path: Path, kids: dict[str, list[float]], note: str) -> None:
    with_seeds(tmp_path, **kids)
    (group,) = group_by_data(find_runs([tmp_path]).runs)
    assert group.diffusion[0].notes == [note]


def test_sampler_settings_of_the_same_runs_are_no_further_evidence(tmp_path: Path) -> None:
    for seed, kid in enumerate((0.30, 0.34)):
        heun = distances("heun10", kid + 0.01, 200.0, sampler="heun", steps=10, nfe=20)
        write_run(tmp_path / f"ldm-f4-seed-{seed}", {**euler20(kid), **heun}, seed=seed)
    (group,) = group_by_data(find_runs([tmp_path]).runs)
    assert not any("Welch" in note for note in group.diffusion[0].notes)


def test_a_setting_that_was_measured_at_one_seed_decides_nothing(tmp_path: Path) -> None:
    with_seeds(tmp_path, f4=[300, 301, 302], f2=[309, 310, 311])
    heun = distances("heun10", 0.2, 200.0, sampler="heun", steps=10, nfe=20)
    write_run(tmp_path / "ldm-f4-seed-3", {**euler20(0.301), **heun}, seed=3)
    (group,) = group_by_data(find_runs([tmp_path]).runs)
    (note,) = (note for note in group.diffusion[0].notes if "Welch" in note)
    assert note == "ldm-f4 euler@20 is ahead of ldm-f2 euler@20 by more than its seeds (Welch's t-test, 5%)."


def test_recipes_of_two_studies_have_two_names(tmp_path: Path) -> None:
    for study, seeds in (("a", (0, 1)), ("b", (1, 2))):
        for seed in seeds:
            write_run(tmp_path / study / f"ldm-f4-seed-{seed}", euler20(), seed=seed)
    write_run(tmp_path / "c" / "ldm-f2-autoencoder.seed-0", euler20(), factor=2)
    write_run(tmp_path / "c" / "ldm-f2-autoencoder.seed-1", euler20(), factor=2, seed=1)
    findings = find_runs([tmp_path])
    (group,) = group_by_data(findings.runs)
    names = [recipe.name for recipe in group.diffusion[0].over_seeds.rows]
    assert len(set(names)) == 3
    assert "ldm-f2" in names
    assert {style.name for style in run_styles(findings.runs).values()} == set(names)


def test_a_mean_says_how_many_of_the_runs_have_the_value(tmp_path: Path) -> None:
    """Speed need not be measured at each seed, and a seed that did not end well has no distance."""
    write_run(tmp_path / "ldm-f4", euler20(0.30), seed=0)
    write_run(tmp_path / "ldm-f4-seed-1", distances("euler20", 0.32, 200.0, sampler="euler", steps=20), seed=1)
    write_run(tmp_path / "ldm-f8", euler20(0.30), factor=8)
    write_run(tmp_path / "ldm-f8-seed-1", euler20(float("nan")), seed=1, factor=8)
    means, _ = markdown_tables(compare([tmp_path]))
    assert [row["KID ×10³"] for row in means] == ["310 ± 14", "not finite (1 of 2)"]
    assert [row["images/s"] for row in means] == ["**233 (1 of 2)**", "**233**"]


def test_seeds_of_an_autoencoder_and_of_pixels_are_one_number(tmp_path: Path) -> None:
    for number in (0, 2, 10):
        for folder, stage, factor in (("vae", "autoencoder", 4), ("ldm", "diffusion", 4), ("pixels", "diffusion", 1)):
            detail = "reconstruction" if stage == "autoencoder" else "euler20"
            run = write_run(tmp_path / f"{folder}-{number}", distances(detail, 0.3, 200.0), stage, factor, seed=number)
            with (run / "config.yaml").open("a") as config:
                config.write(f"autoencoder:\n  seed: {number}\n")
    found = {
        row["runs of"]: row["seeds"]
        for table in markdown_tables(compare([tmp_path]))
        for row in table
        if "seeds" in row
    }
    assert found == {"vae-0": "0, 2, 10", "ldm-0": "0/0, 2/2, 10/10", "pixels-0": "0, 2, 10"}


def other_settings(folder: Path, seed: int) -> None:
    (folder / "config.yaml").write_text(f"seed: {seed}\noptimizer: {{lr: {1 + seed}}}\n")


def unreadable(folder: Path, seed: int) -> None:
    (folder / "config.yaml").unlink()


def test_the_same_seed_twice_in_a_study_is_no_repetition(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_run(tmp_path / name, euler20(), seed=seed)
    assert records(compare([tmp_path]))["over_seeds"] == []
    assert len(set(run_styles(find_runs([tmp_path]).runs).values())) == 3


@pytest.mark.parametrize("change", [other_settings, unreadable])
def test_runs_that_may_differ_in_more_are_no_seeds_of_each_other(tmp_path: Path, change: Any) -> None:
    for seed in (0, 1):
        change(write_run(tmp_path / f"ldm-{seed}", euler20(), seed=seed), seed)
    assert records(compare([tmp_path]))["over_seeds"] == []
    styles = run_styles(find_runs([tmp_path]).runs)
    assert styles["ldm-0"] != styles["ldm-1"]


def test_the_same_seed_in_two_studies_is_no_repetition(tmp_path: Path) -> None:
    for name, seed in (("before/a", 0), ("after/a", 0), ("after/b", 1)):
        write_run(tmp_path / name, euler20(), seed=seed)
    found = records(compare([tmp_path]))["over_seeds"]
    assert [record["runs"] for record in found] == [["after/a", "b"], ["before/a"]]


def test_the_mean_over_seeds_is_that_of_one_sampler(tmp_path: Path) -> None:
    """Each seed with its own best sampler is a choice by luck."""
    for seed, (euler, heun) in enumerate(((0.30, 0.34), (0.40, 0.36))):
        both = {**euler20(euler), **distances("heun10", heun, 200.0, sampler="heun", steps=10, nfe=20)}
        write_run(tmp_path / f"ldm-f4-{seed}", both, seed=seed)
    write_run(tmp_path / "ldm-f2", euler20(0.31), factor=2)
    (group,) = group_by_data(find_runs([tmp_path]).runs)
    plots = plots_of(group.diffusion[0], run_styles(find_runs([tmp_path]).runs))
    plot = next(plot for plot in plots if plot.title == "Quality against compression")
    line = next(line for line in plot.figure.axes[0].lines if len(line.get_xdata()) == 2)
    assert list(line.get_ydata()) == pytest.approx([310, 350])

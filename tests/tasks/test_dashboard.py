"""The comparison as a workspace at wandb, built without it."""

import json

import pytest
from test_compare import cost, euler20, write_run

from ldmlab.errors import UserError
from ldmlab.tasks.comparison import dashboard
from ldmlab.tasks.comparison.runs import find_runs


@pytest.fixture
def runs(tmp_path):
    for factor in (1, 4):
        folder = write_run(tmp_path / "demo" / f"ldm-f{factor}", euler20(), factor=factor, cost=cost(60))
        preview = {"step": 5, "val/kid_lite0_128@preview": 0.5, "cpu_seconds": 30}
        (folder / "metrics.jsonl").write_text(json.dumps(preview) + "\n")
    return find_runs([tmp_path / "demo"]).runs


def test_it_shows_the_trade_off_the_curves_and_the_samples(runs):
    model = json.loads(dashboard.workspace(runs, "us", "ldmlab")._to_model().model_dump_json(by_alias=True))
    sections = model["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == ["Trade-off", "Samples", "Training"]
    panels = {panel["config"]["chartTitle"]: panel["config"] for panel in sections[0]["panels"]}
    assert panels["Quality against factor"]["xAxis"] == "config:downsampling.value.factor"
    assert panels["Quality against speed"]["xAxis"] == "summary:speed/images_per_s@euler20"
    assert {panel["yAxis"] for title, panel in panels.items() if "Quality" in title} == {
        "summary:val/kid_lite0_128@euler20"
    }
    lines = [panel["config"] for panel in sections[2]["panels"]]
    assert {line["xAxis"] for line in lines} == {
        f"cost/{name}" for name in ("steps", "images", "flops", "seconds", "cpu_seconds")
    }
    assert {name for line in lines for name in line["metrics"]} == {"train/loss", "val/kid_lite0_128@preview"}
    filters = json.dumps(model["spec"]["section"]["runSets"][0]["filters"])
    assert "study" in filters
    assert "demo" in filters


@pytest.mark.parametrize("place", ["us", "/ldmlab", "us/", ""])
def test_it_wants_to_know_where(runs, place):
    with pytest.raises(UserError, match="ENTITY/PROJECT is needed"):
        dashboard.save(runs, place)


def test_without_wandb_it_ends_in_one_line(runs, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"--wandb: .*wandb login"):
        dashboard.save(runs, "us/ldmlab")

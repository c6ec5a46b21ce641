"""The page of the comparison in a real browser, opened as a file."""

import json
import shutil

import pytest
from test_compare import cost, euler20, write_run

from ldmlab.tasks.compare import compare
from ldmlab.tasks.comparison import explorer
from ldmlab.tasks.comparison.runs import find_runs
from ldmlab.tasks.comparison.tables import group_by_data

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def write(study, factor, kid, name, seed=0):
    """A diffusion run with previews."""
    run = euler20(kid)
    folder = write_run(study / f"ldm-f{factor}-{seed}", run, factor=factor, cost=cost(60), name=name, seed=seed)
    lines = [
        {"val/kid_lite0_128@preview": kid + 1 / step, "step": step, "images": 64 * step, "seconds": step / 2.0,
         "cpu_seconds": 1.0 * step, "flops": 1e9} for step in (5, 10, 20)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def study(tmp_path):
    """Two diffusion runs with previews, one of a name that would break a careless page."""
    write(tmp_path / "demo", 1, 0.5, "ldm-f1")
    write(tmp_path / "demo", 4, 0.3, "ldm-f4 </script><b>'x'")
    return tmp_path / "demo"


def specs(study):
    findings = find_runs([study])
    (group,) = group_by_data(findings.runs)
    from ldmlab.tasks.comparison.looks import run_styles

    return explorer.charts(group.diffusion[0], run_styles(findings.runs))


def test_every_number_of_a_row_can_be_an_axis(study):
    points, curves = specs(study)
    axes = {param["name"]: param for param in points["params"]}
    assert axes["x"]["value"] == "images/s"
    assert axes["y"]["value"] == "KID ×10³"
    assert {"factor", "CPU minutes", "images seen", "training FLOPs"} <= set(axes["x"]["bind"]["options"])
    assert [value["KID ×10³"] for value in points["data"]["values"]] == [500, 300]
    assert curves["data"]["values"][0] == {
        "run": "ldm-f1", "recipe": "ldm-f1", "KID": 700, "CPU minutes": 5 / 60, "minutes": 2.5 / 60, "images seen": 320,
        "training steps": 5, "training FLOPs": 1e9,
    }  # fmt: skip


def test_filters_are_what_runs_differ_in(study):
    assert explorer.filters(find_runs([study]).runs) == {"downsampling": ["f1", "f4"]}


def test_nothing_in_a_name_ends_the_script_that_it_stands_in(study):
    assert "</script" not in explorer.embedded({"name": "</script>"})


def test_seeds_share_a_name_in_the_legend_and_each_has_its_line(study):
    write(study, 1, 0.6, "ldm-f1-seed-1", seed=1)
    points, curves = specs(study)
    assert points["encoding"]["color"]["scale"]["domain"] == ["ldm-f1", "ldm-f4 </script><b>'x'"]
    assert [value["recipe"] for value in points["data"]["values"][:2]] == ["ldm-f1"] * 2
    lines = {(value["recipe"], value[curves["encoding"]["detail"]["field"]]) for value in curves["data"]["values"]}
    assert {("ldm-f1", "ldm-f1"), ("ldm-f1", "ldm-f1-seed-1")} <= lines
    assert len(lines) == 3


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_opens_it_without_an_error_and_its_filters_filter(study):
    from playwright.sync_api import sync_playwright

    write(study, 1, 0.6, "ldm-f1-seed-1", seed=1)
    page_file = compare([study])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        complaints, asked = [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        drawn = "document.querySelectorAll('.mark-symbol.role-mark path').length =="
        page.wait_for_function(f"{drawn} 12")  # three points, and three previews of each
        rows = page.locator("tbody tr[data-runs]")
        assert rows.count() == 5  # two means, three runs

        page.select_option("#filters select[name=downsampling]", "f4")
        assert page.locator("#count").inner_text() == "1 of 3 runs"
        assert [row.is_visible() for row in rows.all()] == [False, True, False, False, True]
        page.wait_for_function(f"{drawn} 4")
        page.select_option("#filters select[name=downsampling]", "")
        page.select_option("#filters select[name=seed]", "1")
        assert [row.is_visible() for row in rows.all()] == [
            False,
            False,
            False,
            True,
            False,
        ]  # a mean is not that of one
        page.select_option("#filters select[name=seed]", "")
        page.locator(".vega-bind select").first.select_option("CPU minutes")
        assert page.locator("details[data-run]").count() == 3
        browser.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []

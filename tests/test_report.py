"""The report: every number from a result file, text escaped, and what a browser makes of it."""

import json
import re
import shutil
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import pytest

from experiments import figures, registry, report
from experiments.checks import Check
from experiments.figures import Arrows, Figure, Heatmap, Plot, Scatter, Series, Stack
from experiments.registry import Outcome
from experiments.running import How, run
from experiments.static import draw
from toolkit.errors import UserError

NASTY = "<script>alert('x')</script> & \"quotes\" </script>"
TOKENS = ["<script>alert(1)</script>", "<b>bold</b> &lt; %{x}", "$\\frac{1$ _ 100%"]
"""Texts that a browser, plotly or matplotlib would read something into."""
TABLE = f"{NASTY:60}  k=1\n{'ours':60}  .25"
WAVE = [0.0, 1.0, float("nan"), 0.5]
FIGURE = Figure(
    "every-kind",
    f"A caption {NASTY}",
    (
        Plot("curves", "x", "y", (Series("a", [1, 2, 3, 4], WAVE, "both", low=[0, 0, 0, 0], high=[1, 2, 1, 1]),
             Series("theory", [1, 4], [1, 1], "dashed")), log_x=True, levels={"half": 0.5}),
        Heatmap("gram", [[1.0, -0.5], [0.5, 1.0]], halves=True),
        Heatmap("phases", [[0, 1], [1, 0]], "p", "I", categories=("one", "two"), x_at=[0.1, 1], y_at=[0.1, 10],
                lines=(Series("border", [0.1, 1], [1, 1], "dashed"),)),
        Arrows("directions", [[1.0, 0.0], [0.0, -1.0]], groups=[0, 1]),
        Stack("neurons", [[0.1, 0.2], [0.3, 0.0]]),
        Scatter("map", [[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]], TOKENS, [0, 1, 1], ("words", "<i>tags</i>")),
        Scatter("circle", [[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]], TOKENS, written=True, joined=True),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two runs of two experiments whose every text is nasty."""
    folder = tmp_path_factory.mktemp("runs")
    pentagon, phases = registry.chosen(["pentagon", "phase-diagram"])

    def measure(settings, cell, seed):
        import torch

        return {"x": torch.zeros(1)}

    checks = (
        Check(f"claim {NASTY}", ">= 1", 0.123456, 0.1, 0.2, 8, passed=False),
        Check("single", "<= 1", 0.987654, float("nan"), float("nan"), 1, passed=True),
    )
    for one in (pentagon, phases):
        planted = replace(
            one, measure=measure, question=f"why {NASTY}?", claim=NASTY, source=NASTY, controls=(NASTY,),
            summarise=lambda *_: Outcome(f"answer {NASTY}.", checks, (FIGURE,), table=TABLE),
        )  # fmt: skip
        run(planted, How(scale="smoke", quiet=True, out=str(folder)))
    return folder


@pytest.fixture(scope="module")
def page(runs):
    report.write(runs, runs / "report.html")
    return runs / "report.html"


def test_text_is_escaped_and_data_cannot_end_its_element(page):
    text = page.read_text("utf-8").replace(report._plotly(), "")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1)
    assert json.loads(data)["figures"][0]["caption"] == FIGURE.caption


def test_tags_close(page):
    class Balance(HTMLParser):
        open: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "link"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    reader = Balance()
    reader.feed(page.read_text("utf-8"))
    assert reader.open == []


def test_every_number_stands_in_a_result_file(page, runs):
    text = page.read_text("utf-8")
    for path in runs.glob("*/001/result.json"):
        for check in json.loads(path.read_text())["checks"]:
            assert f"{check['measured']:.4g}" in text
    assert "2 of 4 checks passed, in 2 experiments." in text
    assert "python -m experiments run pentagon --scale smoke --seed 0" in text
    assert text.count(f'<pre class="answer-table">{escape(TABLE)}</pre>') == 2


def test_it_shows_the_newest_run_and_says_what_it_leaves_out(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    for number, score in (("002", 0.7772), ("010", 0.5552)):
        shutil.copytree(runs / "pentagon" / "001", tmp_path / "runs" / "pentagon" / number)
        path = tmp_path / "runs" / "pentagon" / number / "result.json"
        result = json.loads(path.read_text())
        result["checks"][0]["measured"] = score
        path.write_text(json.dumps(result))
    broken = tmp_path / "runs" / "phase-diagram" / "002"
    broken.mkdir()
    (broken / "result.json").write_text('{"metrics": {"experiment": {"name": "phase-diagram"}}}')
    other = tmp_path / "runs" / "tms" / "001"
    other.mkdir(parents=True)
    (other / "result.json").write_text('{"metrics": {}}')
    assert report.write(tmp_path / "runs", tmp_path / "r.html") == (2, 0)
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "0.5552" in text
    assert "0.7772" not in text
    assert f"{broken}: made by another version or damaged" in text
    assert "tms/001" not in text


def test_nothing_to_report_and_an_unwritable_page_are_one_line(tmp_path, runs):
    with pytest.raises(UserError, match="no finished experiment in"):
        report.write(tmp_path, tmp_path / "r.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        report.write(runs, tmp_path / "file" / "r.html")


def test_a_run_folder_holds_its_figures_in_every_form(runs):
    names = {path.name for path in (runs / "pentagon" / "001").iterdir()}
    assert {"result.json", "figures.json", "figures.html", "every-kind.svg", "tensors.safetensors"} <= names
    assert not any(name.startswith("checkpoint") for name in names)
    assert (runs / report.PLOTLY).exists()


def test_a_static_drawing_is_always_the_same_bytes(tmp_path):
    figure = figures.as_json(FIGURE)
    for name in ("a.svg", "b.svg"):
        draw(figure, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = (tmp_path / "a.svg").read_text()
    assert text.count('<g id="axes_') >= 5


@pytest.mark.parametrize(("curves", "below"), [(5, False), (6, True)])
def test_a_long_list_of_curves_stands_below_and_hides_none(curves, below, tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda self, *a, **how: told.update(how))
    series = tuple(Series(f"curve {n}", [0, 1], [0, n], "both") for n in range(curves))
    draw(figures.as_json(Figure("many", "", (Plot("all", "x", "y", series),))), tmp_path / "many.svg")
    assert ("bbox_to_anchor" in told) == below


def test_texts_of_points_are_no_formulas_in_a_static_drawing(tmp_path):
    draw(figures.as_json(FIGURE), tmp_path / "a.svg")  # "$" opens a formula, and half a formula is an error
    alone = Figure("one", "", (Scatter("map", [[0.0, 0.0], [1.0, 1.0]], ["a", "b"], [1, 1], ("none", "both")),))
    draw(figures.as_json(alone), tmp_path / "b.svg")
    assert figures.COLOURS[1] in (tmp_path / "b.svg").read_text()
    assert figures.COLOURS[0] not in (tmp_path / "b.svg").read_text()


def test_a_scatter_has_a_text_and_a_group_for_each_point():
    with pytest.raises(ValueError, match="map: 1 hover texts for 2 points"):
        Scatter("map", [[0.0, 0.0], [1.0, 1.0]], ["a"])
    with pytest.raises(ValueError, match="map: 1 groups for 2 points"):
        Scatter("map", [[0.0, 0.0], [1.0, 1.0]], ["a", "b"], groups=[0])


def test_the_command_that_is_shown_names_the_model():
    config = {"scale": "default", "seed": 0, "settings": {"model": "my model", "frequencies": ""}}
    command = report._command({"name": "x", "config": config})
    assert command == "python -m experiments run x --scale default --seed 0 --model 'my model'"
    config["settings"] |= {"corpus": "text", "hook": "blocks.1.hook_resid_post"}
    config["set"] = ["steps=5", "ks=1, 2"]
    command = report._command({"name": "x", "config": config})
    assert command.endswith("--corpus text --hook blocks.1.hook_resid_post --set steps=5 --set 'ks=1, 2'")


def test_figures_as_json_are_plain_and_without_nan():
    plain = figures.as_json(FIGURE)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["panels"][0]["series"][0]["y"] == [0.0, 1.0, None, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser_it_draws_every_figure_without_error_and_without_the_network(browser, page, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    tab, said, asked = context.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("dialog", lambda dialog: (said.append("a dialog opened"), dialog.dismiss()))
    tab.goto(page.as_uri())
    panels = tab.locator(".panel")
    assert panels.count() == 2 * len(FIGURE.panels)
    for at in range(panels.count()):
        panels.nth(at).scroll_into_view_if_needed()
        panels.nth(at).locator(".main-svg").first.wait_for(timeout=20_000)
    written = tab.locator(".panel").nth(len(FIGURE.panels) - 1).locator(".textpoint text")
    assert [written.nth(at).text_content() for at in range(written.count())] == TOKENS
    assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out sideways
    assert tab.locator(".panel .arrows, .panel .scatterlayer .trace").count() > 0
    assert tab.locator(".panel .heatmaplayer image").count() == 4
    assert tab.locator(".panel .barlayer .bars").count() > 0
    for link in tab.locator("a[href^='#']").all():
        link.click()
        assert tab.locator(f"[id='{link.get_attribute('href')[1:]}']").is_visible()
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


@pytest.mark.slow
def test_a_point_shows_its_text_as_it_is_and_the_legend_names_the_groups(browser, runs):
    tab, said = browser.new_page(), []
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: (said.append("a dialog opened"), dialog.dismiss()))
    tab.goto((runs / "pentagon" / "001" / "figures.html").as_uri())
    panel = tab.locator(".panel").nth(len(FIGURE.panels) - 2)
    panel.scroll_into_view_if_needed()
    panel.locator(".scatterlayer .point").nth(2).wait_for(timeout=20_000)
    assert [text.text_content() for text in panel.locator(".legendtext").all()] == ["words", "<i>tags</i>"]
    for at, token in enumerate(TOKENS):
        box = panel.locator(".scatterlayer .point").nth(at).bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        showing = "([panel, text]) => panel.querySelector('.hoverlayer').textContent === text"
        tab.wait_for_function(showing, arg=[panel.element_handle(), token], timeout=20_000)
    assert tab.locator(".hoverlayer b, .hoverlayer script, .hoverlayer [style*=bold]").count() == 0
    assert said == []
    tab.close()


@pytest.mark.slow
def test_a_runs_own_page_draws_too(browser, runs):
    tab, said = browser.new_page(), []
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto((runs / "pentagon" / "001" / "figures.html").as_uri())
    tab.locator(".panel .main-svg").first.wait_for(timeout=20_000)
    assert said == []
    tab.close()


def test_audits_are_named_with_their_counts_and_a_link_to_their_pages(runs, tmp_path):
    shutil.copytree(runs / "pentagon", tmp_path / "runs" / "pentagon")
    counts = {"model": 7, "dataset": 3}
    for number in ("001", "002", ".003.unfinished"):
        folder = tmp_path / "runs" / "audit of #1" / number
        folder.mkdir(parents=True)
        audit = {"model": f"{NASTY}-{number}", "hook": "blocks.2.hook_resid_post"}
        (folder / "result.json").write_text(json.dumps({"metrics": {"audit": audit, "counts": counts}}))
    (tmp_path / "runs" / "audit of #1" / "001" / "report.html").write_text("")
    (tmp_path / "runs" / "odd" / "001").mkdir(parents=True)
    (tmp_path / "runs" / "odd" / "001" / "result.json").write_text('{"metrics": {"audit": {}}}')
    report.write(tmp_path / "runs", tmp_path / "pages" / "r.html")
    text = (tmp_path / "pages" / "r.html").read_text("utf-8")
    section = re.search(r'<section id="audits">.*?</section>', text, re.DOTALL).group(0)
    assert section.count("7 model, 3 dataset") == 2
    assert 'href="../runs/audit%20of%20%231/001/report.html"' in section
    assert section.count("href") == 1  # 002 has no page
    assert "unfinished" not in section
    assert f"{tmp_path}/runs/odd/001: made by another version or damaged" in section
    assert "<script>alert" not in section


def test_without_audits_there_is_no_word_of_them(page):
    assert 'id="audits"' not in page.read_text("utf-8")

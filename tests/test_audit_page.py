"""An audit's page: what stands in it, that hostile names stay names, and what a browser makes of it."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from controls import audit_page, audit_parts
from toolkit.errors import UserError

ROOT = Path(__file__).parents[1]
NASTY = "<script>alert('x')</script> & \"quotes\" </script><img src=x onerror=alert(1)>"
TURNED = "sae:12 \u202egnorts\u202c \u200f\u05d0"
"""Marks that turn the direction of writing round."""
NAMES = (NASTY, TURNED, "upos=VERB", "line\nbreak\ttab \ud800", "pca:1", "pca:2")


def axis(effect, reach, settled, *, p=0.001, p_absent=0.9, why="", bounds=(0.25, 0.5)):
    return {"effect": effect, "low": None if effect is None else effect - reach, "p": p, "p_absent": p_absent,
            "high": None if effect is None else effect + reach, "settled": settled, "why": why,
            "bounds": bounds}  # fmt: skip


def control(name, observed, null, *, survived, larger=True, note=""):
    draws = len(null)
    return {"control": name, "statistic": "held-out r", "observed": observed, "p": 1 / (1 + draws), "draws": draws,
            "survived": survived, "larger": larger, "note": note, "null": sorted(null),
            "feature": "as named above"}  # fmt: skip


def feature(name, verdict, place, *, p, family="labels", effect=0.8, D=True, steering=None, controls=()):
    return {
        "feature": name, "family": family, "verdict": verdict, "p": p, "threshold": 0.0125, "place": place,
        "why": "C: effect 0.12 [0.01, 0.23]" if verdict == "undecided" else "", "rate": 0.0312,
        "settle": f"more documents {NASTY}" if verdict == "undecided" else "", "r": axis(0.4567, 0.05, ""),
        "D": axis(effect, 0.1, "present") if D else None, "W": axis(0.912, 0.05, "present", bounds=(0.25, 0.75)),
        "C": axis(None, 0.0, "open", p=1.0, p_absent=1.0, why="no place without the feature", bounds=None),
        "controls": list(controls), "steering": steering,
    }  # fmt: skip


def planted(copies=1):
    """What an audit's result.json holds."""
    draw = np.random.default_rng(0).normal(0.02, 0.01, 200).tolist()
    controls = [
        control("labels.shift", 0.4321, draw, survived=True),
        control("labels.iid", 0.02, draw, survived=False, note=f"floor {NASTY}"),
        control("weights.init", 0.3, [0.1, 0.1, 0.1], survived=None, larger=False),
        control("weights.shuffled", None, [0.2, None, 0.1][::2], survived=None),
    ]
    steering = {"sizes": [-2.0, 0.0, 1.0, 4.0], "on": [-0.3, 0.0, 0.25, None], "off": [-0.01, 0.0, 0.02, 0.07]}
    features = [
        feature(NAMES[0], "model", "computed / used", p=0.00123, steering=steering, controls=controls, family=NASTY),
        feature(NAMES[1], "dataset", "inherited / unread", p=0.002, effect=-3.0, family="sae", controls=controls),
        feature(NAMES[2], "undecided", "computed / open", p=0.4, D=False),
        feature(NAMES[3], "inherited", "inherited / used", p=0.003, effect=0.1),
        feature(NAMES[4], "unread", "computed / unread", p=1e-9, effect=10.0, family="pca"),
        feature(NAMES[5], "undecided", "open / open", p=None, effect=None, family="pca"),
    ] * copies  # fmt: skip
    counts = {v: sum(f["verdict"] == v for f in features) for v in ("model", "dataset", "inherited", "unread")}
    audit = {"model": f"tiny {NASTY}", "hook": "blocks.2.hook_resid_post", "corpus": f"{NASTY}.conllu", "rows": 4000,
             "documents": 123, "alpha": 0.05, "budget": "199 cheap draws, 9 dear", "finders": ["labels", "sae", NASTY],
             "seconds": {"read": 1.25, f"nulls {NASTY}": 1234.5, "unknown": None}, "notes": [NASTY]}  # fmt: skip
    metrics = {
        "audit": audit, "counts": {**counts, "undecided": 2 * copies}, "features": features,
        "finder_controls": [control("finders.stability", 0.41, [0.3, 0.31], survived=None) | {"feature": "sae"}],
    }  # fmt: skip
    return {"name": "audit", "config": {"seed": 0, "corpus": NASTY}, "commit": "abc", "metrics": metrics, "checks": []}


def written(folder, result):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    return audit_page.write(folder)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return written(tmp_path_factory.mktemp("audit") / "001", planted())


def test_text_is_escaped_and_data_cannot_end_its_element(page):
    text = page.read_text("utf-8")
    assert "<script>alert" not in text
    assert "<img" not in text
    assert f"<bdi>{escape(NASTY)}</bdi></button>" in text
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1)
    assert json.loads(data)["features"][2]["settle"] == f"more documents {NASTY}"


def test_tags_close_and_nothing_points_out_of_the_page(page):
    class Reader(HTMLParser):
        open: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attributes):
            given = dict(attributes)
            assert "src" not in given
            assert given.get("href", "data:,") == "data:,"
            if tag not in ("meta", "link", "input"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    reader = Reader()
    text = page.read_text("utf-8")
    reader.feed(text)
    assert reader.open == []
    assert "url(" not in text
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) == {"http://www.w3.org/2000/svg"}  # the name of SVG


def test_numbers_stand_as_in_the_result(page):
    text = page.read_text("utf-8")
    for number in ("0.00123", "1e-9", "0.0312", "0.457", "-3", "1230 s", "4,000 in 123 documents"):
        assert number in text
    assert "dataset</i>" not in text
    assert '<i class="dataset"></i>dataset <b>1</b>' in text
    assert 'aria-label="open / open: 1"' in text
    assert "1 of 2" in text  # of the controls that had draws enough, one was not survived


def test_a_nulls_bars_are_its_draws_between_ends_that_stand_in_the_result():
    null = [0.1, 0.2, 0.2, 0.5]
    drawn = audit_parts._drawn(null, 0.9)
    assert (drawn["low"], drawn["high"]) == (0.1, 0.9)
    assert sum(drawn["bars"]) == 4
    assert drawn["bars"][0] == 1
    assert drawn["bars"][-1] == 0
    assert audit_parts._drawn([0.3, 0.3], 0.3) == {"low": 0.3, "high": 0.3, "bars": [2]}
    assert audit_parts._drawn([0.3, 0.4], None)["high"] == 0.4
    assert audit_parts._drawn([], 0.3) is None


def test_colours_are_those_of_the_experiments_page():
    both = [(ROOT / where).read_text() for where in ("controls/audit_page.css", "experiments/page.css")]
    mine, theirs = (re.findall(r"(--[a-z]+): (#[0-9a-f]{6})", text) for text in both)
    assert len(theirs) == 18
    assert set(theirs) <= set(mine)


def test_no_script_runs_but_the_pages_own(page):
    text = page.read_text("utf-8")
    (policy,) = re.findall(r"script-src ([^;]*);", text)
    own = text.rpartition("<script>")[2].removesuffix("</script></body></html>\n")
    assert policy == f"'sha256-{b64encode(sha256(own.encode()).digest()).decode()}'"


def test_the_page_ships_with_the_package():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {"*.css", "*.js"} <= set(settings["tool"]["setuptools"]["package-data"]["controls"])


def damaged(change):
    result = planted()
    change(result["metrics"])
    return json.dumps(result)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot read .*result.json: No such file or directory; name the folder of a finished audit"),
        ('{"metrics": ', "result.json is damaged .*: run the audit again"),
        ("[]", "has no metrics.audit"),
        ('{"metrics": {"experiment": {}}}', "has no metrics.audit"),
        (damaged(lambda m: m.pop("counts")), r"another version or is damaged \(KeyError: 'counts'\)"),
        (damaged(lambda m: m["features"][0].pop("threshold")), "KeyError: 'threshold'"),
        (damaged(lambda m: m["features"][0]["W"].pop("p_absent")), "KeyError: 'p_absent'"),
        (damaged(lambda m: m["features"][0].update(verdict="maybe")), "unknown verdict 'maybe'"),
        (damaged(lambda m: m["features"][0].update(place="nowhere")), "unknown place 'nowhere'"),
        (damaged(lambda m: m["features"][0].update(p="small")), "ValueError"),
        (damaged(lambda m: m.update(features=3)), "TypeError"),
    ],
)
def test_a_missing_or_damaged_result_is_one_line_and_leaves_no_page(tmp_path, text, says):
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        audit_page.write(tmp_path)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"result.json"}


def test_numbers_that_are_none_and_an_audit_of_nothing_are_shown(tmp_path):
    result = planted()
    result["metrics"]["features"][0].update(p=float("nan"), rate=float("inf"))
    written(tmp_path / "a", result)
    result["metrics"].update(features=[], finder_controls=[])
    result["metrics"]["audit"].update(seconds={}, notes=[], rows=None)
    assert "– in 123 documents" in written(tmp_path / "b", result).read_text("utf-8")


def test_an_unwritable_page_is_one_line(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(planted()))
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        audit_page.write(tmp_path)


def test_a_feature_with_forty_controls_takes_little_of_the_page(tmp_path):
    result = planted()
    draws = np.random.default_rng(0).normal(size=200).tolist()
    controls = [control(f"labels.kind-{at}", 0.1, draws, survived=True, note="a note") for at in range(40)]
    one = feature("sae:0", "model", "computed / used", p=0.001, controls=controls)
    sizes = []
    for count in (1, 11):
        result["metrics"]["features"] = [one] * count
        sizes.append(written(tmp_path, result).stat().st_size)
    assert (sizes[1] - sizes[0]) / 10 < 25_000  # 200 features: 5 MB


@pytest.fixture
def tab(browser, page, request):
    """The page in a tab that must say nothing and ask for nothing."""
    width, scheme = getattr(request, "param", (1280, "light"))
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    tab, said, asked = context.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("dialog", lambda dialog: (said.append("a dialog opened"), dialog.dismiss()))
    tab.goto(page.as_uri())
    yield tab
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    context.close()


def names(tab):
    """Of the rows that are seen, from the top."""
    order = [text.split()[0] for text in tab.locator("tr.feature:visible .open").all_text_contents()]
    return [
        ["<script>alert('x')</script>", "sae:12", "upos=VERB", "line", "pca:1", "pca:2"].index(word) for word in order
    ]


@pytest.mark.slow
def test_it_sorts_by_every_column_with_unknown_values_last(tab):
    heads = tab.locator(".features th")
    assert heads.count() == len(audit_parts.COLUMNS)
    for at, column in enumerate(audit_parts.COLUMNS):
        heads.nth(at).locator("button").click()
        assert heads.nth(at).get_attribute("aria-sort") == "ascending", column
        assert tab.locator(".features th:not([aria-sort=none])").count() == 1
    tab.get_by_role("button", name="p", exact=True).click()
    assert names(tab) == [4, 0, 1, 3, 2, 5]
    tab.get_by_role("button", name="p", exact=True).press("Enter")
    assert heads.nth(3).get_attribute("aria-sort") == "descending"
    assert names(tab) == [2, 3, 1, 0, 4, 5]
    tab.get_by_role("button", name="D", exact=True).click()
    assert names(tab)[:4] == [1, 3, 0, 4]  # by value: -3 before 0.1, and 10 last
    tab.get_by_role("button", name="feature", exact=True).click()
    assert names(tab)[-1] == 2


@pytest.mark.slow
def test_it_filters_by_verdict_place_family_and_text(tab):
    status = tab.locator("#shown")
    tab.locator(".chip", has_text="undecided").click()
    assert names(tab) == [2, 5]
    assert status.text_content() == "2 of 6 shown"
    tab.locator(".chip", has_text="model").press("Space")
    assert names(tab) == [0, 2, 5]
    tab.locator("#family").select_option(label="pca")
    assert names(tab) == [5]
    tab.locator("#clear").click()
    assert names(tab) == [0, 1, 2, 3, 4, 5]
    tab.locator("#family").select_option(value=NASTY)
    assert names(tab) == [0]
    tab.locator("#clear").click()
    tab.locator("[data-filter=place][data-value='computed / unread']").click()
    assert names(tab) == [4]
    tab.locator("#clear").click()
    tab.locator("#text").fill("MORE documents")  # why it is undecided is searched as well
    assert names(tab) == [2, 5]
    tab.locator("#text").fill("<SCRIPT>")
    assert names(tab) == [0, 2, 5]


@pytest.mark.slow
@pytest.mark.parametrize("tab", [(1280, "light"), (390, "dark")], indirect=True)
def test_a_row_opens_onto_its_evidence(tab):
    width = tab.viewport_size["width"]
    first = tab.locator("tr.feature .open").first
    first.press("Enter")
    assert first.get_attribute("aria-expanded") == "true"
    detail = tab.locator("tr.detail")
    assert detail.locator(".controls tbody tr").count() == 4
    assert detail.locator(".fate").all_text_contents() == ["survived", "not survived"] + 2 * ["too few draws"]
    assert detail.locator(".track").count() == 3  # C was not measured
    assert detail.locator(".track").nth(2).locator("text").all_text_contents() == ["0", "0.25", "0.75"]
    assert detail.locator(".steering circle").count() == 7
    assert detail.locator(".soft", has_text="floor").text_content() == f"floor {NASTY}"
    null = detail.locator("svg.null").first
    bars, observed = null.locator("rect.bar"), null.locator(".observed")
    right = max(bar["x"] + bar["width"] for bar in (one.bounding_box() for one in bars.all()))
    assert observed.bounding_box()["x"] > right + 20  # .4321, and the null ends near .05
    assert detail.locator("svg.null").nth(3).locator(".observed").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out sideways
    tab.locator("tr.feature td[data-name=verdict]").nth(2).click()
    assert "What would settle it: more documents <script>" in tab.locator("tr.detail").nth(1).text_content()
    tab.locator(".chip", has_text="undecided").click()
    assert tab.locator("tr.detail:visible").count() == 1
    tab.locator("#clear").click()
    first.click()
    assert tab.locator("tr.detail:visible").count() == 1
    assert first.get_attribute("aria-expanded") == "false"
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (width == 390)


@pytest.mark.slow
def test_an_opened_row_goes_where_its_feature_goes(tab):
    tab.locator("tr.feature .open").nth(2).click()
    tab.get_by_role("button", name="p", exact=True).click()
    after = tab.evaluate("document.querySelector('tr.detail').previousElementSibling.textContent")
    assert after.startswith("upos=VERB")
    assert tab.locator("#finders .controls tbody tr").text_content().startswith("sae · finders.stability")

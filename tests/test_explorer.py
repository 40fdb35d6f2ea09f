"""The explorer: what is written from result files, that hostile tokens stay text, and what a browser makes of it."""

import json
import re
import shutil
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_audit_page import planted as planted_audit

from experiments import explorer, report
from toolkit.errors import UserError
from toolkit.latent_events import BARS

ROOT = Path(__file__).parents[1]
MANY = 10_000
NASTY = "<script>alert('x')</script> & \"quotes\" </script><img src=x onerror=alert(1)>"
HOSTILE = [NASTY, "\u202egnorts\u202c", "\u2066a\u2069", "\u200f\u05d0\u200e", "line\nbreak\ttab\r", " two  spaces ",
           "\x00\x1b[31m", "\ud800", "", "\u0301\u0302", "\u00a0\u3000\u200b\ufeff", "<!--", "]]>", "${x}"]  # fmt: skip
"""Tokens that a page could read something into, that turn writing round or that cannot be seen."""
SHOWN = [NASTY.replace(" ", "␣"), "U+202EgnortsU+202C", "U+2066aU+2069",
         "U+200F\u05d0U+200E", "line↵break⇥tab␍", "␣two␣␣spaces␣",
         "␀␛[31m", "U+D800", "∅", "◌\u0301\u0302", "U+00A0U+3000U+200BU+FEFF", "<!--", "]]>", "${x}"]  # fmt: skip
"""What is seen of them."""


def latent(number, tokens, width):
    """A latent's part of a chunk."""
    contexts = [
        {"document": 3, "position": at, "held_out": at == 0, "at": min(2, len(tokens) - 1), "tokens": tokens,
         "values": [float(at == min(2, len(tokens) - 1)) * (number + 1) for at in range(len(tokens))]}
        for at in range(3)
    ]  # fmt: skip
    pairs = [[text, 1.0 - 0.1 * at] for at, text in enumerate(tokens)]
    near = [[(number + 1) % width, 0.5], [(number + 2) % width, 0.25]]
    logits = {"raised": pairs, "lowered": [[text, -value] for text, value in pairs]}
    return {"contexts": [] if number == 5 else contexts, "bars": list(range(BARS)), "logits": logits,
            "direction": near, "company": near[:1]}  # fmt: skip


def plant(runs, width=MANY, number="001", sae=""):
    """A run's files as toolkit.fit_activations writes them: latent 7's tokens are hostile, latent 5 is dead."""
    run = runs / "activations-tiny" / number
    (run / "latents").mkdir(parents=True)
    words = [[f"word{n}", " the", " cat"] for n in range(width)]
    words[7] = HOSTILE
    density = [((n * 37) % width) / width for n in range(width)]
    columns = {"density": density, "l0_share": [d / width for d in density], "max": [n + 1.0 for n in range(width)],
               "mean": [1.0] * width, "fvu": [None if n == 3 else 0.001 * n for n in range(width)],
               "cosine": [0.5] * width, "x": [float(n % 100) for n in range(width)],
               "y": [float(n // 100) for n in range(width)], "kurtosis": [float(-n) for n in range(width)]}  # fmt: skip
    shown = [[] if n == 5 else words[n] for n in range(width)]
    index = {"format": 1, "width": width, "per_chunk": 200, "map": "UMAP", "rows": 1000, "held_out": 100,
             "documents": 9, "logits": "stated", "columns": columns, "tokens": shown,
             "raised": [[f"raised{n}"] for n in range(width)]}  # fmt: skip
    (run / "latents" / "index.json").write_text(json.dumps(index))
    for at, start in enumerate(range(0, width, 200)):
        chunk = [latent(n, words[n], width) for n in range(start, min(start + 200, width))]
        (run / "latents" / f"chunk-{at:03d}.json").write_text(json.dumps(chunk))
    part = {"model": f"tiny {NASTY}", "hook": "blocks.2.hook_resid_post", "corpus": NASTY, "sae": sae}
    config = {"activations": part, "sae": {"architecture": "topk", "width": width}}
    metrics = {"fvu": 0.1, "fvu_held_out": None, "dead": 0.01}
    (run / "result.json").write_text(json.dumps({"name": "x", "config": config, "metrics": metrics, "checks": []}))
    if not sae:
        (run / "sae").mkdir()
        (run / "sae" / "sae_weights.safetensors").write_bytes(b"weights")
    return run


def audited(
    runs, sae, number="001", *, latents=(257, 7, 3), started="2026-01-01", hook="blocks.2.hook_resid_post", verdicts=()
):
    """An audit's result of some latents, with a page."""
    result = planted_audit()
    features = [
        one | {"feature": f"sae:{n}", "family": "sae"}
        for n, one in zip(latents, result["metrics"]["features"], strict=False)
    ]
    for one, verdict in zip(features, verdicts, strict=False):
        one["verdict"] = verdict
    labels = result["metrics"]["features"][3] | {"feature": "upos=VERB:12"}
    result["metrics"].update(features=[*features, labels])
    result["metrics"]["audit"]["hook"] = hook
    result |= {"config": {"seed": 0, "sae": str(sae)}, "started": started}
    folder = runs / "audit" / number
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "report.html").write_text("<title>the audit</title>")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    audited(folder, plant(folder) / "sae")
    return folder


@pytest.fixture(scope="module")
def page(runs):
    report.write(runs, runs / "report.html")
    return runs / "activations-tiny" / "001" / "explorer" / "index.html"


def data_of(page):
    text = page.read_text("utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))


def test_the_page_links_both_ways_and_nothing_points_out_of_the_folder(page, runs):
    text = (runs / "report.html").read_text("utf-8")
    assert 'href="activations-tiny/001/explorer/index.html"' in text
    assert "10,000 latents, 3 with a verdict" in text
    assert 'href="../../../report.html"' in page.read_text("utf-8")
    assert set(re.findall(r"https?://[^\"'\s<]+", page.read_text("utf-8"))) == {"http://www.w3.org/2000/svg"}
    assert len([*page.parent.glob("chunk-*.js")]) == 50
    assert not [*runs.rglob("*.tmp")]


def test_text_cannot_end_its_element_in_the_page_or_in_a_chunk(page):
    for path in page.parent.iterdir():
        text = path.read_text("utf-8")
        assert "<script>alert" not in text
        assert "<img" not in text
    assert "</" not in (page.parent / "chunk-000.js").read_text("utf-8")
    assert data_of(page)["tokens"][7] == HOSTILE

    class Reader(HTMLParser):
        open: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attributes):
            assert "src" not in dict(attributes)
            if tag not in ("meta", "link", "input"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    reader = Reader()
    reader.feed(page.read_text("utf-8"))
    assert reader.open == []


def test_a_chunk_is_the_runs_own_with_the_evidence_beside_it(page):
    text = (page.parent / "chunk-001.js").read_text("utf-8")
    chunk, evidence = json.JSONDecoder(), None
    assert text.startswith("arrived(1,")
    pages, end = chunk.raw_decode(text, len("arrived(1,"))
    evidence, end = chunk.raw_decode(text, end + 1)
    assert text[end:] == ");\n"
    assert pages == json.loads((page.parents[1] / "latents" / "chunk-001.json").read_text())
    assert list(evidence) == ["257"]
    assert evidence["257"]["verdict"] == "model"
    assert evidence["257"]["axes"]["W"]["effect"] == 0.912
    assert [one["survived"] for one in evidence["257"]["controls"]] == [True, False, None, None]
    assert evidence["257"]["audit"]["link"] == "../../../audit/001/report.html"
    assert data_of(page)["verdicts"] == {"257": "model", "7": "dataset", "3": "undecided"}


def verdicts_of(runs):
    found, left_out = explorer.write_explorers(runs, runs / "report.html")
    return data_of(found[0].page)["verdicts"], left_out


def test_an_audit_is_matched_by_folder_by_name_or_by_weights(tmp_path):
    def fresh(name, sae, **how):
        run = plant(tmp_path / name, 10, sae=how.pop("given", ""))
        audited(tmp_path / name, run / "sae" if sae is None else sae, latents=(2,), **how)
        return verdicts_of(tmp_path / name)[0]

    twin, other = tmp_path / "twin", tmp_path / "other"
    for folder, weights in ((twin, b"weights"), (other, b"WEIGHTS")):
        folder.mkdir()
        (folder / "sae_weights.safetensors").write_bytes(weights)
    assert fresh("own", None) == {"2": "model"}
    assert fresh("copied", twin) == {"2": "model"}
    assert fresh("changed", other) == {}
    assert fresh("elsewhere", None, hook="blocks.1.hook_resid_post") == {}
    assert fresh("moved", "/gone/activations-tiny/001/sae") == {"2": "model"}
    assert fresh("another", "/gone/activations-tiny/002/sae") == {}
    assert fresh("release", "gpt2-small:layer-2", given="gpt2-small:layer-2") == {"2": "model"}
    assert fresh("no release", "gpt2-small:layer-3", given="gpt2-small:layer-2") == {}


@pytest.mark.parametrize(("begun", "told"), [("2026-02-01", {}), ("2025-12-01", {"2": "model"})])
def test_an_audit_older_than_the_run_was_of_another_that_had_its_number(begun, told, tmp_path):
    run = plant(tmp_path, 10)
    audited(tmp_path, run / "sae", latents=(2,), started="2026-01-01")
    result = json.loads((run / "result.json").read_text()) | {"started": begun}
    (run / "result.json").write_text(json.dumps(result))
    assert verdicts_of(tmp_path)[0] == told


def test_one_run_that_cannot_be_read_costs_only_its_own_explorer(tmp_path, monkeypatch):
    run, whole = plant(tmp_path, 10), plant(tmp_path, 10, "002")
    written = explorer._written

    def refused(folder, *rest):
        if folder == run:
            raise PermissionError(13, "Permission denied", str(folder))
        return written(folder, *rest)

    monkeypatch.setattr(explorer, "_written", refused)
    found, left_out = explorer.write_explorers(tmp_path, tmp_path / "report.html")
    assert [one.page.parent.parent for one in found] == [whole]
    assert left_out == [f"{run}: no explorer, {run}: Permission denied"]


def test_the_newest_audit_of_a_latent_counts_and_a_damaged_one_is_named(tmp_path):
    run = plant(tmp_path, 10)
    audited(tmp_path, run / "sae", "001", latents=(2, 4), started="2026-03-01", verdicts=("unread", "unread"))
    audited(tmp_path, run / "sae", "002", latents=(2, 99), started="2026-02-01", verdicts=("inherited", "inherited"))
    assert verdicts_of(tmp_path) == ({"2": "unread", "4": "unread"}, [])
    path = audited(tmp_path, run / "sae", "003", started="2026-04-01") / "result.json"
    path.write_text(path.read_text().replace('"threshold"', '"limit"'))
    found, left_out = verdicts_of(tmp_path)
    assert found == {"2": "unread", "4": "unread"}
    assert left_out == [f"{path.parent}: made by another version or damaged (KeyError: 'threshold')"]


@pytest.mark.parametrize("damage", ["result", "index", "format", "columns", "chunk", "short chunk"])
def test_a_damaged_run_is_named_and_leaves_no_explorer(tmp_path, damage):
    run, whole = plant(tmp_path, 10), plant(tmp_path, 10, "002")
    index = json.loads((run / "latents" / "index.json").read_text())
    if damage == "result":
        (run / "result.json").unlink()
    elif damage == "chunk":
        (run / "latents" / "chunk-000.json").unlink()
    elif damage == "short chunk":
        (run / "latents" / "chunk-000.json").write_text("[]")
    else:
        index["columns"]["density"] = index["columns"]["density"][: 9 if damage == "columns" else 10]
        index["format"] = 2 if damage == "format" else 1
        (run / "latents" / "index.json").write_text(json.dumps(index)[: 50 if damage == "index" else None])
    found, left_out = explorer.write_explorers(tmp_path, tmp_path / "report.html")
    assert [one.page.parent.parent for one in found] == [whole]
    assert len(left_out) == 1
    assert left_out[0].startswith(f"{run}: made by another version or damaged")
    assert {path.name for path in run.iterdir()} <= {"latents", "sae", "result.json"}


def test_an_explorer_is_written_anew_and_one_that_cannot_be_is_one_line(tmp_path, monkeypatch):
    run = plant(tmp_path, 10)
    assert report.write(tmp_path, tmp_path / "report.html") == (0, 1)
    (run / "explorer" / "chunk-009.js").write_text("old")
    report.write(tmp_path, tmp_path / "report.html")
    assert {path.name for path in (run / "explorer").iterdir()} == {"index.html", "chunk-000.js"}

    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(explorer, "_save", full)
    with pytest.raises(UserError, match=r"cannot write .*explorer: No space left"):
        report.write(tmp_path, tmp_path / "report.html")


def test_the_files_ship_with_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {"*.css", "*.html", "*.js"} <= set(settings["tool"]["setuptools"]["package-data"]["experiments"])


def test_colours_are_those_of_an_audits_page():
    both = [(ROOT / where).read_text() for where in ("experiments/explorer.css", "controls/audit_page.css")]
    mine, theirs = (re.findall(r"(--[a-z]+): (#[0-9a-f]{6})", text) for text in both)
    assert len(theirs) == 28
    assert set(theirs) <= set(mine)


class Tab:
    """The page in a tab that must say nothing and ask for nothing but its own files."""

    def __init__(self, browser, width, scheme):
        size = {"width": width, "height": 800}
        self.context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
        self.context.set_default_timeout(120_000)
        self.page, self.said, self.asked = self.context.new_page(), [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: (self.said.append("a dialog opened"), dialog.dismiss()))

    def goto(self, path, number=""):
        self.page.goto(path.as_uri() + number)
        self.page.locator("main h1").wait_for(state="attached")

    def title(self, text):
        self.page.locator("main h1", has_text=re.compile(f"^{text}$")).wait_for(state="attached")

    def numbers(self):
        return [int(one[1:]) for one in self.page.locator(".row b").all_text_contents()]

    def fits(self):
        return self.page.evaluate("document.documentElement.scrollWidth") <= self.page.viewport_size["width"]


@pytest.fixture
def tab(browser, page, request):
    tab = Tab(browser, *getattr(request, "param", (1280, "light")))
    tab.goto(page)
    yield tab
    tab.context.close()
    assert tab.said == []
    assert [url for url in tab.asked if not url.startswith((page.parent.as_uri(), "data:"))] == []


@pytest.mark.slow
def test_ten_thousand_latents_are_a_screenful_of_rows_and_one_chunk(tab):
    assert 10 < tab.page.locator(".row").count() < 200
    assert [Path(url).name for url in tab.asked if url.endswith(".js")] == ["chunk-000.js"]
    assert tab.page.locator("#shown").text_content() == "10,000 of 10,000 latents"
    tab.page.locator("#list").evaluate("list => { list.scrollTop = list.scrollHeight; }")
    tab.page.locator("#row-9999").wait_for()
    assert tab.page.locator(".row").count() < 200
    tab.page.locator("#row-9999").click()
    tab.title("Latent 9999")
    assert tab.page.evaluate("location.hash") == "#9999"
    assert [Path(url).name for url in tab.asked if url.endswith(".js")] == ["chunk-000.js", "chunk-049.js"]
    tab.page.go_back()
    tab.page.go_forward()
    tab.title("Latent 9999")
    assert len([url for url in tab.asked if url.endswith(".js")]) == 2  # a chunk is fetched once


@pytest.mark.slow
def test_it_searches_sorts_and_filters(tab):
    find, sort, first = tab.page.locator("#find"), tab.page.locator("#sort"), lambda: tab.numbers()[:3]
    find.fill("WORD1234")
    assert tab.numbers() == [1234]
    find.fill("raised77")
    assert tab.numbers()[:2] == [77, 770]
    find.fill("257")
    assert tab.numbers()[:8] == [257, 1257, 2257, 2570, 2571, 2572, 2573, 2574]
    assert tab.page.locator("#shown").text_content() == "20 of 10,000 latents"
    tab.page.locator("#way").click()
    assert tab.numbers()[:3] == [257, 9257, 8257]  # the number itself first
    tab.page.locator("#way").click()
    find.fill("#257")
    assert tab.numbers() == [257]
    find.fill("<img src=x")
    assert tab.numbers() == [7]
    find.fill("")
    sort.select_option("max")
    assert first() == [9999, 9998, 9997]
    tab.page.locator("#way").click()
    assert first() == [0, 1, 2]
    sort.select_option("fvu")
    assert first() == [9999, 9998, 9997]
    tab.page.locator("#way").click()
    tab.page.locator("#list").evaluate("list => { list.scrollTop = list.scrollHeight; }")
    tab.page.locator("#row-3").wait_for()
    assert tab.numbers()[-1] == 3  # unknown values stand last both ways
    sort.select_option("verdict")
    assert first() == [257, 7, 3]
    tab.page.locator(".chip", has_text="dataset").click()
    assert tab.numbers() == [7]
    tab.page.locator(".chip", has_text="undecided").press("Space")
    assert tab.numbers() == [7, 3]
    assert tab.page.locator("#shown").text_content() == "2 of 10,000 latents"
    tab.page.locator(".chip", has_text="undecided").click()
    tab.page.locator(".chip", has_text="dataset").click()
    sort.select_option("density")
    assert tab.numbers()[0] == max(range(MANY), key=lambda n: (n * 37) % MANY)


@pytest.mark.slow
def test_the_keyboard_goes_through_the_list(tab):
    press = tab.page.keyboard.press
    press("j")
    tab.title("Latent 1")
    press("ArrowRight")
    tab.title("Latent 2")
    press("k")
    tab.title("Latent 1")
    tab.page.locator("#list").focus()
    press("ArrowDown")
    tab.title("Latent 2")
    assert tab.page.locator("#list").get_attribute("aria-activedescendant") == "row-2"
    assert tab.page.locator("#row-2").get_attribute("aria-selected") == "true"
    press("/")
    tab.page.keyboard.type("word300j")  # in the field letters are letters
    assert tab.page.locator("#find").input_value() == "word300j"
    press("Backspace")
    press("Enter")
    tab.title("Latent 300")
    press("Escape")
    assert tab.page.locator("#find").input_value() == ""
    press("Escape")
    assert tab.page.evaluate("document.activeElement.id") != "find"
    press("j")
    tab.title("Latent 301")
    tab.page.get_by_role("button", name="previous latent").click()
    tab.title("Latent 300")


@pytest.mark.slow
@pytest.mark.parametrize("tab", [(1280, "light"), (390, "dark")], indirect=True)
def test_a_latents_page_has_everything_that_is_known_of_it(tab, page):
    tab.goto(page, "#257")
    tab.title("Latent 257")
    main, narrow = tab.page.locator("main"), tab.page.viewport_size["width"] == 390
    assert main.is_visible()
    assert tab.page.locator("aside").is_visible() != narrow
    assert main.locator("header .badge").text_content() == "model"
    contexts = main.locator(".contexts li")
    assert contexts.count() == 3
    assert contexts.first.locator(".token").all_text_contents() == ["word257", " the", " cat"]
    assert contexts.first.locator(".where").text_content() == "document 3, token 0, held out"
    colours = contexts.first.locator(".token").evaluate_all(
        "all => all.map((one) => getComputedStyle(one).backgroundColor)"
    )
    assert [re.findall(r"[\d.]+", colour)[3:] for colour in colours] in (
        [["0"], ["0"], ["0.85"]],
        [["0"], ["0"], ["0.8"]],
    )
    assert main.locator(".histogram rect").count() == BARS
    assert main.locator(".effects li").count() == 6
    assert main.locator(".near a").all_text_contents() == ["#258", "#259", "#258"]
    assert main.locator(".axes .track").count() == 2  # C was not measured
    assert "0.912 [0.862, 0.962]: present" in main.locator(".axes").text_content()
    main.locator(".controls summary").click()
    assert main.locator(".controls summary").text_content() == "1 of 2 controls survived"
    assert main.locator(".controls tbody tr").count() == 4
    assert main.locator(".controls td.failed").text_content() == "not survived"
    painted = main.locator(".map").evaluate(
        "one => new Set(one.getContext('2d').getImageData(0, 0, one.width, one.height).data).size"
    )
    assert painted > 10
    assert tab.fits()
    background = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == narrow
    tab.page.get_by_role("link", name="#259").click()
    tab.title("Latent 259")
    assert "not audited" in main.text_content()
    if narrow:
        tab.page.get_by_role("button", name="all latents").click()
        assert tab.page.locator("aside").is_visible()
        assert not main.is_visible()
        assert tab.fits()
        tab.page.locator("#row-259").click()
        assert main.is_visible()
    tab.goto(page, "#5")
    tab.title("Latent 5")
    assert "never on in 1,000 rows" in main.text_content()


@pytest.mark.slow
def test_the_audits_page_opens_from_the_evidence(tab, page, runs):
    tab.goto(page, "#7")
    link = tab.page.get_by_role("link", name="The audit's page").get_attribute("href")
    assert (page.parent / link).resolve() == (runs / "audit" / "001" / "report.html").resolve()
    assert "What would settle it" not in tab.page.locator("main").text_content()
    tab.goto(page, "#3")
    tab.title("Latent 3")
    assert f"more documents {NASTY}"[:60] in tab.page.locator(".lead").text_content()


@pytest.mark.slow
@pytest.mark.parametrize("tab", [(1280, "light"), (390, "light")], indirect=True)
def test_hostile_tokens_are_seen_and_do_nothing(tab, page):
    tab.goto(page, "#7")
    tab.title("Latent 7")
    assert tab.page.locator(".effects").first.locator(".token").all_text_contents() == SHOWN
    line = tab.page.locator(".contexts li").first.locator(".token")
    assert line.all_text_contents() == [text.replace("␣", " ") for text in SHOWN]
    assert line.evaluate_all("all => all.every((one) => one.tagName === 'BDI' && one.dir === 'ltr')")
    assert tab.page.locator("main script, main img, aside script, aside img").count() == 0
    assert not re.search("[\u200e\u200f\u202a-\u202e\u2066-\u2069]", tab.page.locator("body").inner_text())
    boxes = [one.bounding_box() for one in tab.page.locator(".effects").first.locator(".token").all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= tab.page.viewport_size["width"] for box in boxes)
    assert tab.fits()


@pytest.mark.slow
def test_a_chunk_that_is_gone_is_said(browser, page, tmp_path):
    shutil.copytree(page.parent, tmp_path / "explorer")
    (tmp_path / "explorer" / "chunk-001.js").unlink()
    tab = Tab(browser, 1280, "light")
    tab.goto(tmp_path / "explorer" / "index.html")
    tab.page.goto((tmp_path / "explorer" / "index.html").as_uri() + "#200")
    tab.page.locator("main .failed", has_text="chunk-001.js cannot be read").wait_for()
    tab.context.close()


@pytest.mark.slow
def test_a_script_that_is_not_the_pages_own_does_not_run(browser, page, tmp_path):
    """The policy holds even where a text was not escaped."""
    shutil.copytree(page.parent, tmp_path / "explorer")
    path = tmp_path / "explorer" / "index.html"
    path.write_text(
        path.read_text("utf-8").replace("</aside>", "<script>document.title = 'run'</script></aside>"), "utf-8"
    )
    tab = Tab(browser, 1280, "light")
    tab.goto(path)
    assert tab.page.title().startswith("#0")
    assert any("Content Security Policy" in text for text in tab.said)
    tab.context.close()

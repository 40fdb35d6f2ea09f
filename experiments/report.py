"""One self-contained page over everything that has run. It computes nothing: every number stands in a result file."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from controls.audit_page import PAGE
from controls.audit_page import read as read_audit
from experiments.explorer import Explorer, write_explorers
from experiments.figures import COLOURS
from experiments.registry import place
from toolkit.errors import UserError

PLOTLY = "plotly.min.js"
_MAP = "dictionary-umap"
_TITLE = "Toy models and embeddings: claims and measurements"


@dataclass(frozen=True)
class Page:
    """A run as its files tell it."""

    folder: Path
    """Where it is."""
    result: Mapping[str, Any]
    """result.json."""
    figures: Sequence[Mapping[str, Any]]
    """figures.json."""

    @property
    def experiment(self) -> Mapping[str, Any]:
        """Name, row, question, claim, source and controls."""
        return self.result["metrics"]["experiment"]

    @property
    def failed(self) -> int:
        """How many checks did."""
        return sum(not check["passed"] for check in self.result["checks"])


def write(runs: Path, to: Path) -> tuple[int, int]:
    """Write the page over the newest run of each experiment in `runs`, and the explorer of each SAE.

    Returns:
        How many experiments and how many explorers there are.

    Raises:
        UserError: nothing has run, or a page cannot be written.
    """
    pages, left_out = read(runs)
    explorers, damaged = write_explorers(runs, to)
    left_out += damaged
    if not (pages or explorers):
        reason = f": {left_out[0]}" if left_out else ""
        raise UserError(f"no finished experiment in {runs}{reason}; run one: python -m experiments run NAME")
    further = _explorers(explorers, pages, to.parent) + _audits(runs, to.parent)
    _save(to, html(pages, left_out, script=_plotly() if pages else "", further=further))
    return len(pages), len(explorers)


def write_figures(folder: Path, result: Mapping[str, Any], figures: Sequence[Mapping[str, Any]], runs: Path) -> None:
    """Write one run's own interactive page; plotly lies once in `runs`, for all of them."""
    library = runs / PLOTLY
    if not library.exists():
        _save(library, _plotly())
    _save(folder / "figures.html", html([Page(folder, result, figures)], [], script="", source=f"../../{PLOTLY}"))


def read(runs: Path) -> tuple[list[Page], list[str]]:
    """The newest finished run of each experiment, in the order of the rows, and what could not be read, with why."""
    newest: dict[str, Page] = {}
    left_out = []
    for path in sorted(runs.glob("*/*/result.json"), key=lambda p: (p.parts[-3], len(p.parts[-2]), p.parts[-2])):
        try:
            result = json.loads(path.read_text())
            if "experiment" not in result["metrics"]:
                continue  # a fit of toolkit.sae_fit, which shares the folder
            page = Page(path.parent, result, json.loads((path.parent / "figures.json").read_text()))
            _section(0, page)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            left_out.append(
                f"{path.parent}: made by another version or damaged ({type(error).__name__}: {error}); run it again"
            )
            continue
        newest[page.experiment["name"]] = page
    return sorted(newest.values(), key=lambda p: place(p.experiment["row"])), left_out


def html(pages: Sequence[Page], left_out: Sequence[str], *, script: str, source: str = "", further: str = "") -> str:
    """The page as text; plotly stands in it as `script`, or is fetched from `source`, a file beside it.

    `further` is sections, ready, that follow the overview.
    """
    files = resources.files("experiments")
    figures = [figure for page in pages for figure in page.figures]
    # In a script element only "<" could end the element early; JSON may spell it out.
    data = json.dumps({"colours": COLOURS, "figures": figures}, allow_nan=False).replace("<", "\\u003c")
    first = [sum(len(page.figures) for page in pages[:at]) for at in range(len(pages))]
    body = "".join(_section(start, page) for start, page in zip(first, pages, strict=True))
    library = f'<script src="{escape(source)}"></script>' if source else f"<script>{script}</script>"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{_TITLE}</title>'
        f"<style>{(files / 'page.css').read_text()}</style></head>"
        f"<body><main><h1>{_TITLE}</h1>{_overview(pages, left_out) if pages or left_out else ''}{further}{body}</main>"
        f'<script type="application/json" id="data">{data}</script>{library}'
        f"<script>{(files / 'page.js').read_text()}</script></body></html>\n"
    )


def _overview(pages: Sequence[Page], left_out: Sequence[str]) -> str:
    checks = [check for page in pages for check in page.result["checks"]]
    passed = sum(check["passed"] for check in checks)
    rows = "".join(
        f'<tr><td>{escape(p.experiment["row"])}</td><td><a href="#{escape(p.experiment["name"])}">'
        f"{escape(p.experiment['name'])}</a></td><td>{escape(p.experiment['claim'])}</td><td>{_fate(p)}</td>"
        f'<td data-name="scale">{escape(p.result["config"]["scale"])}</td></tr>'
        for p in pages
    )
    missing = "".join(f'<li class="left-out">{escape(line)}</li>' for line in left_out)
    return (
        f'<p>{passed} of {len(checks)} checks passed, in {len(pages)} experiments.</p><div class="scroll"><table>'
        "<thead><tr><th></th><th>experiment</th><th>claim</th><th>checks</th><th>scale</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>" + (f"<p>Left out:</p><ul>{missing}</ul>" if missing else "")
    )


def _explorers(explorers: Sequence[Explorer], pages: Sequence[Page], beside: Path) -> str:
    """The explorers of SAEs, and where a map of an embedding's dictionary was drawn, that too."""
    lines = ""
    for one in explorers:
        link = quote(os.path.relpath(one.page, beside).replace(os.sep, "/"))
        told = f"{one.latents:,} latents, {one.audited:,} with a verdict"
        lines += f'<li><a href="{link}"><bdi>{escape(one.title)}</bdi></a>, run {one.page.parts[-3]}: {told}</li>'
    for name in (page.experiment["name"] for page in pages if page.experiment["name"] == _MAP):
        lines += f'<li><a href="#{name}">The map of an embedding\'s dictionary</a></li>'
    return f'<section id="explorers"><h2>Latents and atoms, one by one</h2><ul>{lines}</ul></section>' if lines else ""


def _audits(runs: Path, beside: Path) -> str:
    """Finished audits of python -m controls, each with a link to its own page."""
    lines = "".join(_audit(path, beside) for path in sorted(runs.glob("*/[0-9]*/result.json")))
    return f'<section id="audits"><h2>Audits</h2><ul>{lines}</ul></section>' if lines else ""


def _audit(path: Path, beside: Path) -> str:
    try:
        metrics = read_audit(path.parent)["metrics"]
    except UserError:
        return ""  # no audit; what nobody can read is left out above
    try:
        name = escape(f"{metrics['audit']['model']} at {metrics['audit']['hook']}")
        told = escape(", ".join(f"{number} {verdict}" for verdict, number in metrics["counts"].items()))
    except (KeyError, TypeError, AttributeError):
        return f'<li class="left-out">{escape(str(path.parent))}: made by another version or damaged; run it again</li>'
    page = path.with_name(PAGE)
    link = quote(os.path.relpath(page, beside).replace(os.sep, "/"))
    linked = f'<a href="{link}"><bdi>{name}</bdi></a>' if page.exists() else f"<bdi>{name}</bdi>"
    return f"<li>{linked}: {told}</li>"


def _fate(page: Page) -> str:
    total = len(page.result["checks"])
    if page.failed:
        return f'<span class="failed">{page.failed} of {total} failed</span>'
    return f'<span class="passed">{total} of {total} passed</span>'


def _section(first: int, page: Page) -> str:
    e, result = page.experiment, page.result
    drawn = "".join(_figure(first + at, figure) for at, figure in enumerate(page.figures))
    controls = "".join(f"<li>{escape(control)}</li>" for control in e["controls"])
    checks = "".join(_check(check) for check in result["checks"])
    table = "\n".join(result["metrics"].get("table", ()))
    lines = f'<pre class="answer-table">{escape(table)}</pre>' if table else ""
    head = "<tr><th></th><th>claim</th><th>expected</th><th>measured, 95% interval</th><th>over</th></tr>"
    return (
        f'<section id="{escape(e["name"])}"><h2>{escape(e["row"])} · {escape(e["question"])}</h2>'
        f'<p class="answer">{escape(result["metrics"]["conclusion"])}</p>{lines}{drawn}'
        f'<div class="scroll"><table class="checks"><thead>{head}</thead><tbody>{checks}</tbody></table></div>'
        f"<h3>Controls</h3><ul>{controls}</ul><p class='soft'>{escape(e['claim'])}. {escape(e['source'])}.</p>"
        f"<pre>{escape(_command(result))}</pre>{_settings(page)}</section>"
    )


def _figure(at: int, figure: Mapping[str, Any]) -> str:
    kinds = {panel["kind"] for panel in figure["panels"]}
    wide = dict.fromkeys(("plot", "scatter"), len(figure["panels"]) == 1)
    panels = "".join(
        f'<div class="panel{" wide" if wide.get(panel["kind"]) else ""}" data-figure="{at}" data-panel="{place}" '
        f'role="img" aria-label="{escape(panel["title"])}"></div>'
        for place, panel in enumerate(figure["panels"])
    )
    small = " small" if kinds == {"arrows"} else ""
    caption = f"<figcaption>{escape(figure['caption'])}</figcaption>"
    return f'<figure><div class="panels{small}">{panels}</div>{caption}</figure>'


def _check(check: Mapping[str, Any]) -> str:
    word = "passed" if check["passed"] else "failed"
    interval = "" if check["low"] is None else f" [{check['low']:.3g}, {check['high']:.3g}]"
    measured = "none" if check["measured"] is None else f"{check['measured']:.4g}{interval}"
    return (
        f'<tr><td class="{word}">{word}</td><td>{escape(check["claim"])}</td>'
        f'<td data-name="expected">{escape(check["expected"])}</td>'
        f'<td class="number" data-name="measured">{measured}</td><td data-name="over">{check["values"]}</td></tr>'
    )


def _command(result: Mapping[str, Any]) -> str:
    config = result["config"]
    given = {name: config["settings"].get(name) for name in ("model", "frequencies", "corpus", "hook", "sae")}
    flags = "".join(f" --{name} {shlex.quote(value)}" for name, value in given.items() if value)
    flags += "".join(f" --set {shlex.quote(each)}" for each in config.get("set", ()))
    return f"python -m experiments run {result['name']} --scale {config['scale']} --seed {config['seed']}{flags}"


def _settings(page: Page) -> str:
    result = page.result
    facts = {
        **{name: json.dumps(value) for name, value in result["config"]["settings"].items()},
        "commit": f"{result['commit']}{' with changes' if result['dirty'] else ''}",
        "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        "started": result["started"],
        "seconds": f"{result['seconds']:g}",
        "folder": str(page.folder.with_name(page.folder.name.removeprefix(".").removesuffix(".unfinished"))),
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<details><summary>Settings and provenance</summary><dl>{rows}</dl></details>"


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _save(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two runs may end together
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, "utf-8", "replace")  # half a surrogate pair, as names of files have, is no UTF-8
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error

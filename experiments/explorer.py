"""The explorer of an SAE: a page a latent, from result files alone. It computes nothing.

It is written into the run's folder: explorer/index.html holds the list, explorer/chunk-*.js what a latent's page needs.
They are scripts because a page that is opened from a disk may not read other files in any other way.
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from controls.verdict import VERDICTS
from experiments.explorer_audits import Audit, read_audits, verdicts
from toolkit.errors import UserError
from toolkit.latent_pages import FOLDER as LATENTS
from toolkit.latent_pages import FORMAT, INDEX
from toolkit.page import page, script_json
from toolkit.runs import plain

FOLDER = "explorer"
"""In a run's folder."""
PAGE = "index.html"
"""In that."""
_SCRIPTS = ("explorer_text.js", "explorer_list.js", "explorer_map.js", "explorer_evidence.js", "explorer_latent.js",
            "explorer.js")  # fmt: skip
_COLUMNS = ("density", "l0_share", "max", "mean", "fvu", "cosine", "x", "y")


@dataclass(frozen=True)
class Explorer:
    """An explorer that was written."""

    page: Path
    """Its index.html."""
    title: str
    """Whose latents, where."""
    latents: int
    """How many."""
    audited: int
    """How many of them have a verdict."""


def write_explorers(runs: Path, back: Path) -> tuple[list[Explorer], list[str]]:
    """Write the explorer of every run that kept pages of latents; also what could not be read, with why.

    Args:
        back: the page that explorers link back to.

    Raises:
        UserError: an explorer cannot be written.
    """
    found, left_out, audits = [], list[str](), read_audits(runs)
    for path in sorted(runs.glob(f"*/[0-9]*/{LATENTS}/{INDEX}")):
        run = path.parent.parent
        try:
            explorer, missing = _written(run, audits, back)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FileNotFoundError) as error:
            why = f"{type(error).__name__}: {error}"
            left_out.append(f"{run}: made by another version or damaged ({why}); run it again")
            continue
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # then the report cannot be written either
                raise UserError(f"cannot write {run / FOLDER}: {error.strerror or error}") from error
            left_out.append(f"{run}: no explorer, {error.filename or FOLDER}: {error.strerror or error}")
            continue
        found.append(explorer)
        left_out += missing
    return found, list(dict.fromkeys(left_out))


def _written(run: Path, audits: Sequence[Audit], back: Path) -> tuple[Explorer, list[str]]:
    """One run's explorer, whole or not at all."""
    result = plain(json.loads((run / "result.json").read_text("utf-8")))
    index = plain(json.loads((run / LATENTS / INDEX).read_text("utf-8")))
    _check(index)
    part = result["config"].get("activations") or result["config"]["embedding"]
    folder, temporary = run / FOLDER, run / f".{FOLDER}.tmp"
    told, left_out = verdicts(audits, run, part, folder, started=str(result.get("started") or ""))
    told = {latent: one for latent, one in told.items() if latent < index["width"]}
    title = f"Latents of {part['model']} at {part.get('hook', 'its embedding')}"
    link = quote(os.path.relpath(back, folder).replace(os.sep, "/"))
    text = html(title, facts(result, index, part), index, told, back=link)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for at, start in enumerate(range(0, index["width"], index["per_chunk"])):
            latents = range(start, min(start + index["per_chunk"], index["width"]))
            _save(temporary / f"chunk-{at:03d}.js", _chunk(run, at, latents, told))
        _save(temporary / PAGE, text)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Explorer(folder / PAGE, title, index["width"], len(told)), left_out


def _chunk(run: Path, at: int, latents: range, told: Mapping[int, Mapping[str, Any]]) -> str:
    """A chunk of the run as a script, with the evidence on its latents."""
    name = f"chunk-{at:03d}.json"
    pages = json.loads((run / LATENTS / name).read_text("utf-8"))
    if len(pages) != len(latents):
        raise ValueError(f"{name} holds {len(pages)} latents, not {len(latents)}")
    evidence = {latent: one for latent, one in told.items() if latent in latents}
    return f"arrived({at},{script_json(pages)},{script_json(evidence)});\n"


def _check(index: Mapping[str, Any]) -> None:
    if index["format"] != FORMAT:
        raise ValueError(f"{INDEX} is of format {index['format']}, not {FORMAT}")
    lengths = {name: len(index["columns"][name]) for name in _COLUMNS} | {"tokens": len(index["tokens"])}
    wrong = {name: length for name, length in lengths.items() if length != index["width"]}
    if wrong:
        raise ValueError(f"{INDEX} holds {index['width']} latents and other numbers of {', '.join(wrong)}")


def facts(result: Mapping[str, Any], index: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, str]:
    """What the SAE is and what it was read on, by name."""
    sae, metrics = result["config"]["sae"], result["metrics"]
    kind = f"{sae['architecture']}, width {sae['width']:,}"
    where = f" in {index['documents']:,} documents" if part.get("corpus") else ""
    held_out = "" if part.get("sae") else f", {index['held_out']:,} of them held out"
    read = f"{index['rows']:,}{where}{held_out}"
    judged = "on all rows" if part.get("sae") else "held out"  # one that was given may have been trained on any
    scores = {"FVU trained on": "fvu", f"FVU {judged}": "fvu_held_out", f"L0 {judged}": "l0_held_out", "dead": "dead"}
    told = {"SAE": kind, "corpus": str(part.get("corpus") or "the vocabulary"), "rows shown here": read}
    told |= {name: f"{metrics[key]:.3g}" for name, key in scores.items() if metrics.get(key) is not None}
    if index.get("company_rows", index["rows"]) < index["rows"]:
        told["on together"] = f"counted over the first {index['company_rows']:,} rows"
    return told | {
        "map": index["map"],
        "logit effects": index["logits"]
        or "not computed: these rows are not known to be added to what the unembedding reads",
    }


def html(
    title: str,
    told: Mapping[str, str],
    index: Mapping[str, Any],
    evidence: Mapping[int, Mapping[str, Any]],
    *,
    back: str,
) -> str:
    """The page as text: the list of latents as data, drawn in the browser a screenful at a time.

    No script runs but the page's own, which is named by its hash, and files beside it.
    """
    files = resources.files("experiments")
    script = "".join((files / name).read_text("utf-8") for name in _SCRIPTS)
    names = ("width", "per_chunk", "rows", "map", "logits", "columns", "tokens", "raised")
    data = {name: index[name] for name in names}
    data["alone"] = index["rows"] == index["documents"]  # tokens of a vocabulary, not of a text
    data |= {"verdicts": {latent: one["verdict"] for latent, one in evidence.items()}, "kinds": VERDICTS}
    rows = "".join(f"<dt>{escape(name)}</dt><dd><bdi>{escape(text)}</bdi></dd>" for name, text in told.items())
    body = (files / "explorer.html").read_text("utf-8")
    body = body.replace("{title}", escape(title)).replace("{facts}", rows).replace("{back}", escape(back))
    style = (files / "explorer.css").read_text("utf-8")
    return page(title, body, data, style=style, script=script, beside=True)


def _save(path: Path, text: str) -> None:
    path.write_text(text, "utf-8", "replace")  # half a surrogate pair, in a name, is no UTF-8

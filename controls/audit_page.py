"""An audit's page: the features, their verdicts and beneath each the evidence. Every number stands in result.json."""

import json
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from controls.audit_parts import ending, heading, provenance, summary, table, told
from toolkit.errors import UserError
from toolkit.page import page
from toolkit.runs import plain

PAGE = "report.html"
"""Its name, beside result.json."""


def write(folder: Path) -> Path:
    """Write the page of a finished audit beside its result.json; returns where it is.

    Raises:
        UserError: there is no result.json, it is damaged or no audit's, or the page cannot be written.
    """
    result, path = read(folder), folder / PAGE
    try:
        text = html(result)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / 'result.json'} was made by another version or is damaged ({type(error).__name__}: {error}): "
            "run the audit again"
        ) from error
    try:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(text, "utf-8", "replace")  # half a surrogate pair, in a token, is no UTF-8
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def read(folder: Path) -> dict[str, Any]:
    """An audit's result.json; numbers that are none are None.

    Raises:
        UserError: there is none, it is no JSON, or not an audit's.
    """
    path = folder / "result.json"
    try:
        result = plain(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; name the folder of a finished audit"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): run the audit again") from error
    metrics = result.get("metrics") if isinstance(result, dict) else None
    if not isinstance(metrics, dict) or "audit" not in metrics:
        raise UserError(f"{path} has no metrics.audit: name the folder of a finished audit")
    return dict(result)


def html(result: Mapping[str, Any]) -> str:
    """The page as text, from what result.json holds.

    What a feature's row opens stands in it as data and is drawn in the browser, and only then: 200 features with forty
    controls each stay a page of a few megabytes.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: something is missing or not of the kind that an audit writes.
    """
    files, metrics = resources.files("controls"), result["metrics"]
    audit, finders = metrics["audit"], metrics["finder_controls"]
    title = f"Audit of {audit['model']} at {audit['hook']}"
    body = (
        f"<main><h1><bdi>{escape(title)}</bdi></h1>{heading(audit)}{summary(metrics)}{table(metrics['features'])}"
        f"{ending(audit, finders)}{provenance(result)}</main>"
    )
    style, script = ((files / name).read_text("utf-8") for name in ("audit_page.css", "audit_page.js"))
    return page(title, body, told(metrics), style=style, script=script)

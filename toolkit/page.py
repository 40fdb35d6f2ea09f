"""A page whose data stand in it and are drawn in the browser: one file, which runs no script but its own."""

import base64
import hashlib
import json
from html import escape
from importlib import resources
from typing import Any

from toolkit.runs import plain


def page(title: str, body: str, data: Any, *, style: str, script: str, beside: bool = False) -> str:
    """The page as text. Before `script` runs, `data` is there under that name, with what draws elements and numbers.

    Args:
        title: Of the page; escaped here.
        body: HTML, escaped already.
        data: What JSON can hold; numbers that are none become null.
        style: CSS.
        script: JavaScript. The page's policy names it by its hash, so that text in `data` or `body` never runs.
        beside: Whether it may also read scripts beside it, such as further data.

    Raises:
        TypeError: `data` holds what JSON cannot.
    """
    whole = (resources.files("toolkit") / "page_elements.js").read_text("utf-8") + script
    digest = base64.b64encode(hashlib.sha256(whole.encode()).digest()).decode()
    sources = f"'sha256-{digest}'" + " 'self' file:" * beside
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {sources}; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{style}</style></head><body>{body}'
        f'<script type="application/json" id="data">{script_json(data)}</script>'
        f"<script>{whole}</script></body></html>\n"
    )


def script_json(value: Any) -> str:
    """JSON as it may stand in a script: only "<" could end the element early, and JSON may spell it out.

    Raises:
        TypeError: there is what JSON cannot hold.
    """
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")

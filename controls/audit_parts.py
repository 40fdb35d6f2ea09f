"""The parts of an audit's page: as text what is always seen, as data what a feature's row opens."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from controls.verdict import VERDICTS

BARS = 48
"""Of a null distribution."""
ORIGINS = ("computed", "inherited", "open")
"""Where a feature comes from."""
USES = ("used", "unread", "open")
"""What becomes of it."""
COLUMNS = ("feature", "family", "verdict", "p", "place", "on", "r", "D", "W", "C", "not survived")
"""Of the table of features; `not survived` counts controls."""
_AXES = ("D", "W", "C")
_CONTROL = ("control", "statistic", "observed", "p", "draws", "survived", "larger", "note")
_AXIS = ("effect", "low", "high", "p", "p_absent", "settled", "why", "bounds")


def heading(audit: Mapping[str, Any]) -> str:
    """What was audited, on what."""
    facts = {
        "corpus": _bdi(audit["corpus"]),
        "rows": f"{_count(audit['rows'])} in {_count(audit['documents'])} documents",
        "alpha": _number(audit["alpha"]),
        "budget": _bdi(audit["budget"]),
        "finders": ", ".join(_bdi(finder) for finder in audit["finders"]),
    }
    return f'<dl class="facts">{_pairs(facts)}</dl>'


def summary(metrics: Mapping[str, Any]) -> str:
    """Verdicts and places, counted; each count is a button that filters the features."""
    counts = metrics["counts"]
    chips = "".join(
        f'<button class="chip" aria-pressed="false" data-filter="verdict" data-value="{verdict}">'
        f'<i class="{verdict}"></i>{verdict} <b>{counts[verdict]:d}</b></button>'
        for verdict in VERDICTS
    )
    return (
        f'<section><h2>Verdicts</h2><div class="chips" role="group" aria-label="show these verdicts">{chips}</div>'
        f"{_places([feature['place'] for feature in metrics['features']])}</section>"
    )


def _places(places: Sequence[str]) -> str:
    named = {"computed / used": "model", "computed / unread": "unread", "inherited / used": "inherited",
             "inherited / unread": "dataset"}  # fmt: skip
    known = {f"{origin} / {use}" for origin in ORIGINS for use in USES}
    if strange := set(places) - known:
        raise ValueError(f"unknown place {min(strange)!r}")

    def cell(place: str) -> str:
        mark = f'<span class="{named[place]}">{named[place]}</span>' if place in named else ""
        return (
            f'<td data-name="{place}"><button class="place" aria-pressed="false" data-filter="place" '
            f'data-value="{place}" aria-label="{place}: {places.count(place)}"><b>{places.count(place)}</b>{mark}'
            "</button></td>"
        )

    head = "".join(f'<th scope="col">{use}</th>' for use in USES)
    rows = "".join(
        f'<tr><th scope="row">{origin}</th>{"".join(cell(f"{origin} / {use}") for use in USES)}</tr>'
        for origin in ORIGINS
    )
    return (
        f'<table class="places"><caption>Where the evidence puts the features</caption><thead><tr><td></td>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table>"
    )


def table(features: Sequence[Mapping[str, Any]]) -> str:
    """The table of features, a row each."""
    families = dict.fromkeys(feature["family"] for feature in features)
    options = "".join(f'<option value="{escape(family)}">{escape(family)}</option>' for family in families)
    head = "".join(
        f'<th scope="col" aria-sort="none"><button data-column="{at}">{name}</button></th>'
        for at, name in enumerate(COLUMNS)
    )
    rows = "".join(_row(at, feature) for at, feature in enumerate(features))
    return (
        '<section id="features"><h2>Features</h2><div class="filters">'
        '<label>find <input type="search" id="text" placeholder="feature, place, reason"></label>'
        f'<label>family <select id="family"><option value="">all</option>{options}</select></label>'
        '<button id="clear">show all</button><span id="shown" role="status"></span></div>'
        f'<div class="scroll"><table class="features"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        '<p class="soft">on: share of rows; r: held-out correlation with the label; D: beyond its token; W: beyond '
        "networks that were not trained so; C: what the rest of the network makes of it. A row opens onto its "
        "evidence.</p></section>"
    )


def _row(at: int, feature: Mapping[str, Any]) -> str:
    verdict = feature["verdict"]
    if verdict not in VERDICTS:
        raise ValueError(f"unknown verdict {verdict!r}")
    asked = [one["survived"] for one in feature["controls"] if one["survived"] is not None]
    numbers = {"p": feature["p"], "on": feature["rate"], "r": feature["r"]["effect"]}
    cells = {
        "feature": f'<button class="open" aria-expanded="false">{_bdi(feature["feature"])}</button>',
        "family": _bdi(feature["family"]),
        "verdict": f'<i class="{verdict}"></i>{verdict}',
        "place": escape(feature["place"]),
        **{name: _number(value) for name, value in numbers.items()},
        **{name: _effect(feature[name]) for name in _AXES},
        "not survived": f"{asked.count(False)} of {len(asked)}" if asked else "–",
    }
    values = numbers | {name: (feature[name] or {}).get("effect") for name in _AXES}
    values |= {"not survived": asked.count(False) if asked else None}
    tds = "".join(
        f'<td data-name="{name}"{_sorted_by(values[name]) if name in values else ""}>{cells[name]}</td>'
        for name in COLUMNS
    )
    return f'<tr class="feature" data-at="{at}">{tds}</tr>'


def _sorted_by(value: float | None) -> str:
    return f' class="number" data-value="{"" if value is None else repr(float(value))}"'


def _effect(axis: Mapping[str, Any] | None) -> str:
    if axis is None or axis["effect"] is None:
        return "–"
    return f'{_number(axis["effect"])} <span class="soft">{escape(axis["settled"])}</span>'


def ending(audit: Mapping[str, Any], controls: Sequence[Mapping[str, Any]]) -> str:
    """The controls of finders as a whole, time by stage, notes."""
    finders = '<section><h2>The finders as a whole</h2><div id="finders"></div></section>' if controls else ""
    longest = max([1e-12, *(seconds or 0 for seconds in audit["seconds"].values())])
    stages = "".join(
        f'<tr><td>{_bdi(stage)}</td><td class="number">{_number(seconds)} s</td>'
        f'<td class="bar"><i style="width:{100 * (seconds or 0) / longest:.1f}%"></i></td></tr>'
        for stage, seconds in audit["seconds"].items()
    )
    notes = "".join(f"<li>{_bdi(note)}</li>" for note in audit["notes"])
    return f'{finders}<section><h2>Time</h2><table class="time"><tbody>{stages}</tbody></table></section>' + (
        f"<section><h2>Notes</h2><ul>{notes}</ul></section>" if notes else ""
    )


def provenance(result: Mapping[str, Any]) -> str:
    """What else result.json has: settings, versions, when."""
    facts = {
        name: _bdi(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in result.items()
        if name not in ("metrics", "checks")
    }
    return f"<details><summary>Settings and provenance</summary><dl>{_pairs(facts)}</dl></details>" if facts else ""


def _pairs(facts: Mapping[str, str]) -> str:
    return "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in facts.items())


def _bdi(text: str) -> str:
    """Escaped, and alone in its direction of writing: marks in a name turn nothing beside it round."""
    return f"<bdi>{escape(text)}</bdi>"


def _number(value: float | None) -> str:
    """Three digits that count, as the browser writes them: 1230 and 1e-9."""
    return "–" if value is None else f"{float(f'{value:.3g}'):g}".replace("e-0", "e-")


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def told(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What is drawn in the browser: of each feature what its row opens, and the controls of finders."""
    opened, controls = [_opened(feature) for feature in metrics["features"]], metrics["finder_controls"]
    return {"features": opened, "finders": [{"finder": one["feature"], **_control(one)} for one in controls]}


def _opened(feature: Mapping[str, Any]) -> dict[str, Any]:
    """What a feature's row opens."""
    kept = {name: feature[name] for name in ("why", "settle", "verdict", "p", "threshold")}
    axes = {name: feature[name] and {part: feature[name][part] for part in _AXIS} for name in _AXES}
    r = {name: feature["r"][name] for name in ("effect", "low", "high", "p")}
    steering = feature["steering"]
    kept["steering"] = steering and {name: steering[name] for name in ("sizes", "on", "off")}
    return {**kept, "r": r, "axes": axes, "controls": [_control(one) for one in feature["controls"]]}


def _control(one: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: one[name] for name in _CONTROL} | {"is_test": one.get("is_test", True)}  # older ones have not said
    return {**kept, "null": _drawn([value for value in one["null"] if value is not None], one["observed"])}


def _drawn(null: Sequence[float], observed: float | None) -> dict[str, Any] | None:
    """Ends of what is drawn, and heights of the null's bars between them."""
    if not null:
        return None
    ends = [*null, *([] if observed is None else [observed])]
    low, high = float(min(ends)), float(max(ends))
    bars = np.histogram(null, BARS, (low, high))[0] if high > low else np.array([len(null)])
    return {"low": low, "high": high, "bars": bars.tolist()}

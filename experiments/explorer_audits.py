"""Verdicts of audits in a runs folder on the latents of one SAE, with their evidence."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from controls.audit_page import PAGE
from controls.audit_page import read as read_audit
from controls.finders import Latents
from controls.verdict import VERDICTS
from toolkit.errors import UserError

_WEIGHTS = "sae_weights.safetensors"
_AXES = ("D", "W", "C")
_AXIS = ("effect", "low", "high", "p", "p_absent", "settled", "why", "bounds")
_CONTROL = ("control", "statistic", "observed", "p", "draws", "survived", "note")
_KEPT = ("verdict", "p", "threshold", "place", "why", "settle", "rate")


@dataclass(frozen=True)
class Audit:
    """A finished audit that asked about an SAE."""

    folder: Path
    """Where it is."""
    result: Mapping[str, Any]
    """result.json."""

    def asked(self, run: Path, config: Mapping[str, Any], *, started: str) -> bool:
        """Whether its SAE is that of a run: the same folder, the same name or the same weights, at the same hook.

        A folder that is not there any more, as after a move, is the run's if it ends in the run's name and number. An
        audit older than the run was of another that had this number before.
        """
        sae, own = str(self.result["config"]["sae"]), run / "sae"
        if self.result["metrics"]["audit"]["hook"] != config.get("hook", "hook_embed"):
            return False
        if own.is_dir() and str(self.result.get("started") or "") < started:
            return False
        if own.is_dir() and not Path(sae).is_dir():
            return Path(sae).parts[-3:] == own.absolute().parts[-3:]
        given = str(config.get("sae") or "")
        return sae == given or any(_alike(Path(sae), one) for one in (own, Path(given)))

    def verdicts(self, beside: Path) -> dict[int, dict[str, Any]]:
        """What it says of each latent, by number; links are seen from the folder `beside`."""
        page = self.folder / PAGE
        link = quote(os.path.relpath(page, beside).replace(os.sep, "/")) if page.exists() else ""
        audit = self.result["metrics"]["audit"]
        about = {name: audit[name] for name in ("corpus", "rows", "budget")} | {"link": link}
        features = [one for one in self.result["metrics"]["features"] if one["family"] == Latents.family]
        return {_number(one["feature"]): _evidence(one) | {"audit": about} for one in features}


def read_audits(runs: Path) -> list[Audit]:
    """Finished audits with an SAE, the newest last."""
    found = []
    for path in runs.glob("*/[0-9]*/result.json"):
        try:
            result = read_audit(path.parent)
        except UserError:
            continue  # no audit
        if isinstance(result.get("config"), dict) and result["config"].get("sae"):
            found.append(Audit(path.parent, result))
    return sorted(found, key=lambda one: (str(one.result.get("started")), str(one.folder)))


def verdicts(
    audits: Sequence[Audit], run: Path, config: Mapping[str, Any], beside: Path, *, started: str = ""
) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """The newest verdict on each latent of a run's SAE, and which audits could not be read, with why."""
    found: dict[int, dict[str, Any]] = {}
    left_out = []
    for audit in audits:
        try:
            if audit.asked(run, config, started=started):
                found |= audit.verdicts(beside)
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            left_out.append(f"{audit.folder}: made by another version or damaged ({type(error).__name__}: {error})")
    return found, left_out


def _alike(one: Path, other: Path) -> bool:
    """Whether two folders hold the same weights."""
    a, b = one / _WEIGHTS, other / _WEIGHTS
    if not (a.is_file() and b.is_file()):
        return False
    return a.samefile(b) or (a.stat().st_size == b.stat().st_size and a.read_bytes() == b.read_bytes())


def _number(feature: str) -> int:
    """Of "sae:257"."""
    return int(feature.rpartition(":")[2])


def _evidence(feature: Mapping[str, Any]) -> dict[str, Any]:
    if feature["verdict"] not in VERDICTS:
        raise ValueError(f"unknown verdict {json.dumps(feature['verdict'])}")
    axes = {name: feature[name] and {part: feature[name][part] for part in _AXIS} for name in _AXES}
    r = {name: feature["r"][name] for name in ("effect", "low", "high", "p")}
    controls = [
        {name: one[name] for name in _CONTROL} | {"is_test": one.get("is_test", True)} for one in feature["controls"]
    ]
    return {name: feature[name] for name in _KEPT} | {"r": r, "axes": axes, "controls": controls}

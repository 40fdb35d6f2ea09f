"""One control by itself: the same features, the same case, one null."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from controls.audit_json import control_json
from controls.audit_run import Job, ground
from controls.outcomes import Outcome
from controls.registry import find
from toolkit.errors import require
from toolkit.runs import open_run, writing


@dataclass(frozen=True)
class Ran:
    """A control that came to its end."""

    outcomes: Sequence[Outcome]
    """One a feature, or of the finder as a whole."""
    table: str
    """In words."""
    folder: Path
    """Where it is."""
    seconds: float
    """It took."""


def run(job: Job, name: str, *, draws: int = 0, out: str = "runs") -> Ran:
    """Ask one control of an audit's features, and write a run folder.

    Args:
        draws: null draws; 0 takes what the budget buys.

    Raises:
        UserError: no such control, one that cannot be asked of these features, and what an audit refuses.
    """
    control, began = find(name), time.monotonic()
    require(draws >= 0, f"--draws must not be negative, got {draws}")
    opened = open_run(out, f"control-{name}", {**asdict(job), "labels": list(job.labels), "draws": draws}, resume=False)
    with writing(opened.folder, then="ask again"):
        try:
            case = ground(job, "")[1].case
            given = replace(case, draws=draws, dear=draws) if draws else case
            found = control.run(given)
            level = job.alpha / 2
            metrics = {"control": name, "null": control.null, "outcomes": [control_json(one, level) for one in found]}
            nulls = [torch.tensor([one.observed, *one.null.tolist()], dtype=torch.float64) for one in found]
            folder = opened.finish(metrics, {f"{i:04d}": values for i, values in enumerate(nulls)}, [])
        except BaseException:  # an interruption too: a control by itself has no parts to go on from
            opened.drop()
            raise
    return Ran(found, table(control.null, found, level), folder, time.monotonic() - began)


def table(null: str, found: Sequence[Outcome], level: float) -> str:
    """What is asked, then a line an outcome."""
    width = max(7, *(len(one.feature) for one in found))
    words = {True: "survived", False: "did not", None: "too few draws"}
    columns = f"observed  null mean  null 95%          p      at {level:g}      statistic"
    lines = [f"null: {null}", f"{'feature':{width}}  {columns}"]
    for one in found:
        low, high = np.quantile(one.null, [0.025, 0.975])
        numbers = f"{one.observed:8.3f}  {one.null.mean():9.3f}  [{low:.3f}, {high:.3f}]  {one.p:.3f}"
        word = words[one.survived(level)] if one.is_test else "no test"
        lines.append(f"{one.feature:{width}}  {numbers}  {word:13} {one.statistic}")
    return "\n".join([*lines, *dict.fromkeys(one.note for one in found if one.note)])

"""A calibration as a run: seeds on every core, kept as they finish; result.json, a table and a QQ plot."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from controls.calibration import Calibration, Rate, Settings, judge_world, summarise, varying
from controls.subject import subject_of
from controls.verdict import VERDICTS
from controls.worlds import check_sample, open_world
from toolkit.configs import to_dict
from toolkit.errors import UserError
from toolkit.runs import open_run, writing
from toolkit.sweep import CELLS, sweep

FALSE_RATE, UPPER, POWER = 0.05, 0.08, 0.9
"""The bars: rates of false verdicts, their upper confidence bound, and power."""


@dataclass(frozen=True)
class Job:
    """What is calibrated, and where it is computed."""

    world: str
    """A name, or package.module:ClassName."""
    seeds: int
    """World seeds."""
    rows: int
    """Rows of each sample."""
    alpha: float
    """Error rate asked for."""
    seed: int
    """Every draw follows from it."""
    workers: int = 1
    """Processes."""
    cluster: str = ""
    """Address of a Dask scheduler in place of processes."""
    power: int = 0
    """Seeds of each point of the curves of power against rows and effect; 0 leaves them out."""

    def cells(self) -> list[dict[str, Any]]:
        """Every seed, then those of the curves: fewer rows, and weaker effects where the world has such a setting."""
        main = [{"seed": number, "rows": self.rows} for number in range(self.seeds)]
        points: list[dict[str, Any]] = [{"rows": self.rows // part} for part in (4, 2)]
        if hasattr(open_world(self.world), "effect"):
            points += [{"rows": self.rows, "effect": effect} for effect in (0.125, 0.2, 0.3, 0.5)]
        return main + [{"seed": number, **point} for point in points for number in range(self.power)]


@dataclass(frozen=True)
class Calibrated:
    """A calibration that came to its end."""

    found: Calibration
    """What all seeds at the rows asked for add up to."""
    power: dict[str, dict[str, float]]
    """Power and false rates with fewer rows and weaker effects."""
    folder: Path
    """Where it is."""
    seconds: float
    """How long this command worked on it."""


def calibrate(job: Job, *, out: str, resume: bool, quiet: bool) -> Calibrated:
    """Judge every seed that is not yet judged, and write the run folder.

    Raises:
        UserError: no such world, one that breaks its contract, a folder that cannot be written, a worker that died.
    """
    began = time.monotonic()
    world = open_world(job.world)
    settings, wanted = Settings(world=job.world, alpha=job.alpha), job.cells()
    for rows in {cell["rows"] for cell in wanted}:  # refused before a folder is made
        subject_of(varying(check_sample(world.sample(job.seed, rows), world)))
    config = {"seed": job.seed, "seeds": job.seeds, "rows": job.rows, "power": job.power, "settings": to_dict(settings)}
    opened = open_run(out, f"calibrate-{world.name}", config, resume=resume)
    with writing(opened.folder):
        try:
            cells = sweep(
                judge_world,
                settings,
                wanted,
                seed=job.seed,
                folder=opened.folder,
                workers=job.workers,
                cluster=job.cluster,
                quiet=quiet,
                label=world.name,
            )
        except UserError:
            if not any(opened.folder.glob(CELLS)):
                opened.drop()
            raise
        m = settings.budget.permutations
        found = summarise(cells[: job.seeds], permutations=m)
        parts = points(wanted, cells, job.seeds)
        curves = power({name: summarise(some, permutations=m) for name, some in parts.items()})
        qq_figure(found.null_p, opened.folder / "null_p_values.svg")
        tensors = {
            f"{name}.{i:05d}": cell[name] for i, cell in enumerate(cells) for name in ("truth", "verdict", "numbers")
        }
        folder = opened.finish(_finite({**found.metrics(), "power": curves}), tensors, checks(found))
    return Calibrated(found, curves, folder, time.monotonic() - began)


def points(wanted: list[dict[str, Any]], cells: list[Any], seeds: int) -> dict[str, list[Any]]:
    """The cells of each point of the curves, by what it is."""
    found: dict[str, list[Any]] = {}
    for cell, measured in zip(wanted[seeds:], cells[seeds:], strict=True):
        name = f"{cell['rows']} rows" + (f", effect {cell['effect']}" if "effect" in cell else "")
        found.setdefault(name, []).append(measured)
    return found


def power(curves: dict[str, Calibration]) -> dict[str, dict[str, float]]:
    """Power and false rates at each point."""
    return {
        name: {
            "power_model": one.power_model.value,
            "power_dataset": one.power_dataset.value,
            "false_model_rate": one.false_model.value,
            "false_dataset_rate": one.false_dataset.value,
        }
        for name, one in curves.items()
    }


def _finite(value: Any) -> Any:
    """Numbers that are not there as None: JSON knows no nan."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def checks(found: Calibration) -> list[dict[str, Any]]:
    """The bars, each passed or failed; a power without any such feature is left out."""
    rates = {"false_model_rate": found.false_model, "false_dataset_rate": found.false_dataset}
    told = [_check(name, one, one.value <= FALSE_RATE and one.high <= UPPER, f"<= {FALSE_RATE}, upper bound <= {UPPER}")
            for name, one in rates.items() if one.features]  # fmt: skip
    powers = {"power_model": found.power_model, "power_dataset": found.power_dataset}
    told += [_check(name, one, one.value >= POWER, f">= {POWER}") for name, one in powers.items() if one.features]
    if len(found.null_p) > 1:
        told.append({"claim": "null p-values are uniform (Kolmogorov-Smirnov)", "expected": "p > 0.01",
                     "measured": found.uniform, "passed": found.uniform > 0.01})  # fmt: skip
    return told


def _check(name: str, one: Rate, passed: bool, expected: str) -> dict[str, Any]:
    return {
        "claim": name,
        "expected": expected,
        "measured": one.value,
        "interval": [one.low, one.high],
        "passed": passed,
    }


def missed(found: Calibration) -> list[str]:
    """Names of the bars that are not met."""
    return [check["claim"] for check in checks(found) if not check["passed"]]


def table(calibrated: Calibrated) -> str:
    """Truth by verdict, what each named feature came to, power, and the bars."""
    found, curves = calibrated.found, calibrated.power
    width = max(12, *(len(name) + 2 for name in found.by_name))
    lines = [f"{'truth':{width}}" + "".join(f"{name:>11}" for name in VERDICTS)]
    for rows in (found.confusion, found.by_name):
        lines += [f"{name:{width}}" + "".join(f"{row[v]:>11}" for v in VERDICTS) for name, row in rows.items()] + [""]
    lines += [f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in one.items()) for name, one in curves.items()]
    for check in checks(found):
        low, high = check.get("interval", (None, None))
        spread = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        word = "passed" if check["passed"] else "FAILED"
        lines.append(f"{word}  {check['claim']}: {check['measured']:.3f}{spread}, expected {check['expected']}")
    return "\n".join(lines)


def qq_figure(p: np.ndarray, path: Path) -> None:
    """Sorted p-values of absent features against those of a uniform law, with the 95% band of each order statistic."""
    from matplotlib.figure import Figure
    from scipy.stats import beta

    n = len(p)
    ranks = np.arange(1, n + 1)
    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    if n:
        expected = ranks / (n + 1)
        axes.fill_between(expected, beta.ppf(0.025, ranks, n + 1 - ranks), beta.ppf(0.975, ranks, n + 1 - ranks),
                          color="#cbd5e1", lw=0, label="95% of uniform samples")  # fmt: skip
        axes.plot(expected, np.sort(p), ".", ms=3, color="#1f4e79", label=f"{n} absent features")
        axes.legend(frameon=False, fontsize=8)
    axes.plot([0, 1], [0, 1], color="#555555", lw=0.8)
    axes.set(xlabel="uniform", ylabel="p of being found", xlim=(0, 1), ylim=(0, 1))
    figure.savefig(path)

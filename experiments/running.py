"""One experiment from its settings to a run folder: cells, outcome, figures, result."""

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.figures import as_json
from experiments.registry import Experiment, Outcome
from experiments.report import write_figures
from experiments.static import draw
from experiments.sweep import sweep
from toolkit.configs import to_dict
from toolkit.errors import require
from toolkit.runs import Run, open_run, plain, versions, write_json, writing

FIGURES = "figures.json"
"""The figures of a run as data, beside their drawings."""


@dataclass(frozen=True)
class How:
    """How experiments are run; only `seed` and `scale` change their numbers."""

    scale: str = "default"
    """smoke, default or paper."""
    seed: int = 0
    """Every draw follows from it."""
    workers: int = 1
    """Processes."""
    cluster: str = ""
    """Address of a Dask scheduler that takes the place of the processes."""
    out: str = "runs"
    """Folder that receives <name>/<number>/."""
    resume: bool = False
    """Go on with the newest unfinished run."""
    quiet: bool = False
    """No progress bars."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, f"--workers must be at least 1, got {self.workers}")
        require(0 <= self.seed < 2**31, f"--seed must be a whole number in [0, 2**31), got {self.seed}")


@dataclass(frozen=True)
class Finished:
    """A run that came to its end."""

    folder: Path
    """Where it is."""
    outcome: Outcome
    """What it found."""
    seconds: float
    """How long this command worked on it."""

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return all(check.passed for check in self.outcome.checks)


def run(experiment: Experiment, how: How) -> Finished:
    """Measure every cell that is not yet measured, conclude, and write the run folder.

    Raises:
        UserError: an unknown scale, a folder that cannot be written, a run of another version or other settings to
            be resumed, a worker that died.
    """
    began = time.monotonic()
    settings = experiment.settings(how.scale)
    config = {"scale": how.scale, "seed": how.seed, "settings": to_dict(settings), "versions": versions()}
    opened = open_run(how.out, experiment.name, config, resume=how.resume)
    with writing(opened.folder):
        outcome = compute(experiment, settings, how, opened.folder)
        folder = _write(opened, experiment, outcome)
    return Finished(folder, outcome, time.monotonic() - began)


def compute(experiment: Experiment, settings: Any, how: How, folder: Path) -> Outcome:
    """The outcome alone, with finished cells kept in `folder`."""
    cells = experiment.cells(settings)
    found = sweep(
        experiment.measure,
        settings,
        cells,
        seed=how.seed,
        folder=folder,
        workers=how.workers,
        cluster=how.cluster,
        quiet=how.quiet,
        label=experiment.name,
    )
    return experiment.summarise(settings, cells, found)


def _write(opened: Run, experiment: Experiment, outcome: Outcome) -> Path:
    figures = [as_json(figure) for figure in outcome.figures]
    for figure in figures:
        draw(figure, opened.folder / f"{figure['name']}.svg")
    write_json(opened.folder / FIGURES, figures)
    metrics = {"conclusion": outcome.conclusion, "experiment": about(experiment), **(outcome.metrics or {})}
    checks = [plain(asdict(check)) for check in outcome.checks]
    runs = opened.folder.parent.parent
    page = partial(write_figures, opened.folder, figures=figures, runs=runs)
    return opened.finish(metrics, outcome.tensors or {}, checks, last=page)


def about(experiment: Experiment) -> dict[str, Any]:
    """What a reader needs to know of an experiment, as JSON values."""
    names = ("name", "row", "group", "question", "claim", "source", "controls")
    return {name: getattr(experiment, name) for name in names}

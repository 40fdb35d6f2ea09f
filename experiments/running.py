"""One experiment from its settings to a run folder: cells, outcome, figures, result."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from experiments.figures import as_json
from experiments.registry import Experiment, Outcome, chosen, named
from experiments.report import write_figures
from experiments.static import draw
from toolkit.configs import to_dict
from toolkit.corpora import documents
from toolkit.errors import UserError, check_types, require, unknown
from toolkit.language import check_model
from toolkit.runs import Run, open_run, plain, versions, write_json, writing
from toolkit.sweep import CELLS, sweep

_GIVEN = ("model", "frequencies", "corpus", "hook", "sae")
FIGURES = "figures.json"
"""The figures of a run as data, beside their drawings."""
WITHOUT_MODEL = "no model given: --model takes a folder or a hub name such as gpt2 (--scale smoke plants its own)"
WITHOUT_CORPUS = (
    "no corpus given: --corpus takes a text file, a folder, nltk:NAME or hf:NAME (--scale smoke writes its own text)"
)


@dataclass(frozen=True)
class How:
    """How experiments are run; workers, cluster, out, resume and quiet change no number."""

    scale: str = "default"
    """smoke, default or paper."""
    seed: int = 0
    """Every draw follows from it."""
    workers: int = 1
    """Processes."""
    cluster: str = ""
    """Address of a Dask scheduler that takes the place of the processes."""
    out: str = "runs"
    """Folder that receives `<name>/<number>/`."""
    resume: bool = False
    """Go on with the newest unfinished run."""
    quiet: bool = False
    """No progress bars."""
    model: str = ""
    """Hub name or folder of a language model, for experiments on its embedding."""
    frequencies: str = ""
    """Text file that its tokens are counted in."""
    corpus: str = ""
    """Text to train on, as toolkit.corpora.documents takes it."""
    hook: str = ""
    """Where a model's activations are read or moved; with commas many."""
    sae: str = ""
    """A folder in sae-lens's format or release:id."""
    given: tuple[str, ...] = ()
    """Further settings, NAME=VALUE each."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.workers >= 1, f"--workers must be at least 1, got {self.workers}")
        require(0 <= self.seed < 2**31, f"--seed must be a whole number in [0, 2**31), got {self.seed}")
        for name, use in (("frequencies", "whose tokens it counts"), ("corpus", "which is to read it")):
            planted = self.scale == "smoke" and not self.model
            require(not (planted and getattr(self, name)), f"--{name} at scale smoke needs --model, {use}")
        require(
            not self.frequencies or Path(self.frequencies).is_file(),
            f"no text file at {self.frequencies}: --frequencies takes a .txt or .txt.gz file",
        )


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
    settings = settings_of(experiment, how)
    config = {"scale": how.scale, "seed": how.seed, "settings": to_dict(settings), "versions": versions()}
    if how.given:
        config["set"] = sorted(how.given)
    opened = open_run(how.out, experiment.name, config, resume=how.resume)
    with writing(opened.folder):
        try:
            outcome = compute(experiment, settings, how, opened.folder)
        except UserError:
            if not any(opened.folder.glob(CELLS)):  # nothing that --resume could go on from
                opened.drop()
            raise
        folder = _write(opened, experiment, outcome)
    return Finished(folder, outcome, time.monotonic() - began)


def settings_of(experiment: Experiment, how: How) -> Any:
    """The settings of a scale with the model and the text that the user gave.

    Raises:
        UserError: an unknown scale, or no model or text for an experiment that needs one, or one for an experiment
            without.
    """
    settings = experiment.settings(how.scale)
    _refuse_untaken(experiment, how)
    require(not (lacking := _lacking(experiment, how)), f"{experiment.name}: {lacking}")
    return replace(settings, **{**changed(settings, how.given), **_given(how)})


def changed(settings: Any, given: Sequence[str]) -> dict[str, Any]:
    """Settings by name, from NAME=VALUE each; values that are many stand apart by commas.

    Raises:
        UserError: no such setting (the nearest is named), or a value of another type.
    """
    found = dict[str, Any]()
    for each in given:
        name, _, value = each.partition("=")
        if name not in to_dict(settings):
            raise unknown("setting", name, to_dict(settings))
        require(name not in _GIVEN, f"--set {each}: use --{name}")
        require(name not in found, f"--set {name} is given twice: give it once")
        kind = next(field.type for field in fields(settings) if field.name == name)
        found[name] = _like(getattr(settings, name), kind, value, name)
    return found


def _name(given: str) -> str:
    return given.partition("=")[0]


def _like(present: Any, kind: Any, value: str, name: str) -> Any:
    """A value as what it takes the place of."""
    if isinstance(present, tuple):
        (element, *_), such = get_args(kind), (f", such as {present[0]!r}" if present else "")
        told = f"--set {name}={value}: this setting holds more than numbers or words and cannot be set so"
        require(element in (int, float, str, bool), told)
        found = tuple(_as(element, part.strip(), name, such) for part in value.split(","))
        told = f"--set {name}={value}: expected {len(present)} values, such as {','.join(map(str, present))}"
        require(... in get_args(kind) or len(found) == len(present), told)
        return found
    return _as(type(present), value, name, f", such as {present!r}")


def _as(kind: type, value: str, name: str, such: str) -> Any:
    try:
        return {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
    except (ValueError, KeyError):
        raise UserError(f"--set {name}={value}: expected {kind.__name__}{such}") from None


def _given(how: How) -> dict[str, Any]:
    return {name: value for name in _GIVEN if (value := getattr(how, name))}


def _refuse_untaken(experiment: Experiment, how: How) -> None:
    for name, value in _given(how).items():
        require(experiment.takes(name), f"{experiment.name} takes no --{name}, got {value!r}: leave it out")


def runnable(names: Sequence[str], how: How) -> tuple[list[tuple[Experiment, How]], dict[str, str]]:
    """What names and patterns mean, each with what it takes, and the names of those left out, each with the reason.

    A pattern runs what can be run; an experiment asked for by its own name must get what it needs and no more.

    Raises:
        UserError: see `settings_of`; also where nothing is left to run, or nothing of it takes what is given, or that
            cannot be read.
    """
    wanted = chosen(names)
    by_name = [e for e in wanted if named(names, e)]
    each = [(e, how if e in by_name else _without(how, e)) for e in wanted]
    for experiment, its in each:
        _refuse_untaken(experiment, its)
    for name, value in _given(how).items():
        taken = any(e.takes(name) for e in wanted)
        require(taken, f"none of {', '.join(names)} takes --{name}, got {value!r}: leave it out")
    for name in (_name(each) for each in how.given):
        if not any(e.takes(name) for e in wanted):
            raise unknown("setting", name, {key: 0 for e in wanted for key in to_dict(e.settings(how.scale))})
    if how.model:
        check_model(how.model)
    if how.corpus:
        documents(how.corpus)
    left_out = {e.name: why for e, its in each if e not in by_name and (why := _lacking(e, its))}
    kept = [(e, its) for e, its in each if e.name not in left_out]
    require(bool(kept), "; ".join(f"{name}: {why}" for name, why in left_out.items()))
    for experiment, its in kept:
        settings_of(experiment, its)
    return kept, left_out


def _lacking(experiment: Experiment, how: How) -> str:
    """What it cannot run without and was not given."""
    if experiment.needs_model(how.scale) and not how.model:
        return WITHOUT_MODEL
    if experiment.needs_corpus(how.scale, how.model) and not how.corpus:
        return WITHOUT_CORPUS
    return experiment.lacks(replace(experiment.settings(how.scale), **_given(how)))


def _without(how: How, experiment: Experiment) -> How:
    untaken: dict[str, Any] = {name: "" for name in _GIVEN if not experiment.takes(name)}
    return replace(how, **untaken, given=tuple(each for each in how.given if experiment.takes(_name(each))))


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
    if outcome.table:
        metrics["table"] = outcome.table.splitlines()
    checks = [plain(asdict(check)) for check in outcome.checks]
    runs = opened.folder.parent.parent
    page = partial(write_figures, opened.folder, figures=figures, runs=runs)
    return opened.finish(metrics, outcome.tensors or {}, checks, last=page)


def about(experiment: Experiment) -> dict[str, Any]:
    """What a reader needs to know of an experiment, as JSON values."""
    names = ("name", "row", "group", "question", "claim", "source", "controls")
    return {name: getattr(experiment, name) for name in names}

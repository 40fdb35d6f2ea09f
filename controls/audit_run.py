"""An audit as a run: worker processes, cells kept as they finish, result.json, tensors and a page."""

import shutil
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from controls import audit_page
from controls.audit import Audit, conclude, paid
from controls.audit_cells import Work
from controls.audit_json import control_json, feature_json
from controls.budgets import check_draws, check_level, measured, spending, told
from controls.finders import Finder, Labels, Latents, Principal, ranges
from controls.prepared import ACTIVATIONS, Prepared, prepare, processing
from toolkit.errors import check_types, require
from toolkit.language import load_model
from toolkit.runs import Run, open_run, writing
from toolkit.sae import load_sae
from toolkit.sweep import Cell, check_cluster


@dataclass(frozen=True)
class Job:
    """Everything that decides an audit's numbers, as plain values that any worker can read."""

    model: str
    """A name or folder."""
    hook: str
    """Where."""
    corpus: str
    """Text, labelled where labels are asked for."""
    labels: tuple[str, ...] = ()
    """LAYER=VALUE each."""
    sae: str = ""
    """A folder in sae-lens's format, or release:id."""
    latents: str = ""
    """Such as 0:200; empty chooses ten that are on often enough."""
    pca: int = 0
    """Principal directions."""
    budget: str = "standard"
    """quick, standard or thorough."""
    alpha: float = 0.05
    """Error rate asked for."""
    seed: int = 0
    """Every draw follows from it."""

    def __post_init__(self) -> None:
        check_types(self)
        check_level(self.alpha)
        check_draws(self.alpha, spending(self.budget))
        require(bool(self.hook), "no hook was named: give --hook, such as blocks.6.hook_resid_post")
        require(bool(self.corpus), "no text was named: give --corpus, a file, a folder or nltk:NAME")
        require(bool(self.labels or self.sae or self.pca), "nothing to judge: give --labels, --sae or --pca")
        require(not self.latents or bool(self.sae), f"--latents {self.latents} without --sae")
        if self.latents:
            ranges(self.latents)
        require(self.pca >= 0, f"--pca must not be negative, got {self.pca}")
        require(0 <= self.seed < 2**31, f"--seed must be a whole number in [0, 2**31), got {self.seed}")

    def finders(self) -> list[Finder]:
        """What names the features."""
        found = list[Finder]()
        if self.labels:
            found.append(Labels.of(*self.labels))
        if self.sae:
            which = ranges(self.latents) if self.latents else None
            found.append(Latents(load_sae(self.sae), which))
        if self.pca:
            found.append(Principal(self.pca))
        return found


@lru_cache(maxsize=1)
def ground(job: Job, kept: str) -> tuple[Work, Prepared]:
    """Model, text and features, once in each process."""
    bought = spending(job.budget)
    folder = Path(kept) if kept else None
    finders = job.finders()
    model = load_model(job.model, **processing(finders))
    prepared = prepare(model, job.hook, finders, job.corpus, bought, seed=job.seed, kept=folder)
    return Work(prepared, bought, alpha=job.alpha, seed=job.seed), prepared


def measure(settings: tuple[Job, str], cell: Cell, seed: int) -> dict[str, Tensor]:
    """One cell, in any process."""
    return ground(*settings)[0].measure(cell)


def _begun(job: Job, opened: Run) -> tuple[Work, Prepared]:
    """The ground; a job that comes to nothing leaves no folder behind, one that is interrupted goes on."""
    try:
        return ground(job, str(opened.folder))
    except Exception:
        if not (opened.folder / "nulls").exists():
            opened.drop()
        raise


@dataclass(frozen=True)
class Audited:
    """An audit that came to its end."""

    found: Audit
    """Verdicts and what is beneath them."""
    folder: Path
    """Where it is."""
    page: Path
    """The report."""


def run(job: Job, *, out: str, workers: int, cluster: str = "", resume: bool = False, quiet: bool = False) -> Audited:
    """Audit, and write the run folder.

    Raises:
        UserError: whatever does not go together or no cluster at the address, leaving no folder; a worker that died.
    """
    check_cluster(cluster)
    config = {**asdict(job), "labels": list(job.labels)}
    opened, began = open_run(out, "audit", config, resume=resume), time.monotonic()
    with writing(opened.folder):
        work, prepared = _begun(job, opened)
        names = paid(work.bought)
        if not quiet:
            rates = measured(work.case.model, job.hook, work.case.reading)
            sizes = {"features": len(work.subject.names), "available": len(work.subject.activations)}
            print(told(rates, job.budget, workers=workers, alpha=job.alpha, **sizes), flush=True)
        found = conclude(
            work,
            prepared,
            measure,
            (job, str(opened.folder)),
            names=names,
            alpha=job.alpha,
            folder=opened.folder,
            seconds={"reading": time.monotonic() - began},
            workers=workers,
            cluster=cluster,
            quiet=quiet,
        )
        folder = opened.finish(metrics(job, work, found), tensors(found), [], last=lambda result: _page(opened.folder))
        for stage in ("nulls", "causes"):
            shutil.rmtree(folder / stage)
        for path in folder.glob(f"{Path(ACTIVATIONS).stem}.*"):  # what a kill left half written too
            path.unlink(missing_ok=True)
    return Audited(found, folder, folder / audit_page.PAGE)


def _page(folder: Path) -> None:
    """Before the folder has its name: a finished audit has its page."""
    audit_page.write(folder)


def metrics(job: Job, work: Work, found: Audit) -> dict[str, Any]:
    """What result.json says."""
    level, rows = job.alpha / 2, found.rows
    return {
        "audit": {
            "model": job.model,
            "processing": list(work.case.model.processing),
            "hook": job.hook,
            "corpus": job.corpus,
            "rows": rows,
            "documents": found.documents,
            "alpha": job.alpha,
            "budget": job.budget,
            "spending": asdict(work.bought),
            "finders": list(work.case.finders),
            "seconds": dict(found.seconds),
            "notes": list(found.notes),
        },
        "counts": found.counts,
        "features": [feature_json(one, found.families[one.evidence.feature], rows=rows) for one in found],
        "finder_controls": [control_json(one, level) for one in found.finder_controls],
    }


def tensors(found: Audit) -> dict[str, Tensor]:
    """Every null distribution in full, by feature and control."""
    kept = {}
    for at, outcome in enumerate(found.finder_controls):
        values = torch.tensor([outcome.observed, *outcome.null.tolist()], dtype=torch.float64)
        kept[f"{outcome.feature}.{at:03d}.{outcome.control}"] = values
    for f, one in enumerate(found):
        for at, outcome in enumerate(one.evidence.outcomes):
            values = torch.tensor([outcome.observed, *outcome.null.tolist()], dtype=torch.float64)
            kept[f"{f:04d}.{at:03d}.{outcome.control}"] = values
    return kept

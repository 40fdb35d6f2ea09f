"""An audit: a finder, a model and text in, a verdict for each feature out, with every null beneath it.

```python
verdicts = audit(Labels.of("upos=VERB", "upos=NOUN"), "tiny-gpt2", "ud_english_ewt", hook="blocks.2.hook_resid_post")
print(verdicts)             # a table
verdicts.frame()            # the same for pandas
verdicts["upos=VERB"].evidence.outcomes     # observed values and nulls
```
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from controls import audit_cells
from controls.audit_cells import MOVING, OF_AXES, Work
from controls.audit_json import counts
from controls.budgets import Spending, check_draws, check_level, spending
from controls.finders import Finder
from controls.outcomes import Outcome
from controls.prepared import Prepared, prepare, processing
from controls.registry import controls, find
from controls.verdict import Verdict, judge
from toolkit.errors import UserError, require, unknown
from toolkit.language import LanguageModel, load_model
from toolkit.runs import write_json
from toolkit.sweep import sweep

Measure = Callable[[Any, Mapping[str, Any], int], Mapping[str, Tensor]]
"""What computes a cell: settings, the cell and the seed."""


@dataclass(frozen=True, repr=False)
class Audit(Sequence[Verdict]):
    """Verdicts of an audit, one a feature."""

    verdicts: tuple[Verdict, ...]
    """In the order of the finders."""
    families: Mapping[str, str]
    """Who named each feature."""
    finder_controls: tuple[Outcome, ...]
    """Controls of finders as a whole."""
    notes: tuple[str, ...]
    """What was left out, and why."""
    rows: int
    """Tokens judged."""
    documents: int
    """Of these."""
    seconds: Mapping[str, float]
    """Time by stage."""

    def __len__(self) -> int:
        return len(self.verdicts)

    @overload
    def __getitem__(self, which: int | str) -> Verdict: ...
    @overload
    def __getitem__(self, which: slice) -> Sequence[Verdict]: ...
    def __getitem__(self, which: int | str | slice) -> Verdict | Sequence[Verdict]:
        """By place or by feature.

        Raises:
            UserError: there is no such feature.
        """
        if isinstance(which, str):
            named = {one.evidence.feature: one for one in self.verdicts}
            if which not in named:
                raise unknown("feature", which, named)
            return named[which]
        return self.verdicts[which]

    @property
    def counts(self) -> dict[str, int]:
        """Features of each verdict."""
        return counts(list(self.verdicts))

    def frame(self) -> Any:
        """A pandas data frame, a row a feature."""
        import pandas as pd

        return pd.DataFrame([_row(one, self.families) for one in self.verdicts]).set_index("feature")

    def __repr__(self) -> str:
        width = max(7, *(len(one.evidence.feature) for one in self.verdicts))
        columns = "verdict    place                rate      r  D: within type      W: not at random     C: moves"
        lines = [_line(one, width) for one in self.verdicts]
        total = ", ".join(f"{n} {name}" for name, n in self.counts.items() if n)
        size = f"{self.rows:,} rows of {self.documents:,} documents"
        tail = f"{len(self)} features at alpha {self.verdicts[0].alpha:g}: {total}; {size}"
        return "\n".join([f"{'feature':{width}}  {columns}", *lines, tail, *self.notes])

    def _repr_html_(self) -> str:
        return str(self.frame().to_html(float_format="{:.3g}".format))


def _line(one: Verdict, width: int) -> str:
    e = one.evidence
    axes = [_axis(e.token), _axis(e.training), _axis(e.causal)]
    said = f"{e.feature:{width}}  {one.verdict:9}  {one.place:17} {e.rate:6.3f} {e.r:6.2f}  " + "  ".join(axes)
    return said + (f"\n{'':{width}}  {one.why}" if one.why else "")


def _axis(axis: Any) -> str:
    if axis is None or axis.error == float("inf"):
        return f"{'-':18}"
    low, high = axis.interval()
    return f"{axis.effect:5.2f} [{low:.2f}, {high:.2f}]".ljust(18)


def _row(one: Verdict, families: Mapping[str, str]) -> dict[str, Any]:
    e = one.evidence
    found: dict[str, Any] = {"feature": e.feature, "finder": families[e.feature], "verdict": one.verdict, "p": one.p}
    found |= {"place": one.place, "rate": e.rate, "r": e.r, "p_found": e.p_found}
    for name, axis in {"D": e.token, "W": e.training, "C": e.causal}.items():
        if axis is not None:
            low, high = axis.interval()
            found |= {f"{name}": axis.effect, f"{name}_low": low, f"{name}_high": high}
            found |= {f"{name}_p": axis.p, f"{name}_p_absent": axis.p_absent}
    return {**found, "why": one.why}


def audit(
    finder: Finder | Sequence[Finder],
    model: LanguageModel | str,
    data: str,
    *,
    hook: str,
    budget: str | Spending = "standard",
    alpha: float = 0.05,
    seed: int = 0,
    further: Sequence[str] | None = None,
    quiet: bool = False,
) -> Audit:
    """Judge what a finder found at one hook of a model, in this process.

    Args:
        finder: one of `controls.finders`, or several, of different kinds.
        model: a model, or a name or folder as `toolkit.language.load_model` takes it, loaded as an SAE says its was.
        data: a corpus: `nltk:NAME`, a file or a folder; with labels where the finder has labels.
        hook: where, such as blocks.6.hook_resid_post.
        budget: quick, standard or thorough, or a `controls.budgets.Spending`.
        alpha: error rate asked for.
        further: names of controls beside those of the verdict; None takes those that the budget pays.
        quiet: no progress bar.

    Raises:
        UserError: whatever does not go together, in one line.
    """
    bought = spending(budget) if isinstance(budget, str) else budget
    check_level(alpha)
    if isinstance(budget, str):
        check_draws(alpha, bought)
    require(
        bought.verdict.null_seeds > 1, "fewer than two null networks of each kind: nothing can be held against them"
    )
    require(0 <= seed < 2**31, f"seed must be a whole number in [0, 2**31), got {seed}")
    for name in further or ():
        find(name)
    finders = list(finder) if isinstance(finder, Sequence) else [finder]
    model = load_model(model, **processing(finders)) if isinstance(model, str) else model
    began = time.monotonic()
    prepared = prepare(model, hook, finders, data, bought, seed=seed)
    work = Work(prepared, bought, alpha=alpha, seed=seed)
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        return conclude(
            work,
            prepared,
            lambda settings, cell, number: work.measure(cell),
            None,
            names=paid(bought) if further is None else list(further),
            alpha=alpha,
            folder=Path(folder),
            seconds={"reading": time.monotonic() - began},
            quiet=quiet,
        )


def paid(bought: Spending) -> list[str]:
    """Controls that a budget pays beside the verdict's own."""
    return [
        name
        for name, one in controls().items()
        if name not in OF_AXES and (bought.dear or not one.dear) and (bought.moves or not name.startswith(MOVING))
    ]


def conclude(
    work: Work,
    prepared: Prepared,
    measure: Measure,
    settings: Any,
    *,
    names: Sequence[str],
    alpha: float,
    folder: Path,
    seconds: Mapping[str, float],
    workers: int = 1,
    cluster: str = "",
    quiet: bool = True,
) -> Audit:
    """Compute all cells, kept in the folder as they finish, and judge."""

    def swept(cells: list[dict[str, Any]], stage: str) -> list[dict[str, Tensor]]:
        (folder / stage).mkdir(exist_ok=True)
        _same_cells(folder / stage / "cells.json", cells)
        return sweep(
            measure,
            settings,
            cells,
            seed=work.seed,
            folder=folder / stage,
            workers=workers,
            cluster=cluster,
            quiet=quiet,
            label=stage,
        )

    spent = dict(seconds)
    cells = audit_cells.first_cells(work, names)
    with _timed(spent, "nulls and controls"):
        results = swept(cells, "nulls")
    found = audit_cells.found_at_all(work, cells, results)
    with _timed(spent, "interventions"):
        causes = swept(audit_cells.cause_cells(work, found), "causes")
    verdicts = judge(audit_cells.evidence(work, cells, results, causes), alpha=alpha)
    features = set(work.subject.names)
    of_finders = [one for one in audit_cells.outcomes(cells, results) if one.feature not in features]
    notes = (*prepared.notes, *audit_cells.refusals(cells, results))
    documents = int(work.subject.groups.max()) + 1
    rows = len(work.subject.activations)
    families = dict(work.subject.families)
    return Audit(tuple(verdicts), families, tuple(of_finders), notes, rows, documents, spent)


def _same_cells(file: Path, cells: list[dict[str, Any]]) -> None:
    """Cells are kept by number: those of another list, as another version has it, are not these."""
    try:
        found = json.loads(file.read_text()) if file.exists() else None
    except ValueError:  # a damaged list vouches for nothing
        found = []
    if found is None:
        write_json(file, cells)
    elif found != cells:
        raise UserError(
            f"{file.parent} holds parts of another audit, or of another version: begin anew without --resume"
        )


@contextmanager
def _timed(spent: dict[str, float], stage: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    spent[stage] = time.monotonic() - began

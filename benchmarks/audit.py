"""The parts of a standard audit beside the same written plainly: a scikit-learn fit, a forward pass, one at a time.

A subset of each is timed in one run and both sides' numbers are compared; the totals are these seconds times how often
a standard audit of 20 features asks for each.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from benchmarks.timing import show
from controls.audit_cells import Work
from controls.budgets import BUDGETS
from controls.commands import CORPUS_OF_UD
from controls.decoding import exchanged
from controls.finders import Finder, Labels
from controls.judging import enough
from controls.model_weights import drawn_anew
from controls.prepared import prepare
from controls.worlds import NULL_KINDS
from toolkit.errors import UserError
from toolkit.language import load_model

FEATURES = 20
"""Of the audit whose total is told."""
LABELS = ("upos=VERB", "upos=NOUN")
"""Whose fits are timed."""
ROWS = 4_000
"""Of the subset."""
FITS, MOVES, SENTENCES = 6, 12, 24
"""Timed of what is done one at a time."""
BATCHED_FITS, BATCHED_MOVES = 400, 256
"""Timed of ours."""


@dataclass(frozen=True)
class Part:
    """One part of an audit, both ways."""

    name: str
    """What it is."""
    units: int
    """How often a standard audit asks for it."""
    plain: float
    """Seconds each, one at a time."""
    ours: float
    """Seconds each."""
    apart: float
    """Largest difference of the numbers that both ways give."""


def report(model: str | None) -> None:
    """Print a line for each part, and the sum."""
    if not os.environ.get(CORPUS_OF_UD):
        raise UserError(f"this benchmark reads a treebank: set {CORPUS_OF_UD} to a folder of .conllu files")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as an audit's workers have it
    try:
        parts = measured(model or "tiny-gpt2")
    finally:
        torch.set_num_threads(threads)
    rows = [(p.name, f"{p.units:,}", f"{p.plain * 1e3:.1f}", f"{p.ours * 1e3:.2f}", f"{p.plain / p.ours:.0f}",
             f"{p.apart:.0e}") for p in parts]  # fmt: skip
    plain, ours = (sum(p.units * getattr(p, side) for p in parts) for side in ("plain", "ours"))
    rows.append(("all, hours on one core", "", f"{plain / 3600:.1f}", f"{ours / 3600:.2f}", f"{plain / ours:.0f}", ""))
    title = f"a standard audit of {FEATURES} features, {model or 'tiny-gpt2'}; units timed on {ROWS:,} rows"
    show(title, ("part", "units", "plain, ms", "ours, ms", "times", "numbers differ by"), rows)


def measured(model: str) -> list[Part]:
    """Every part, on the middle of a model."""
    loaded = load_model(model)
    hook = f"blocks.{int(loaded.bridge.cfg.n_layers) // 2}.hook_resid_post"
    bought = replace(BUDGETS["standard"], rows=ROWS, null_rows=ROWS, places=200)
    finders: list[Finder] = [Labels.of(*LABELS)]
    prepared = prepare(loaded, hook, finders, os.environ[CORPUS_OF_UD], bought, seed=0)
    work = Work(prepared, bought, alpha=0.05, seed=0)
    return [_fits(work), _networks(work), _moves(work)]


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Of one call after one that warms up, and what it gives."""
    call()
    began = time.perf_counter()
    value = call()
    return time.perf_counter() - began, value


def _fits(work: Work) -> Part:
    """A permutation of a label: read-outs fitted on the other folds, scored on each."""
    subject, data = work.subject, work.case.data
    source = exchanged(subject.groups, BATCHED_FITS, seed=0)
    y = subject.labels[LABELS[0]].astype(np.float32)
    ours, r = seconds(lambda: data.r(torch.from_numpy(y[source])))
    plain, again = seconds(lambda: [_plain_r(work, y[source[:, i]]) for i in range(FITS)])
    v = BUDGETS["standard"].verdict
    units = FEATURES * (enough(v, FEATURES, 0.025) + v.token_permutations)
    apart = np.abs(r[:FITS].numpy() - np.array(again)).max()
    return Part("a label permuted: three fits, scored", units, plain / FITS, ours / BATCHED_FITS, float(apart))


def _plain_r(work: Work, y: np.ndarray) -> float:
    data = work.case.data
    y, scores = y[data.dealt.order.numpy()], np.empty(len(y))
    for fold in data.dealt.slices:
        kept = np.ones(len(y), bool)
        kept[fold] = False
        X = (data.X.double() / data.ridge.sqrt()).numpy()  # a ridge of its own for each column, as data has it
        fitted = Ridge(alpha=float(kept.sum())).fit(X[kept], y[kept])
        scale = fitted.predict(X[kept]).std()
        scores[fold] = (fitted.predict(X[fold]) - fitted.intercept_) / scale
    return float(np.corrcoef(scores, y)[0, 1])


def _networks(work: Work) -> Part:
    """A null network: drawn, read at every row, all labels scored."""
    case, kinds = work.case, NULL_KINDS
    began = time.perf_counter()
    rows = [work.subject.nulls[kind](1) for kind in kinds]
    work.asked.scored(rows[0])
    ours = (time.perf_counter() - began) / len(kinds)
    began = time.perf_counter()
    network = drawn_anew(case.model, kinds[-1], seed=1)
    drawn = time.perf_counter() - began
    at, tokens = case.reading.rows, case.reading.tokens
    used = at[:, 0].unique()[:SENTENCES]
    read, found = seconds(
        lambda: torch.cat([_plain_rows(network, case.hook, tokens[s], at[at[:, 0] == s, 1]) for s in used])
    )
    fit, _ = seconds(lambda: _plain_r(work, work.subject.labels[LABELS[0]].astype(np.float32)))
    known = np.isin(at[work.subject.null_rows, 0].numpy(), used.numpy())
    apart = (rows[-1][torch.from_numpy(known)] - found).abs().max() / found.std()
    plain = drawn + read * len(at[:, 0].unique()) / len(used) + fit * FEATURES
    units = len(kinds) * BUDGETS["standard"].verdict.null_seeds
    return Part("a null network: drawn, read, labels scored", units, plain, ours, float(apart))


@torch.no_grad()
def _plain_rows(network: Any, hook: str, tokens: Tensor, positions: Tensor) -> Tensor:
    length = int(positions.max()) + 1
    _, cache = network.bridge.run_with_cache(tokens[None, :length], names_filter=hook)
    rows: Tensor = cache[hook][0, positions]
    return rows


def _moves(work: Work) -> Part:
    """An activation changed, and what the network then says."""
    rest: Any = work.subject.downstream
    at = torch.arange(BATCHED_MOVES) % len(rest.activations)
    moved = rest.activations[at] + 0.1 * rest.activations.std() * torch.randn(rest.activations.shape[1])
    with torch.no_grad():
        ours, found = seconds(lambda: rest(moved, at))
    plain, again = seconds(lambda: [_plain_move(work, rest, moved[i], int(at[i])) for i in range(MOVES)])
    e = BUDGETS["standard"].verdict.effort
    units = FEATURES * (2 * e.drawn_rows * 2 * e.draws + 12 * e.rows + 2 * e.matched_rows * e.matched)
    apart = max(float((found[i] - again[i]).abs().max()) for i in range(MOVES))
    return Part("an activation moved: log-probabilities", units, plain / MOVES, ours / BATCHED_MOVES, apart)


@torch.no_grad()
def _plain_move(work: Work, rest: Any, value: Tensor, at: int) -> Tensor:
    sequence, position = (int(n) for n in rest.places[at])

    def change(x: Tensor, hook: object) -> Tensor:
        x[0, position] = value
        return x

    tokens = rest.tokens[sequence : sequence + 1, : position + 1]
    logits = work.case.model.bridge.run_with_hooks(tokens, fwd_hooks=[(work.case.hook, change)])
    said: Tensor = logits[0, position].log_softmax(0)
    return said

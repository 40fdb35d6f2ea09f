"""Inputs changed: random text through the same network, and rows of which only some statistics are kept."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from controls import random_text, surrogates
from controls.case import Case, activations_at
from controls.decoding import FOLDS, deal, folded
from controls.outcomes import Outcome
from controls.random_text import RandomText
from controls.refits import AGAIN, Sought, generators, rows_of, sought
from controls.registry import control
from controls.subject import as_float, halves
from toolkit.errors import require

R = "held-out correlation of read-out and label"
OFF = "random text is off the network's distribution"
TYPES = f"{OFF}; labels go with token types"


@control(
    "inputs.unigram",
    null="nothing beyond how often tokens occur",
    mind="off-distribution inputs; a label keeps what its token type tells and loses the context",
    dear=True,
)
def unigram(case: Case) -> list[Outcome]:
    """Tokens drawn one by one from the text's own."""
    return _in_text(case, "inputs.unigram", 201, random_text.unigram, texts=False)


@control(
    "inputs.bigram",
    null="nothing beyond which token follows which",
    mind="off-distribution inputs; a label keeps what its token type tells and loses the context",
    dear=True,
)
def bigram(case: Case) -> list[Outcome]:
    """Tokens drawn from those that follow the one before in the text."""
    return _in_text(case, "inputs.bigram", 202, random_text.bigram, texts=False)


@control(
    "inputs.shuffled",
    null="nothing beyond which tokens a document holds",
    mind="off-distribution inputs; tokens take their labels along, labelled texts are shuffled each in itself",
    dear=True,
)
def shuffled(case: Case) -> list[Outcome]:
    """Tokens shuffled within their document."""
    return _in_text(case, "inputs.shuffled", 203, random_text.shuffled, texts=True)


@control(
    "inputs.gaussian",
    null="the finder needs only the mean and the covariance of its rows",
    mind="of finders without labels; PCA needs no more than these and never survives",
    dear=True,
)
def gaussian(case: Case) -> list[Outcome]:
    """Gaussian rows of the same mean and covariance."""
    return _in_rows(case, "inputs.gaussian", 204, lambda _, rows: partial(surrogates.rotated, rows))


@control(
    "inputs.ranks",
    null="the finder needs only the covariance of its rows and the marginal of each coordinate",
    mind="of finders without labels; the covariance is kept to some thousandths, marginals exactly",
    dear=True,
)
def ranks(case: Case) -> list[Outcome]:
    """Rows with the same marginals, ordered as Gaussian ones of the same covariance."""
    return _in_rows(case, "inputs.ranks", 205, lambda _, rows: partial(surrogates.rank_matched, rows))


@control(
    "inputs.sparse",
    null="the finder needs only sparse rows: any dictionary as sparse would do",
    mind="of finders without labels; codes are the finder's own, so that what it leaves over counts as Gaussian",
    dear=True,
)
def sparse(case: Case) -> list[Outcome]:
    """Rows of a random dictionary with the finder's codes, dealt to other rows, and the same covariance."""

    def change(one: Sought, rows: Tensor) -> Callable[[np.random.Generator], Tensor]:
        given = surrogates.coded(one.finder, rows)
        return lambda rng: surrogates.random_sparse(given, rng=rng).rows

    return _in_rows(case, "inputs.sparse", 206, change)


def _in_rows(
    case: Case, name: str, number: int, change: Callable[[Sought, Tensor], Callable[[np.random.Generator], Tensor]]
) -> list[Outcome]:
    """The same recipe on real and on changed rows."""
    rows, outcomes = rows_of(case), []
    for one in sought(case):
        observed, *draws = generators(case, number, 1 + case.dear)
        real, changed = one.again(rows, seed=observed[1]), change(one, rows)
        null = np.array([one.again(changed(rng), seed=seed) for rng, seed in draws])
        outcomes += _outcomes(name, one, real, null, "rows are taken as independent")
    return outcomes


def _outcomes(
    name: str, one: Sought, real: Float[np.ndarray, " features"], null: Float[np.ndarray, "draws f"], note: str
) -> list[Outcome]:
    return [
        Outcome(name, feature, AGAIN, float(real[place]), null[:, place], note=note)
        for place, feature in enumerate(one.names)
    ]


@dataclass(frozen=True)
class _Found:
    """What rows say of all features: r of labels, and cosines for each finder without labels."""

    r: Float[np.ndarray, " labels"]
    again: list[Float[np.ndarray, " features"]]


def _in_text(case: Case, name: str, number: int, draw: random_text.Draw, *, texts: bool) -> list[Outcome]:
    """The same read-outs and recipes on the network's activations in real and in random text."""
    labels, finders = _supervised(case, texts), _unsupervised(case)
    require(
        bool(labels or finders),
        f"{name} draws tokens with labels of their type, and texts are labelled as wholes: take inputs.shuffled",
    )
    Y = as_float(np.stack([case.subject.labels[f][case.some] for f in labels], 1)) if labels else None
    observed, *draws = generators(case, number, 1 + case.dear)
    part = case.reading.part(case.some)
    real = RandomText(part.tokens, part.rows, part.groups, np.arange(len(case.some)))
    first = _read(case, rows_of(case), real, Y, finders, observed[1])
    null = []
    for rng, seed in draws:
        text = draw(part, rng)
        rows = activations_at(case.model, case.hook, text.tokens, text.rows)
        null.append(_read(case, rows, text, Y, finders, seed))
    scores = np.stack([one.r for one in null])
    outcomes = [
        Outcome(name, feature, R, float(first.r[column]), scores[:, column], note=TYPES)
        for column, feature in enumerate(labels)
    ]
    for place, one in enumerate(finders):
        outcomes += _outcomes(name, one, first.again[place], np.stack([found.again[place] for found in null]), OFF)
    return outcomes


def _read(case: Case, rows: Tensor, text: RandomText, Y: Tensor | None, finders: list[Sought], seed: int) -> _Found:
    again = [one.again(rows, seed=seed) for one in finders]
    if Y is None:
        return _Found(np.empty(0), again)
    groups = np.unique(text.groups, return_inverse=True)[1]
    data = folded(rows, deal(halves(groups, FOLDS, seed=case.seed)))
    return _Found(data.r(Y[torch.from_numpy(text.bearers)]).numpy(), again)


def _supervised(case: Case, texts: bool) -> list[str]:
    """Features with labels; those of whole texts only where tokens stay in theirs."""
    if case.reading.unit == "texts" and not texts:
        return []
    families = case.subject.families
    return [feature for feature in case.subject.names if case.finders[families[feature]].supervised]


def _unsupervised(case: Case) -> list[Sought]:
    families = case.subject.families
    some = any(not case.finders[families[feature]].supervised for feature in case.subject.names)
    return sought(case) if some else []

"""A feature against the best single direction of many: chosen on one half of the documents, scored on the other."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.case import Case
from controls.decoding import ROUNDING, SHRINKAGE, drawn_r, read_outs, real, resampled, sums_by_unit
from controls.finders import Finder, Latents, Principal
from controls.outcomes import Outcome
from controls.refits import generators, half_of, rows_of
from controls.subject import as_float, units
from toolkit.errors import require

MOST = 4096
"""Directions tried at most, however many latents an SAE has."""
FEWEST = 10
"""Documents in the half that is scored, drawn with replacement: of fewer, two directions that go equally well with the
label differ too often (at three one time in eight by p <= .05, at ten one in twenty-five)."""
OWN = "correlation with the label in the other half of the documents"


@dataclass(frozen=True)
class Half:
    """Rows and labels of half of the documents, and their moments."""

    X: Float[Tensor, "rows d"]
    """Rows less their mean."""
    Y: Float[Tensor, "rows features"]
    """Labels."""
    groups: Int[np.ndarray, " rows"]
    """Documents, numbered without gaps."""
    cross: Float[Tensor, "d features"]
    """Covariances with the labels, over the labels' standard deviations."""
    covariance: Float[Tensor, "d d"]
    """Of the rows."""

    def r(self, directions: Float[Tensor, "n d"]) -> Float[Tensor, "n features"]:
        """Correlations of labels with the rows along directions; 0 where these vary no more than by rounding."""
        variance = ((directions @ self.covariance) * directions).sum(1)
        rounding = ROUNDING * self.covariance.trace() * directions.square().sum(1)
        found = directions @ self.cross / variance.clamp(min=1e-30).sqrt()[:, None]
        return torch.where((variance > rounding)[:, None], found, 0)


def half(X: Float[Tensor, "rows d"], Y: Float[Tensor, "rows features"], groups: Int[np.ndarray, " rows"]) -> Half:
    """From rows, labels and documents."""
    X, centred = (X - X.mean(0)).double(), (Y - Y.mean(0)).double()
    spread = centred.square().mean(0).sqrt()
    cross = torch.where(spread > 0, X.mT @ centred / len(X) / spread.clamp(min=1e-30), 0.0)
    return Half(X, Y, np.unique(groups, return_inverse=True)[1], cross, X.mT @ X / len(X))


def best(directions: Float[Tensor, "n d"], learn: Half) -> Float[Tensor, "features d"]:
    """For each feature the direction that goes with its label best, turned so that it goes up with it."""
    r = learn.r(directions)
    chosen = r.abs().argmax(0)
    return directions[chosen] * r.gather(0, chosen[None])[0].sign()[:, None]


@dataclass(frozen=True)
class Contest:
    """One finder's features, and how many directions they are up against."""

    finder: Finder
    """The finder."""
    names: list[str]
    """Its features."""
    learn: Half
    """To choose on."""
    score: Half
    """To score on."""
    own: Float[Tensor, "features d"]
    """Their own directions, or of labels read-outs fitted to the half to choose on."""
    count: int
    """Directions that the finder has."""

    def outcomes(self, name: str, null: Float[np.ndarray, "draws features"]) -> list[Outcome]:
        """One a feature."""
        observed = self.score.r(self.own).diagonal()
        note = f"the best of {self.count} directions in one half of the documents"
        return [
            Outcome(name, feature, OWN, float(observed[place]), null[:, place], note=note)
            for place, feature in enumerate(self.names)
        ]


def against_random(case: Case, name: str, number: int) -> list[Outcome]:
    """Each feature against the best of as many draws from N(0, covariance), drawn anew for each null draw."""
    outcomes = []
    for one in contests(case):
        values, vectors = torch.linalg.eigh(one.learn.covariance)
        root = (vectors * values.clamp(min=0).sqrt()).mT
        null = []
        for rng, _ in generators(case, number, case.draws):
            drawn = torch.from_numpy(rng.standard_normal((one.count, len(root)))) @ root
            null.append(one.score.r(best(drawn, one.learn)).diagonal())
        outcomes += one.outcomes(name, torch.stack(null).numpy())
    return outcomes


def against_principal(case: Case, name: str, number: int) -> list[Outcome]:
    """Each feature against the best of as many principal directions.

    There is one PCA: null draws are the feature's r and the difference to it that documents drawn with replacement
    show, so that p is the share of these in which the principal direction does as well.

    Raises:
        UserError: all features are principal directions, or documents are too few to draw from.
    """
    outcomes = []
    for one in contests(case):
        if isinstance(one.finder, Principal):
            continue
        documents = len(np.unique(one.score.groups))
        require(
            documents >= FEWEST,
            f"{name}: {documents} documents in the half that is scored are too few to draw from, and {FEWEST} are "
            "needed: give text of more documents",
        )
        vectors = torch.linalg.eigh(one.learn.covariance).eigenvectors
        chosen = best(vectors.flip(1)[:, : one.count].mT, one.learn)  # (d, d), variances rising -> (count, d)
        drawn_of = units(one.score.groups, seed=case.seed)
        weights = resampled(int(drawn_of.max()) + 1, case.draws, seed=case.seed + number)
        own, other = (
            drawn_r(sums_by_unit(one.score.X @ directions.mT, one.score.Y, drawn_of), weights)
            for directions in (one.own, chosen)
        )
        observed = one.score.r(one.own).diagonal()
        outcomes += one.outcomes(name, (observed + other - own).numpy())
    require(bool(outcomes), f"{name}: a principal feature is a principal direction itself: give labels or --sae")
    return outcomes


def contests(case: Case) -> Iterator[Contest]:
    """One for each finder."""
    families = case.subject.families
    for family in dict.fromkeys(families[feature] for feature in case.subject.names):
        names = [feature for feature in case.subject.names if families[feature] == family]
        learn, score = _halves(case, names)
        finder = case.finders[family]
        yield Contest(finder, names, learn, score, _own(case, finder, learn, names), count_of(finder, learn.X.shape[1]))


def count_of(finder: Finder, d: int) -> int:
    """How many directions a finder has: latents, MOST of them at most, or components; of labels the dimensions."""
    if isinstance(finder, Latents):
        return min(MOST, finder.sae.W_dec.shape[1])
    directions = finder.directions()
    return d if directions is None else len(directions)


def _halves(case: Case, names: list[str]) -> tuple[Half, Half]:
    rows, part, groups = rows_of(case), half_of(case), case.subject.groups[case.some]
    Y = as_float(np.stack([case.subject.labels[name][case.some] for name in names], 1))
    learn, score = (np.flatnonzero(part == number) for number in (0, 1))
    return half(rows[learn], Y[learn], groups[learn]), half(rows[score], Y[score], groups[score])


def _own(case: Case, finder: Finder, learn: Half, names: list[str]) -> Float[Tensor, "features d"]:
    directions = finder.directions()
    if directions is None:
        values = torch.linalg.eigvalsh(learn.covariance)
        ridge = SHRINKAGE * values[real(values)].median() if values[-1] > 0 else torch.ones(())
        return read_outs(learn.covariance, learn.cross, ridge.double().expand(len(values))).mT
    order = list(finder.labels(case.reading, case.subject.activations[:1]))
    return directions[[order.index(name) for name in names]].double()

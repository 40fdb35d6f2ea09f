"""Rows of known structure, cases around them whose network is never run, and a finder that is quick."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch

from controls import finders
from controls.case import Case
from controls.reading import Reading
from controls.subject import Subject

DOCUMENTS, EACH, D = 40, 20, 16
"""Documents, rows of each, dimensions and atoms."""


def atoms():
    """D unit directions, not orthogonal."""
    drawn = np.random.default_rng(99).standard_normal((D, D))
    return torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).float()


def sparse_rows(seed, *, one=False):
    """Sums of few atoms: each is on in one row of eight, or exactly one in each row."""
    rng = np.random.default_rng([seed, 1])
    shape = (DOCUMENTS * EACH, D)
    draws = rng.random(shape)
    on = draws == draws.max(1, keepdims=True) if one else draws < 1 / 8
    codes = on * rng.uniform(1, 2, shape)
    return torch.from_numpy(codes).float() @ atoms() + 0.02 * torch.from_numpy(rng.standard_normal(shape)).float()


def gaussian_rows(seed, *, last=1.0):
    """Gaussian rows, standard deviations falling from 1 to `last`."""
    drawn = np.random.default_rng([seed, 2]).standard_normal((DOCUMENTS * EACH, D)) * np.geomspace(1, last, D)
    return torch.from_numpy(drawn).float()


@dataclass(frozen=True)
class Independent:
    """Directions that independent component analysis finds: like an SAE it needs more than covariances."""

    found: torch.Tensor | None = None
    family: str = "ica"
    supervised: bool = False

    def fit(self, rows, *, seed):
        return replace(self, found=self.refit(rows, seed=seed))

    def labels(self, reading, activations):
        on = (activations @ torch.linalg.pinv(self.found) > 0).numpy().astype(int)
        return {f"ica:{number}": on[:, number] for number in range(len(self.found))}

    def directions(self):
        return self.found

    def refit(self, rows, *, seed):
        from sklearn.decomposition import FastICA

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on Gaussian rows it does not converge
            mixing = FastICA(D, max_iter=60, random_state=seed, whiten="unit-variance").fit(rows.numpy()).mixing_
        return torch.nn.functional.normalize(torch.from_numpy(mixing.T).float(), dim=1)


def rows_case(rows, *found, labels=None, seed=0, draws=19, dear=9):
    """A case with these rows, EACH of them a document, with features of finders and other labels (name -> 0 or 1)."""
    places = torch.stack([torch.arange(len(rows)) // EACH, torch.arange(len(rows)) % EACH], 1)
    groups, nothing = places[:, 0].numpy(), np.empty(0, int)
    tokens = torch.zeros(len(rows) // EACH, EACH, dtype=torch.long)
    reading = Reading(tokens, places, groups, nothing, "tokens", None)
    columns, families = dict(labels or {}), dict.fromkeys(labels or {}, "labels")
    for finder in found:
        here = finder.labels(reading, rows)
        columns |= here
        families |= dict.fromkeys(here, finder.family)
    targets = dict.fromkeys(columns)
    subject = Subject(rows, columns, groups, None, nothing, lambda x, at: x, targets, {}, families=families)
    known = {"labels": finders.Labels(tuple(labels))} if labels else {}
    known |= {finder.family: finder for finder in found}
    return Case(None, "nowhere", reading, subject, known, seed=seed, draws=draws, dear=dear)


def by_feature(outcomes):
    """Outcomes by feature."""
    return {outcome.feature: outcome for outcome in outcomes}

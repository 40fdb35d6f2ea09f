"""Small networks whose read-outs are known, as cases: a feature that is read, one that is not, and random ones."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import kstest

from controls.case import Case
from controls.finders import Labels
from controls.reading import Reading
from controls.subject import Subject
from toolkit.language import LanguageModel

D, DOCUMENTS, ROWS = 12, 30, 20


@dataclass(frozen=True)
class Fixed:
    """A finder that says what it is told."""

    vectors: torch.Tensor
    family: str = "fixed"
    supervised: bool = False
    names: tuple[str, ...] = ("nothing=1",)

    def labels(self, reading, activations):
        """Of these only the names are asked for."""
        return dict.fromkeys(self.names, np.zeros(len(activations), int))

    def directions(self):
        return self.vectors


def case_of(X, labels, outputs, *, finder=None, seed=0, draws=19, targets=None):
    """Activations (rows, d) in DOCUMENTS documents, and `outputs` of them."""
    n = len(X)
    finder = finder or Labels.of(*labels)
    groups = np.repeat(np.arange(DOCUMENTS), n // DOCUMENTS)
    rows = torch.stack([torch.zeros(n).long(), torch.arange(n)], 1)
    reading = Reading(torch.zeros(1, n).long(), rows, groups, np.zeros(0, int), "tokens", None)
    subject = Subject(
        activations=X.float(),
        labels=labels,
        groups=groups,
        tokens=None,
        places=np.arange(n),
        downstream=lambda x, at: outputs(x),
        targets=targets or dict.fromkeys(labels),
        nulls={},
        families=dict.fromkeys(labels, finder.family),
    )
    model = LanguageModel("none", bridge=None, tokenizer=None)
    return Case(model, "blocks.2.hook_resid_post", reading, subject, {finder.family: finder}, seed=seed, draws=draws)


def read_and_idle(*, seed=0, draws=99, log=True, **options):
    """Two labels that move activations alike, one along dimension 0, which is read, one along 1, which is not."""
    rng = np.random.default_rng(seed)
    y = {name: rng.integers(0, 2, DOCUMENTS * ROWS) for name in ("used=1", "idle=1")}
    X = 0.5 * rng.normal(size=(DOCUMENTS * ROWS, D))
    X[:, 0] += 2 * y["used=1"]
    X[:, 1] += 2 * y["idle=1"]
    return case_of(torch.from_numpy(X), y, reader(rng, log), seed=seed, draws=draws, **options)


def reader(rng, log=True):
    """Six outputs that read dimension 0 much, 1 not at all and the others a little."""
    R = torch.from_numpy(0.3 * rng.normal(size=(D, 6))).float()
    R[0], R[1] = torch.tensor([1.5, -1.5] * 3), 0
    return lambda x: (x @ R).log_softmax(1) if log else x @ R


def random_case(seed, *, draw="covariance", finder=True, draws=19, isotropic=False):
    """A label of nothing, a direction of nothing and a reader of random directions: every null is true."""
    rng = np.random.default_rng([seed, 5])
    n = DOCUMENTS * ROWS
    scales = np.ones(D) if isotropic else np.linspace(0.3, 2, D)
    X = rng.normal(size=(n, D)) * scales
    v = {"isotropic": rng.normal(size=D), "covariance": rng.normal(size=D) * scales, "real": X[3] - X[8]}[draw]
    R = torch.from_numpy(rng.normal(size=(D, 4))).float()
    found = Fixed(torch.from_numpy(v)[None].float()) if finder else None
    labels = {"nothing=1": rng.integers(0, 2, n)}
    return case_of(torch.from_numpy(X), labels, lambda x: (x @ R).log_softmax(1), finder=found, seed=seed, draws=draws)


def are_uniform(p, draws=19):
    """Whether the p-values of true nulls, each a number of (1 + draws)ths, are even; ties are drawn apart."""
    p = np.asarray(p) - np.random.default_rng(1).uniform(0, 1 / (1 + draws), np.shape(p))
    return kstest(p, "uniform").pvalue > 0.01

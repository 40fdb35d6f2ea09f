"""Probes as scikit-learn classifiers: linear, low-rank, one hidden layer, differences of means, discriminants.

`LinearProbe().fit(X, y, groups=documents)`: X (rows, d) are activations, numpy or torch. Rows of one document stay
together wherever data are split.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.control_tasks import selectivity as selectivity
from toolkit.discriminants import discriminants, least_squares
from toolkit.errors import require, unknown
from toolkit.heads import Heads
from toolkit.logistic import Design, fit_logistic
from toolkit.permutation_null import permutation_null as permutation_null
from toolkit.probe_base import Probe
from toolkit.probe_inputs import ProbeRows
from toolkit.probe_search import select_probe as select_probe
from toolkit.shallow import fit_low_rank, fit_networks


class LinearProbe(Probe):
    """Logistic regression (or least squares) with an l2 penalty on standardised activations.

    Args:
        loss: "logistic" or "squared" (ridge regression on +1 and -1, of use for speed; its scores are no log-odds, and
            its penalty is chosen by squared error).
        l2: the penalty, for a mean loss; None chooses from GRID by cross-validation over documents.
        folds: of that cross-validation.
        class_weight: None, "balanced", or a dict of label to weight; for the logistic loss.
        standardise: columns to variance one first; folded into the directions.
        tolerance: largest entry of the gradient in well-conditioned coordinates at which fitting stops; None: 1e-11 for
            float64, 1e-5 for float32.
        random_state: deals documents to folds.
        device: "auto", "cpu" or "cuda".
    """

    def __init__(
        self,
        *,
        loss: str = "logistic",
        l2: float | None = None,
        folds: int = 3,
        class_weight: Any = None,
        standardise: bool = True,
        tolerance: float | None = None,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.loss = loss
        self.l2 = l2
        self.folds = folds
        self.class_weight = class_weight
        self.standardise = standardise
        self.tolerance = tolerance
        self.random_state = random_state
        self.device = device

    def check(self, data: ProbeRows) -> None:
        """Refuse what `fit` would refuse of these rows, without fitting."""
        self._check_loss()
        super().check(data)

    def _check_loss(self) -> None:
        if self.loss not in ("logistic", "squared"):
            raise unknown("loss", str(self.loss), ("logistic", "squared"))
        fits = self.loss == "logistic" or self.class_weight is None
        require(fits, "class_weight is for loss='logistic': leave it out, or change the loss")

    def fit_many(self, rows: Design, labels: Tensor, data: ProbeRows, l2: list[float]) -> Heads:
        """Fit label vectors, each with its penalty, on rows made ready by `design`."""
        self._check_loss()
        how: Any = {"classes": len(data.classes), "l2": self.penalties(l2, rows)}
        if self.loss == "squared":
            return least_squares(rows, labels, **how)
        shares = self.shares(data, labels)
        return fit_logistic(rows, labels, **how, shares=shares, tolerance=self.tolerance_for(rows)).heads

    def losses(
        self, logits: Float[Tensor, "rows problems outputs"], labels: Int[Tensor, "rows problems"]
    ) -> Float[Tensor, "rows problems"]:
        """What a penalty is chosen by: each row's loss."""
        if self.loss != "squared":
            return super().losses(logits, labels)
        outputs = logits.shape[-1]
        places = torch.arange(outputs, device=logits.device) if outputs > 1 else torch.ones(1, device=logits.device)
        targets = 2 * (labels[..., None] == places).to(logits.dtype) - 1  # (rows, problems, outputs)
        return 0.5 * (logits - targets).square().sum(-1)


class LowRankProbe(Probe):
    """Softmax regression whose coefficients (classes, d) have at most a given rank (Hewitt and Liang 2019, 3.2).

    With a rank of at least the number of classes less one it is `LinearProbe`, as are two classes.

    Args:
        rank: of the coefficients.
        l2, folds, class_weight, standardise, tolerance, random_state, device: as for `LinearProbe`.
        max_steps: steps of L-BFGS at most; the problem is not convex.
    """

    def __init__(
        self,
        rank: int = 2,
        *,
        l2: float | None = None,
        folds: int = 3,
        class_weight: Any = None,
        standardise: bool = True,
        tolerance: float | None = None,
        max_steps: int = 500,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.rank = rank
        self.l2 = l2
        self.folds = folds
        self.class_weight = class_weight
        self.standardise = standardise
        self.tolerance = tolerance
        self.max_steps = max_steps
        self.random_state = random_state
        self.device = device

    def fit_many(self, rows: Design, labels: Tensor, data: ProbeRows, l2: list[float]) -> Heads:
        """Fit label vectors, each with its penalty, on rows made ready by `design`."""
        classes = len(data.classes)
        how: Any = {
            "classes": classes,
            "l2": self.penalties(l2, rows),
            "shares": self.shares(data, labels),
            "tolerance": self.tolerance_for(rows),
        }
        if classes == 2 or self.rank >= min(classes - 1, rows.Z.shape[1]):
            return fit_logistic(rows, labels, **how).heads
        return fit_low_rank(rows, labels, rank=self.rank, most=self.max_steps, **how)


class MLPProbe(Probe):
    """One hidden layer of ReLUs on standardised activations, by full-batch L-BFGS.

    directions_ are mean gradients of the outputs over the rows it was fitted on.

    Args:
        hidden: units.
        l2: penalty on the weights of both layers; None chooses by cross-validation.
        max_steps: steps of L-BFGS; 200 bring training losses within a percent or so of where they stay. They are what
            ends a fit, so that it warns of not reaching a tolerance only where one was given.
        folds, class_weight, standardise, tolerance, random_state, device: as for `LinearProbe`; random_state also draws
            the first weights.
    """

    def __init__(
        self,
        hidden: int = 64,
        *,
        l2: float | None = None,
        folds: int = 3,
        class_weight: Any = None,
        standardise: bool = True,
        tolerance: float | None = None,
        max_steps: int = 200,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.hidden = hidden
        self.l2 = l2
        self.folds = folds
        self.class_weight = class_weight
        self.standardise = standardise
        self.tolerance = tolerance
        self.max_steps = max_steps
        self.random_state = random_state
        self.device = device

    def fit_many(self, rows: Design, labels: Tensor, data: ProbeRows, l2: list[float]) -> Heads:
        """Fit label vectors, each with its penalty, on rows made ready by `design`."""
        heads = fit_networks(
            rows,
            labels,
            classes=len(data.classes),
            hidden=self.hidden,
            l2=self.penalties(l2, rows),
            shares=self.shares(data, labels),
            seed=self.random_state,
            tolerance=self.tolerance_for(rows),
            most=self.max_steps,
        )
        return replace(heads, exhausted=heads.exhausted and self.tolerance is not None)

    def parameters(self, d: int, outputs: int) -> int:
        """Numbers fitted for one column of labels."""
        return self.hidden * (d + 1 + outputs) + outputs


class MeanDifferenceProbe(Probe):
    """Class means: directions are differences of means, in raw activations unless standardised.

    Scores are the log-odds of Gaussians with the same spherical covariance, the classes' shares as priors.

    Args:
        standardise: columns to variance one first.
        device: "auto", "cpu" or "cuda".
    """

    _penalised = False

    def __init__(self, *, standardise: bool = False, device: str = "auto") -> None:
        self.standardise = standardise
        self.device = device

    def fit_many(self, rows: Design, labels: Tensor, data: ProbeRows, l2: list[float]) -> Heads:
        """Fit many label vectors on rows made ready by `design`."""
        return discriminants(rows, labels, classes=len(data.classes), shrinkage=1.0)


class LDAProbe(Probe):
    """Linear discriminant analysis with a shrunk within-class covariance.

    Args:
        shrinkage: towards a multiple of the identity, in [0, 1]; None takes Ledoit and Wolf's (2004) for all rows,
            whatever their labels.
        standardise: columns to variance one first.
        device: "auto", "cpu" or "cuda".
    """

    _penalised = False

    def __init__(self, *, shrinkage: float | None = None, standardise: bool = False, device: str = "auto") -> None:
        self.shrinkage = shrinkage
        self.standardise = standardise
        self.device = device

    def fit_many(self, rows: Design, labels: Tensor, data: ProbeRows, l2: list[float]) -> Heads:
        """Fit many label vectors on rows made ready by `design`."""
        shrinkage = ledoit_wolf(rows, data.weights.sum()) if self.shrinkage is None else self.shrinkage
        return discriminants(rows, labels, classes=len(data.classes), shrinkage=shrinkage)


def ledoit_wolf(rows: Design, count: float) -> float:
    """Ledoit and Wolf's (2004) shrinkage of the covariance of `count` rows towards a multiple of the identity."""
    d = len(rows.variances)
    apart = (rows.variances - rows.variances.mean()).square().sum() / d
    if apart <= 0:
        return 1.0
    fourth = rows.weights @ rows.Z.square().sum(1).square()
    noise = (fourth - rows.variances.square().sum()) / (count * d)
    return float((noise / apart).clamp(0, 1))

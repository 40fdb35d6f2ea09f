"""What all probes share: checks, standardisation, the choice of a penalty by document, prediction, directions."""

import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from toolkit.coding_inputs import as_rows
from toolkit.devices import resolve
from toolkit.errors import require
from toolkit.heads import Heads, cross_entropies, log_probabilities
from toolkit.logistic import Design, design
from toolkit.probe_inputs import ProbeRows, as_array, blind_folds, check_text, folds, probe_rows
from toolkit.probe_settings import check_settings

_TYPES = [np.float64, np.float32]
GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalties tried, for standardised columns and a mean loss in nats (scikit-learn's C is 1 / (rows * l2))."""


class Probe(ClassifierMixin, BaseEstimator):
    """A classifier of activations, to be derived from.

    In scikit-learn's `cross_val_score` and `GridSearchCV`, groups= reaches the splitter alone, so the penalty would be
    chosen by folds that mix documents. They reach `fit` with params={"groups": documents} in `cross_val_score` (beside
    groups=documents), or in both with metadata routing enabled and `set_fit_request(groups=True)`.

    Attributes:
        classes_: (classes,), sorted labels.
        directions_: (classes or 1, d), the read-out's gradient by raw activations; one for two classes.
        whitened_directions_: the same for activations of covariance I, directions_ Sigma^(1/2).
        l2_: the penalty used; nan for probes without one.
        l2_losses_: (penalties,), held-out loss of each penalty tried, in nats a row (half squared errors for
            loss="squared"); empty where l2 was given.
        n_iter_: steps of the last fit; 1 in closed form.
    """

    classes_: Shaped[np.ndarray, " classes"]
    class_weight: Any
    standardise: bool
    l2: float | None
    folds: int
    random_state: int
    device: str
    tolerance: float | None
    _penalised = True

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Learn from rows X (rows, d), one label a row; `groups` are the rows' documents.

        Name groups: the third place is that of sample_weight, as scikit-learn has it.

        Raises:
            UserError: what `toolkit.probe_inputs.probe_rows` and `folds` refuse, settings out of range.

        Warns:
            ConvergenceWarning: steps ran out before the tolerance was reached.
        """
        check_text(X)
        X = as_rows(validate_data(self, as_array(X), dtype=_TYPES, ensure_all_finite=False), "X")
        data = probe_rows(X, y, sample_weight, groups)
        check_settings(self, data)
        self.classes_ = data.classes
        chosen, losses = self.choose(data, self._labels(data), folds)
        self.l2_, self.l2_losses_ = chosen[0], losses[0]
        rows, scale = self._design(data)
        self.heads_ = self.fit_many(rows, self._labels(data), data, chosen).unscaled(scale)
        self._warn(self.heads_)
        self.n_iter_ = self.heads_.iterations
        self._describe(rows, scale)
        return self

    def _warn(self, heads: Heads) -> None:
        if heads.exhausted:
            said = f"{type(self).__name__}: {heads.iterations} steps did not reach the tolerance; raise it, or l2"
            warnings.warn(said, ConvergenceWarning, stacklevel=3)

    def check(self, data: ProbeRows) -> None:
        """Refuse what `fit` would refuse of these rows, without fitting.

        Raises:
            UserError: settings out of range, a class that the choice of a penalty could not spread over folds.
        """
        check_settings(self, data)
        resolve(self.device)
        if self._penalised and self.l2 is None:
            folds(data, self.folds, seed=self.random_state)

    def parameters(self, d: int, outputs: int) -> int:
        """Numbers fitted for one column of labels."""
        return outputs * (d + 1)

    def losses(
        self, logits: Float[Tensor, "rows problems outputs"], labels: Int[Tensor, "rows problems"]
    ) -> Float[Tensor, "rows problems"]:
        """What a penalty is chosen by: each row's loss."""
        return cross_entropies(logits, labels)

    def fit_many(self, rows: Design, labels: Int[Tensor, "rows problems"], data: ProbeRows, l2: list[float]) -> Heads:
        """Fit label vectors, each with its penalty, on rows made ready by `design`."""
        raise NotImplementedError

    def fit_together(self, data: ProbeRows, labels: Int[Tensor, "rows problems"]) -> Heads:
        """Heads for raw rows, one for each column of labels, each with a penalty of its own where none is given.

        The rows' factorisation is shared. `data.labels` is not used, only its classes, weights and documents.

        Raises:
            UserError: settings out of range.
        """
        check_settings(self, data)
        rows, scale = self._design(data)
        heads = self.fit_many(rows, labels, data, self.choose(data, labels, blind_folds)[0]).unscaled(scale)
        self._warn(heads)
        return heads

    def choose(
        self, data: ProbeRows, labels: Int[Tensor, "rows problems"], deal: Callable[..., Int[np.ndarray, " rows"]]
    ) -> tuple[list[float], Float[np.ndarray, "problems penalties"]]:
        """The penalty of each column of labels, and what each of GRID loses on held-out documents, nats.

        `deal` gives the folds: `folds`, or `blind_folds` where labels of several columns are to be treated alike.
        """
        problems = labels.shape[1]
        if not self._penalised or self.l2 is not None:
            given = float("nan") if not self._penalised or self.l2 is None else float(self.l2)
            return [given] * problems, np.empty((problems, 0))
        losses = np.zeros((problems, len(GRID)))
        fold_of = deal(data, self.folds, seed=self.random_state)
        for fold in range(self.folds):
            losses += self._held_out(data, labels, fold_of != fold)
        losses /= data.weights.sum()
        return [GRID[at] for at in losses.argmin(1)], losses

    def _held_out(
        self, data: ProbeRows, labels: Tensor, kept: Bool[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "problems penalties"]:
        """Weighted losses of the rows not kept, summed, after fitting those kept with every penalty."""
        part, at = data.subset(kept), self.to_tensor(kept)
        each = labels.repeat_interleave(len(GRID), 1)  # (rows, problems * penalties)
        rows, scale = self._design(part)
        found = self.fit_many(rows, each[at], part, list(GRID) * labels.shape[1]).unscaled(scale)
        with torch.no_grad():
            lost = self.losses(found.logits(self.to_tensor(data.X[~kept])), each[~at])
        return (data.weights[~kept] @ as_array(lost)).reshape(-1, len(GRID))  # (problems * penalties) -> both

    def tolerance_for(self, rows: Design) -> float:
        """The given tolerance, or what the rows' type can reach."""
        if self.tolerance is not None:
            return self.tolerance
        return 1e-5 if rows.Z.dtype == torch.float32 else 1e-11

    def penalties(self, l2: list[float], rows: Design) -> Float[Tensor, " problems"]:
        """The penalties as a tensor of the rows' type."""
        return torch.as_tensor(l2, dtype=rows.Z.dtype, device=rows.Z.device)

    def shares(self, data: ProbeRows, labels: Tensor) -> Float[Tensor, "problems classes"] | None:
        """What each class's loss is multiplied by; None for one."""
        if self.class_weight is None:
            return None
        if self.class_weight == "balanced":
            return self._balanced(data, labels)
        values = np.array([self.class_weight.get(c, 1.0) for c in data.classes.tolist()])
        return self.to_tensor(values).to(self.to_tensor(data.X).dtype).expand(labels.shape[1], -1)

    def _balanced(self, data: ProbeRows, labels: Tensor) -> Float[Tensor, "problems classes"]:
        """Shares that give the classes of each column equal weight; a class without rows needs none."""
        w = self.to_tensor(data.weights)
        held = torch.stack([w @ (labels == c).to(w.dtype) for c in range(len(data.classes))], 1)
        present = (held > 0).sum(1, keepdim=True)
        values = torch.where(held > 0, w.sum() / (present * held), 1.0)
        return values.to(self.to_tensor(data.X).dtype)

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores (rows, classes), or log-odds of the second of two classes (rows,)."""
        logits = self._logits(X)
        return as_array(logits[:, 0] if logits.shape[1] == 1 else logits)

    def predict_log_proba(self, X: Any) -> Float[np.ndarray, "rows classes"]:
        """Log-probabilities of the classes, nats."""
        return as_array(log_probabilities(self._logits(X)))

    def predict_proba(self, X: Any) -> Float[np.ndarray, "rows classes"]:
        """Probabilities of the classes."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> Shaped[np.ndarray, " rows"]:
        """The likeliest class of each row."""
        logits = self._logits(X)
        best = (logits[:, 0] > 0).int() if logits.shape[1] == 1 else logits.argmax(1)
        return self.classes_[as_array(best)]

    def _logits(self, X: Any) -> Tensor:
        check_is_fitted(self)
        X = as_rows(validate_data(self, as_array(X), dtype=_TYPES, ensure_all_finite=False, reset=False), "X")
        with torch.no_grad():
            return self.heads_.logits(self.to_tensor(X).to(self.heads_.dtype))[:, 0]

    def to_tensor(self, values: np.ndarray) -> Tensor:
        """A numpy array on the probe's device."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(resolve(self.device))

    def _labels(self, data: ProbeRows) -> Int[Tensor, "rows 1"]:
        return self.to_tensor(data.labels)[:, None]

    def _design(self, data: ProbeRows) -> tuple[Design, Tensor]:
        """Standardised rows in their eigenbasis, and the columns' scale; constant columns keep theirs.

        Closed forms subtract covariances, so they work in float64.
        """
        X = self.to_tensor(data.X) if self._penalised else self.to_tensor(data.X).double()
        w = self.to_tensor(data.weights).to(X.dtype)
        w = w / w.sum()
        scale = torch.ones_like(X[0])
        if self.standardise:
            mean = w @ X
            deviation = (w @ (X - mean).square()).sqrt()
            constant = deviation <= 1e-6 * mean.abs()
            scale = torch.where(constant | (deviation == 0), 1.0, deviation)
        return design(X / scale, w), scale

    def _describe(self, rows: Design, scale: Tensor) -> None:
        raw = self.heads_.gradients((rows.Z @ rows.basis.mT + rows.mean) * scale)[0]
        spread, basis = scale.double(), rows.basis.double()
        covariance = ((basis * rows.variances.double()) @ basis.mT) * spread[:, None] * spread  # of the raw rows
        variances, axes = torch.linalg.eigh(covariance)
        root = (axes * variances.clamp(min=0).sqrt()) @ axes.mT
        self.directions_ = as_array(raw)
        self.whitened_directions_ = as_array((raw.double() @ root).to(raw.dtype))


def check_probe(probe: Any, name: str = "probe") -> None:
    """Refuse what is no probe: another estimator, a class.

    Raises:
        UserError: that.
    """
    given = f"the class {probe.__name__}" if isinstance(probe, type) else f"a {type(probe).__name__}"
    require(
        isinstance(probe, Probe), f"{name} is {given}: expected a probe of toolkit.probes, such as LinearProbe(l2=0.01)"
    )

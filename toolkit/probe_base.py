"""What all probes share: checks, standardisation, the choice of a penalty by document, prediction, directions."""

from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from toolkit.coding_inputs import as_rows
from toolkit.devices import resolve
from toolkit.errors import require, unknown
from toolkit.heads import Heads, cross_entropies, log_probabilities
from toolkit.logistic import Design, design
from toolkit.probe_inputs import ProbeRows, as_array, folds, probe_rows

_TYPES = [np.float64, np.float32]
GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties tried, for standardised columns and a mean loss in nats (scikit-learn's C is 1 / (rows * l2))."""


class Probe(ClassifierMixin, BaseEstimator):
    """A classifier of activations, to be derived from.

    Attributes:
        classes_: (classes,), sorted labels.
        directions_: (classes or 1, d), the read-out's gradient by raw activations; one for two classes.
        whitened_directions_: the same for activations of covariance I, directions_ Sigma^(1/2).
        l2_: the penalty used; nan for probes without one.
        l2_losses_: (penalties,), held-out cross-entropy in nats of each penalty tried; empty where l2 was given.
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

        Raises:
            UserError: what `toolkit.probe_inputs.probe_rows` and `folds` refuse, settings out of range.
        """
        X = as_rows(validate_data(self, as_array(X), dtype=_TYPES, ensure_all_finite=False), "X")
        data = probe_rows(X, y, sample_weight, groups)
        self._check(data)
        self.classes_ = data.classes
        self.l2_, self.l2_losses_ = self._penalty(data)
        rows, scale = self._design(data)
        self.heads_ = self.fit_many(rows, self._labels(data), data, [self.l2_]).unscaled(scale)
        self._describe(rows, scale)
        return self

    def fit_many(self, rows: Design, labels: Int[Tensor, "rows problems"], data: ProbeRows, l2: list[float]) -> Heads:
        """Fit many label vectors, or one with many penalties, on rows made ready by `design`."""
        raise NotImplementedError

    def tolerance_for(self, rows: Design) -> float:
        """The given tolerance, or what the rows' type can reach."""
        if self.tolerance is not None:
            return self.tolerance
        return 1e-5 if rows.Z.dtype == torch.float32 else 1e-11

    def penalties(
        self, l2: list[float], labels: Int[Tensor, "rows problems"], rows: Design
    ) -> Float[Tensor, " problems"]:
        """One penalty a problem."""
        return torch.as_tensor(l2, dtype=rows.Z.dtype, device=rows.Z.device).expand(labels.shape[1])

    def shares(self, data: ProbeRows, labels: Tensor) -> Float[Tensor, "problems classes"] | None:
        """What each class's loss is multiplied by; None for one."""
        if self.class_weight is None:
            return None
        if self.class_weight == "balanced":
            held = np.bincount(data.labels, data.weights)
            values = held.sum() / (len(held) * held)
        else:
            values = np.array([self.class_weight.get(c, 1.0) for c in data.classes.tolist()])
        return self._tensor(values).to(self._tensor(data.X).dtype).expand(labels.shape[1], -1)

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
            return self.heads_.logits(self._tensor(X).to(self.heads_.dtype))[:, 0]

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(resolve(self.device))

    def _labels(self, data: ProbeRows) -> Int[Tensor, "rows 1"]:
        return self._tensor(data.labels)[:, None]

    def _design(self, data: ProbeRows) -> tuple[Design, Tensor]:
        """Standardised rows in their eigenbasis, and the columns' scale; constant columns keep theirs."""
        X, w = self._tensor(data.X), self._tensor(data.weights).to(self._tensor(data.X).dtype)
        w = w / w.sum()
        scale = torch.ones_like(X[0])
        if self.standardise:
            mean = w @ X
            deviation = (w @ (X - mean).square()).sqrt()
            constant = deviation <= 1e-6 * mean.abs()
            scale = torch.where(constant | (deviation == 0), 1.0, deviation)
        return design(X / scale, w), scale

    def _penalty(self, data: ProbeRows) -> tuple[float, Float[np.ndarray, " penalties"]]:
        if not self._penalised:
            return float("nan"), np.empty(0)
        if self.l2 is not None:
            return float(self.l2), np.empty(0)
        losses = np.zeros(len(GRID))
        fold_of = folds(data, self.folds, seed=self.random_state)
        for fold in range(self.folds):
            kept = fold_of != fold
            part = ProbeRows(
                data.X[kept], data.labels[kept], data.classes, data.weights[kept], data.groups[kept], data.grouped
            )
            rows, scale = self._design(part)
            labels = self._labels(part).expand(-1, len(GRID))
            found = self.fit_many(rows, labels, part, list(GRID)).unscaled(scale)
            X, y = self._tensor(data.X[~kept]), self._tensor(data.labels[~kept])
            with torch.no_grad():
                each = cross_entropies(found.logits(X), y[:, None].expand(-1, len(GRID)))  # (rows, penalties)
            losses += data.weights[~kept] @ as_array(each)
        losses /= data.weights.sum()
        return GRID[int(losses.argmin())], losses

    def _describe(self, rows: Design, scale: Tensor) -> None:
        raw = self.heads_.gradients((rows.Z @ rows.basis.mT + rows.mean) * scale)[0]
        root = (rows.basis * rows.variances.sqrt()) @ rows.basis.mT  # of the standardised rows' covariance
        self.directions_ = as_array(raw)
        self.whitened_directions_ = as_array((raw * scale) @ root)

    def _check(self, data: ProbeRows) -> None:
        for name in ("l2", "shrinkage"):
            value = getattr(self, name, None)
            require(
                value is None or bool(np.isfinite(value) and value >= 0),
                f"{name}={value}: expected a number of at least 0",
            )
        for name in ("folds", "rank", "hidden"):
            value, least = getattr(self, name, 2), 2 if name == "folds" else 1
            whole = bool(isinstance(value, (int, np.integer)) and value >= least)
            require(whole, f"{name}={value}: expected a whole number of at least {least}")
        if getattr(self, "l2", None) == 0:
            n, d = data.X.shape
            require(n > d, f"l2=0 with {n} rows in {d} dimensions: the fit is not unique; give a penalty l2 > 0")
        if isinstance(getattr(self, "class_weight", None), dict):
            for key in self.class_weight:
                if key not in data.classes.tolist():
                    raise unknown("class in class_weight", str(key), [str(c) for c in data.classes])

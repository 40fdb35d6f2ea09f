"""What all probes share: checks, standardisation, the choice of a penalty by document, prediction, directions."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from toolkit.coding_inputs import as_rows
from toolkit.devices import resolve
from toolkit.errors import require, unknown
from toolkit.heads import Heads, cross_entropies, log_probabilities
from toolkit.logistic import Design, design
from toolkit.probe_inputs import ProbeRows, as_array, blind_folds, check_count, folds, probe_rows

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
        chosen, losses = self.choose(data, self._labels(data), folds)
        self.l2_, self.l2_losses_ = chosen[0], losses[0]
        rows, scale = self._design(data)
        self.heads_ = self.fit_many(rows, self._labels(data), data, chosen).unscaled(scale)
        self._describe(rows, scale)
        return self

    def fit_many(self, rows: Design, labels: Int[Tensor, "rows problems"], data: ProbeRows, l2: list[float]) -> Heads:
        """Fit label vectors, each with its penalty, on rows made ready by `design`."""
        raise NotImplementedError

    def fit_together(self, data: ProbeRows, labels: Int[Tensor, "rows problems"]) -> Heads:
        """Heads for raw rows, one for each column of labels, each with a penalty of its own where none is given.

        The rows' factorisation is shared. `data.labels` is not used, only its classes, weights and documents.

        Raises:
            UserError: settings out of range.
        """
        self._check(data)
        rows, scale = self._design(data)
        return self.fit_many(rows, labels, data, self.choose(data, labels, blind_folds)[0]).unscaled(scale)

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
            lost = cross_entropies(found.logits(self.to_tensor(data.X[~kept])), each[~at])
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
        """Standardised rows in their eigenbasis, and the columns' scale; constant columns keep theirs."""
        X, w = self.to_tensor(data.X), self.to_tensor(data.weights).to(self.to_tensor(data.X).dtype)
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
        root = (rows.basis * rows.variances.sqrt()) @ rows.basis.mT  # of the standardised rows' covariance
        self.directions_ = as_array(raw)
        self.whitened_directions_ = as_array((raw * scale) @ root)

    def _check(self, data: ProbeRows) -> None:
        for name in ("l2", "shrinkage"):
            value = getattr(self, name, None)
            number = isinstance(value, (int, float, np.number)) and bool(np.isfinite(value) and value >= 0)
            require(value is None or number, f"{name}={value!r}: expected a number of at least 0")
        shrinkage = getattr(self, "shrinkage", None)
        require(shrinkage is None or shrinkage <= 1, f"shrinkage={shrinkage}: expected a share, at most 1")
        for name, least in (("folds", 2), ("rank", 1), ("hidden", 1)):
            check_count(getattr(self, name, least), name, least=least)
        n, d = data.X.shape
        if getattr(self, "l2", None) == 0:
            require(n > d, f"l2=0 with {n} rows in {d} dimensions: the fit is not unique; give a penalty l2 > 0")
        if shrinkage == 0:
            free = n - len(data.classes)
            require(
                free >= d,
                f"shrinkage=0 with {n} rows of {len(data.classes)} classes in {d} dimensions: the covariance within "
                "classes has no inverse; give a shrinkage > 0",
            )
        weighting = getattr(self, "class_weight", None)
        require(
            weighting is None or isinstance(weighting, dict) or weighting == "balanced",
            f"class_weight={weighting!r}: expected None, 'balanced' or a dict of label to weight",
        )
        for key in weighting if isinstance(weighting, dict) else ():
            if key not in data.classes.tolist():
                raise unknown("class in class_weight", str(key), [str(c) for c in data.classes])

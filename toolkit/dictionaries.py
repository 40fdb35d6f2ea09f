"""Learned dictionaries in scikit-learn's conventions: held-out error, several seeds, and how far they agree."""

from typing import Any, Self

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from toolkit.coding_inputs import as_numbers, as_rows, checked
from toolkit.dictionary_learning import Codes, Learning, Rows, error, learn, merge
from toolkit.errors import UserError, check_parameters, require

_TYPES = [np.float64, np.float32]


class DictionaryLearner(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A dictionary D (n, d) in which rows have sparse codes, rows ~ Z D (Mairal et al. 2009).

    The weights of rows, say token frequencies, count in the squared error that is minimised and reported; the code of
    a row does not depend on its own weight. Equal rows are one row of their summed weight, so repeating a row and
    doubling its weight are the same thing.

    Args:
        n_components: atoms n; None takes d, or the number of training rows if that is smaller.
        n_nonzero: atoms a code by OMP; None takes a tenth of d, at least 1, unless alpha is given.
        alpha: codes by the lasso with this weight instead; excludes n_nonzero.
        epochs: passes over the training rows.
        batch_size: rows coded between two updates of the atoms.
        held_out: share of the (different) rows kept for the error, rounded.
        n_seeds: dictionaries learned from different first atoms; that of least error is kept.
        positive: coefficients >= 0.
        random_state: of the split and the first atoms.
        device: where codes are computed, "cpu" or "cuda".

    Attributes:
        components_: (n, d), atoms of norm 1.
        held_out_error_: weighted share of the held-out rows' squared norm that is not rebuilt; with several seeds the
            least of theirs, and as the choice fell by it a little too small.
        held_out_error_unweighted_: the same with every row alike.
        history_: (epochs,), the weighted error after each epoch.
        seed_errors_: (n_seeds,), the last weighted error of each seed.
        agreement_: mean over atoms of the largest |cosine| with an atom of another seed, averaged over the other
            seeds; nan for one seed.
        agreement_by_chance_: the same with as many directions drawn from a Gaussian of the rows' weighted second
            moments, in place of the other seeds.
        replaced_: atoms replaced because next to nothing used them, or another did their work.
        effective_rows_: (sum w)^2 / sum w^2 of the training rows.
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        n_nonzero: int | None = None,
        alpha: float | None = None,
        epochs: int = 10,
        batch_size: int = 4096,
        held_out: float = 0.2,
        n_seeds: int = 1,
        positive: bool = False,
        random_state: Any = 0,
        device: str = "cpu",
    ) -> None:
        self.n_components = n_components
        self.n_nonzero = n_nonzero
        self.alpha = alpha
        self.epochs = epochs
        self.batch_size = batch_size
        self.held_out = held_out
        self.n_seeds = n_seeds
        self.positive = positive
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: object = None, sample_weight: Any = None) -> Self:
        """Learn from X (rows, d); `sample_weight` is (rows,), not negative.

        Raises:
            UserError: values that are not finite, weights that are negative or all zero, fewer training rows than
                atoms, settings out of range.
        """
        X = as_rows(validate_data(self, X, dtype=_TYPES, ensure_all_finite=False), "X")
        self._check()
        weights = _weights(sample_weight, len(X))
        seeds = self._generator().randint(2**31 - 1, size=self.n_seeds + 1)
        train, held_out = _split(merge(X, weights), self.held_out, int(seeds[0]))
        how = self._how(train)
        learned = [learn(train, held_out, how, seed=int(seed)) for seed in seeds[1:]]
        self.seed_errors_ = np.array([found.history[-1] for found in learned])
        best = 0 if len(held_out.X) == 0 else int(self.seed_errors_.argmin())
        self.components_ = learned[best].components
        self.history_ = np.array(learned[best].history)
        self.replaced_ = learned[best].replaced
        self.held_out_error_ = float(self.seed_errors_[best])
        self.held_out_error_unweighted_ = error(held_out, self.components_, how, weighted=False)
        self.effective_rows_ = float(train.weights.sum() ** 2 / np.square(train.weights).sum())
        others = [found.components for i, found in enumerate(learned) if i != best]
        self._compare(train, others, int(seeds[0]))
        self._settings = how
        return self

    def transform(self, X: Any) -> Codes:
        """Codes (rows, n) of X (rows, d), coded as in `fit`; wrap `components_` in `OMP` or `Lasso` for certificates.

        Raises:
            UserError: shapes that do not fit, values that are not finite.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=_TYPES, ensure_all_finite=False, reset=False)
        X, atoms = checked(X, self.components_)
        return self._settings.codes(X, atoms)

    def inverse_transform(self, codes: Any) -> Float[np.ndarray, "rows d"]:
        """The rows (rows, d) that codes (rows, n) stand for."""
        check_is_fitted(self)
        return np.asarray(codes @ self.components_)

    def _check(self) -> None:
        for name in ("n_components", "n_nonzero", "epochs", "batch_size", "n_seeds"):
            value = getattr(self, name)
            whole = value is None or bool(isinstance(value, (int, np.integer)) and value >= 1)
            require(whole, f"{name}={value}: expected a whole number of at least 1")
        check_parameters(self)
        require(0 <= self.held_out < 1, f"held_out={self.held_out}: expected a share in [0, 1)")
        require(
            self.alpha is None or self.n_nonzero is None,
            f"n_nonzero={self.n_nonzero} codes by OMP and alpha={self.alpha} by the lasso: give one of them",
        )
        require(self.alpha is None or 0 < self.alpha < np.inf, f"alpha={self.alpha}: expected a finite number above 0")
        require(self.device in ("cpu", "cuda"), f"device={self.device!r}: expected 'cpu' or 'cuda'")

    def _generator(self) -> np.random.RandomState:
        try:
            return check_random_state(self.random_state)
        except (ValueError, TypeError) as error:
            raise UserError(f"random_state={self.random_state!r}: expected a seed, a generator or None") from error

    def _how(self, train: Rows) -> Learning:
        require(len(train.X) > 0, f"held_out={self.held_out} leaves no row to train on: take a smaller share")
        useful, d = int(train.X.any(1).sum()), train.X.shape[1]
        require(useful > 0, "every row to train on is zero: there is nothing to learn from")
        n = min(d, useful) if self.n_components is None else self.n_components
        require(
            n <= useful,
            f"{n} atoms for {useful} different training rows that are not zero (n_samples={useful}): give more rows, "
            "fewer n_components, or a smaller held_out",
        )
        k = self.n_nonzero
        if k is None and self.alpha is None:
            k = min(max(1, d // 10), n)
        require(k is None or k <= n, f"n_nonzero={k} for {n} atoms: expected a whole number from 1 to {n}")
        return Learning(n, k, self.alpha, self.epochs, self.batch_size, self.positive, self.device)

    def _compare(self, train: Rows, others: list[np.ndarray], seed: int) -> None:
        """How near other seeds' atoms are, and how near chance comes."""
        moments = (train.X * train.weights[:, None].astype(train.X.dtype)).T @ train.X
        values, vectors = np.linalg.eigh(moments.astype(np.float64))
        draws = np.random.default_rng([seed, 13]).standard_normal((len(self.components_), len(values)))
        directions = (draws * np.sqrt(values.clip(min=0))) @ vectors.T
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self.agreement_by_chance_ = agreement(self.components_, directions)
        self.agreement_ = float(np.mean([agreement(self.components_, atoms) for atoms in others])) if others else np.nan

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def agreement(A: Float[np.ndarray, "n d"], B: Float[np.ndarray, "m d"]) -> float:
    """Mean over the atoms of A of the largest |cosine| with an atom of B; both have norm 1.

    For random directions about sqrt(2 ln m / d).
    """
    return float(np.abs(A @ B.T.astype(A.dtype)).max(1).mean())


def _weights(given: Any, rows: int) -> Float[np.ndarray, " rows"]:
    """Weights as an array; equal ones where none are given."""
    if given is None:
        return np.ones(rows)
    weights = as_numbers(given, "sample_weight")
    require(weights.shape == (rows,), f"sample_weight has shape {weights.shape} for {rows} rows: expected ({rows},)")
    require(bool(np.isfinite(weights).all()), "sample_weight holds NaN or infinity: expected finite weights")
    require(
        bool((weights >= 0).all()),
        f"sample_weight[{weights.argmin()}]={weights.min():g}: expected weights that are not negative",
    )
    require(weights.sum() > 0, "sample_weight sums to zero: at least one row must weigh something")
    return weights


def _split(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Training and held-out rows."""
    order = np.random.default_rng([seed, 12]).permutation(len(rows.X))
    count = round(share * len(order))
    held_out, train = np.sort(order[:count]), np.sort(order[count:])
    return Rows(rows.X[train], rows.weights[train]), Rows(rows.X[held_out], rows.weights[held_out])

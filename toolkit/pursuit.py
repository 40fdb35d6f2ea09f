"""Sparse coding with certificates: OMP, Lasso and BasisPursuit, in scikit-learn's conventions.

Rows X (rows, d) are written as Z D, with a dictionary D (n, d) and codes Z (rows, n) as in scikit-learn's
SparseCoder. `transform` returns the codes as CSR; `encode` returns them with what can be proved about them.
"""

import importlib
import warnings
from collections.abc import Iterable
from typing import Any, Self, TypeAlias

import numpy as np
from jaxtyping import Float
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from toolkit import certificates
from toolkit.certified_codes import Certified, certify
from toolkit.coding_inputs import as_numbers, as_rows, check_count, check_lasso, checked
from toolkit.errors import check_parameters, require
from toolkit.sparse_coding import Solved

Codes: TypeAlias = sparse.csr_array
"""(rows, n)."""
_TYPES = [np.float64, np.float32]
_ENGINES = {"cpu": "toolkit.sparse_coding", "cuda": "toolkit.sparse_coding_torch"}


class _Coder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What the three have in common."""

    dictionary: Any
    positive: bool
    device: str

    def fit(self, X: Any, y: object = None) -> Self:
        """Check the dictionary against X (rows, d); without one, take X's rows that are not zero, at norm 1.

        Raises:
            UserError: shapes that do not fit, values that are not finite, a zero atom, settings out of range.
        """
        X = as_rows(validate_data(self, X, dtype=_TYPES, ensure_all_finite=False), "X")
        if self.dictionary is None:
            kept = X[X.any(1)]
            require(len(kept) > 0, "every row of X is zero, and a zero row cannot be an atom: give a dictionary")
            kept = kept / np.abs(kept).max(1, keepdims=True)  # squares of the smallest floats are 0
            atoms = kept / np.linalg.norm(kept, axis=1, keepdims=True)
        else:
            atoms = checked(X[:1], self.dictionary)[1]
        self._check(len(atoms))
        self.components_ = atoms
        return self

    def transform(self, X: Any) -> Codes:
        """Codes (rows, n) of X (rows, d), in X's type.

        A ConvergenceWarning counts the rows that the solver could not bring to tolerance; `encode` checks every row.

        Raises:
            UserError: shapes that do not fit, values that are not finite, settings out of range.
        """
        X, atoms = self._ready(X)
        solved = self._solve(X, atoms)
        self._report(self._unsettled(X, atoms, solved))
        return solved.codes

    def encode(self, X: Any) -> Certified:
        """Codes of X (rows, d) with their certificates.

        Raises:
            UserError: as `transform`.
        """
        X, atoms = self._ready(X)
        solved = self._solve(X, atoms)
        gap, unsettled, tolerance = self._gaps(X, atoms, solved)
        return certify(
            X, solved.codes, atoms, gap=gap, tolerance=tolerance, unsettled=unsettled, positive=self.positive
        )

    def inverse_transform(self, codes: Any) -> Float[np.ndarray, "rows d"]:
        """The rows (rows, d) that codes (rows, n) stand for."""
        if self.dictionary is None:
            check_is_fitted(self)
        return np.asarray(codes @ np.asarray(getattr(self, "components_", self.dictionary)))

    def _ready(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Rows and atoms in one type; a dictionary that was given needs no fit."""
        if self.dictionary is None:
            check_is_fitted(self)
        X = validate_data(self, X, dtype=_TYPES, ensure_all_finite=False, reset=False)
        X, atoms = checked(X, getattr(self, "components_", self.dictionary))
        self._check(len(atoms))
        return X, atoms

    def _check(self, n: int) -> None:
        """Refuse settings that make no sense with n atoms."""
        check_parameters(self)
        require(self.device in _ENGINES, f"device={self.device!r}: expected 'cpu' or 'cuda'")

    def _unsettled(self, X: np.ndarray, atoms: np.ndarray, solved: Solved) -> np.ndarray:
        """The rows above tolerance."""
        return solved.given_up

    def _report(self, unsettled: np.ndarray) -> None:
        if len(unsettled):
            first = unsettled[:5].tolist()
            message = f"{len(unsettled)} rows are above tolerance, first {first}; `encode` says by how much"
            warnings.warn(message, ConvergenceWarning, stacklevel=3)

    @property
    def _engine(self) -> Any:
        return importlib.import_module(_ENGINES[self.device])

    def _solve(self, X: np.ndarray, atoms: np.ndarray) -> Solved:
        raise NotImplementedError

    def _gaps(self, X: np.ndarray, atoms: np.ndarray, solved: Solved) -> tuple[np.ndarray | None, np.ndarray, float]:
        """Each row's gap, the rows above tolerance, the tolerance."""
        raise NotImplementedError

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class OMP(_Coder):
    """Orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad 1993), by Cholesky on the Gram matrix.

    Each step takes the atom of the largest |d . r| and refits all coefficients. Supports are those of scikit-learn's
    `orthogonal_mp_gram`, ties aside: a choice too close to call in float32 is made in float64. Atoms are used as they
    are given; scale them to norm 1 for the textbook's algorithm.

    Args:
        dictionary: (n, d), one atom a row; None takes the rows given to `fit`, scaled to norm 1.
        n_nonzero: atoms a row at most; None takes a tenth of d, at least 1.
        positive: coefficients >= 0 (Bruckstein, Elad and Zibulevsky 2008).
        device: "cpu" or "cuda".
    """

    def __init__(
        self, dictionary: Any = None, *, n_nonzero: int | None = None, positive: bool = False, device: str = "cpu"
    ) -> None:
        self.dictionary = dictionary
        self.n_nonzero = n_nonzero
        self.positive = positive
        self.device = device

    def _solve(self, X: np.ndarray, atoms: np.ndarray) -> Solved:
        most = min(max(1, X.shape[1] // 10), len(atoms)) if self.n_nonzero is None else self.n_nonzero
        return self._engine.omp_codes(X, atoms, most, positive=self.positive)

    def _check(self, n: int) -> None:
        super()._check(n)
        if self.n_nonzero is not None:
            check_count(self.n_nonzero, n)

    def _gaps(self, X: np.ndarray, atoms: np.ndarray, solved: Solved) -> tuple[np.ndarray | None, np.ndarray, float]:
        return None, solved.given_up, np.nan


class Lasso(_Coder):
    """The lasso, min 1/2 |x - D^T z|^2 + alpha |z|_1 for each row, to a duality gap (Tibshirani 1996).

    alpha is in the units of x . d, as in scikit-learn's SparseCoder (its `Lasso` divides by the number of columns).

    Args:
        dictionary: (n, d), one atom a row; None takes the rows given to `fit`, scaled to norm 1.
        alpha: weight of |z|_1, above 0; from alpha = |D x|_inf on, a code is empty.
        tol: relative duality gap of every row.
        positive: coefficients >= 0.
        device: "cpu" or "cuda".
    """

    def __init__(
        self,
        dictionary: Any = None,
        *,
        alpha: float = 0.1,
        tol: float = 1e-4,
        positive: bool = False,
        device: str = "cpu",
    ) -> None:
        self.dictionary = dictionary
        self.alpha = alpha
        self.tol = tol
        self.positive = positive
        self.device = device

    def path(self, X: Any, alphas: Iterable[float]) -> dict[float, Codes]:
        """Codes of X (rows, d) at several alphas, from the largest down, each begun where the one before ended.

        Raises:
            UserError: as `transform`.
        """
        X, atoms = self._ready(X)
        found: dict[float, Codes] = {}
        start = None
        given = list(alphas) if isinstance(alphas, Iterable) and not hasattr(alphas, "detach") else alphas
        for alpha in np.unique(as_numbers(given, "alphas"))[::-1].tolist():
            solved = self._at(X, atoms, alpha, start)
            self._report(solved.given_up)
            start = found[alpha] = solved.codes
        return found

    def _at(self, X: np.ndarray, atoms: np.ndarray, alpha: float, start: Codes | None) -> Solved:
        engine = self._engine
        return engine.lasso_codes(X, atoms, alpha, tolerance=self.tol, positive=self.positive, start=start)

    def _solve(self, X: np.ndarray, atoms: np.ndarray) -> Solved:
        return self._at(X, atoms, self.alpha, None)

    def _check(self, n: int) -> None:
        super()._check(n)
        check_lasso(self.alpha, self.tol)

    def _gaps(self, X: np.ndarray, atoms: np.ndarray, solved: Solved) -> tuple[np.ndarray | None, np.ndarray, float]:
        gap = certificates.lasso_gaps(X, solved.codes, atoms, self.alpha, positive=self.positive).relative
        return gap, np.flatnonzero(gap > self.tol), self.tol


class BasisPursuit(_Coder):
    """Basis pursuit, min |z|_1 subject to D^T z = x for each row (Chen, Donoho and Saunders 1998).

    Follows the lasso's path to its end, in float64; gaps are about 1e-10. A row outside the span of the atoms (their
    cone, with `positive`) has no such code: it gets the one of least |z|_1 among those that come nearest, and is listed
    as unsettled.

    Args:
        dictionary: (n, d), one atom a row; None takes the rows given to `fit`, scaled to norm 1.
        tol: relative duality gap, and relative residual, above which `encode` lists a row.
        positive: coefficients >= 0.
        device: "cpu" or "cuda".
    """

    def __init__(
        self, dictionary: Any = None, *, tol: float = 1e-5, positive: bool = False, device: str = "cpu"
    ) -> None:
        self.dictionary = dictionary
        self.tol = tol
        self.positive = positive
        self.device = device

    def _solve(self, X: np.ndarray, atoms: np.ndarray) -> Solved:
        return self._engine.basis_pursuit_codes(X, atoms, positive=self.positive)

    def _check(self, n: int) -> None:
        super()._check(n)
        require(0 < self.tol < 1, f"tol={self.tol}: expected a relative gap between 0 and 1")

    def _unsettled(self, X: np.ndarray, atoms: np.ndarray, solved: Solved) -> np.ndarray:
        return self._gaps(X, atoms, solved)[1]

    def _gaps(self, X: np.ndarray, atoms: np.ndarray, solved: Solved) -> tuple[np.ndarray | None, np.ndarray, float]:
        found = certificates.equality_gaps(X, solved.codes, atoms, dual=solved.dual, positive=self.positive)
        worse = (np.abs(found.relative) > self.tol) | (found.residual > self.tol)
        return found.relative, np.flatnonzero(worse), self.tol

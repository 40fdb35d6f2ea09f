"""What sparse coding accepts: rows, dictionaries and settings, each refused in one line where it makes no sense."""

from numbers import Integral
from typing import Any

import numpy as np

from toolkit.errors import UserError, require


def checked(X: Any, D: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows and dictionary as contiguous arrays of one floating type, float32 if X is.

    Raises:
        UserError: shapes that do not fit, values that are not finite, a zero atom.
    """
    X = as_rows(X, "X")
    D = as_rows(D, "dictionary")
    if D.dtype != X.dtype:
        with np.errstate(over="ignore"):
            D = as_rows(D.astype(X.dtype), f"dictionary as {X.dtype}")
    require(
        X.shape[1] == D.shape[1],
        f"X has {X.shape[1]} columns and the dictionary's atoms have {D.shape[1]}: expected as many",
    )
    zero = np.flatnonzero(~D.any(1))
    require(
        len(zero) == 0,
        f"atom {zero[0] if len(zero) else 0} of the dictionary is zero ({len(zero)} are): leave zero atoms out",
    )
    return X, D


def check_count(n_nonzero: Any, n: int) -> None:
    """Refuse numbers of atoms a row that n atoms cannot give."""
    whole = isinstance(n_nonzero, Integral)
    require(
        whole and 1 <= n_nonzero <= n, f"n_nonzero={n_nonzero} for {n} atoms: expected a whole number from 1 to {n}"
    )


def check_lasso(alpha: float, tolerance: float) -> None:
    """Refuse a weight or a tolerance out of range."""
    require(np.isfinite(alpha) and alpha > 0, f"alpha={alpha}: expected a finite number above 0")
    require(0 < tolerance < 1, f"tol={tolerance}: expected a relative gap between 0 and 1")


def as_numbers(values: Any, name: str) -> np.ndarray:
    """Values as float64, from numpy, torch or a list.

    Raises:
        UserError: they are no numbers.
    """
    values = values.detach().cpu().double() if hasattr(values, "detach") else values
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must hold real numbers: {error}") from error


def as_rows(A: Any, name: str) -> np.ndarray:
    """A two-dimensional, finite, contiguous float32 or float64 array."""
    half = hasattr(A, "is_floating_point") and A.is_floating_point() and A.itemsize < 4
    A = np.asarray(A.detach().cpu().float() if half else A)
    require(A.ndim == 2 and A.size > 0, f"{name} has shape {A.shape}: expected (rows, d), neither of them 0")
    require(A.dtype.kind in "fiub", f"{name} holds {A.dtype}: expected real numbers")
    A = np.ascontiguousarray(A, np.float32 if A.dtype == np.float32 else np.float64)
    finite = np.isfinite(A).all(1)
    require(finite.all(), f"{name} holds NaN or infinity, first in row {np.argmin(finite)}: mend or leave out the row")
    return A

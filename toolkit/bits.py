"""What a sparse code costs in bits, and what is left of it when it is stored in so many."""

import numpy as np
from jaxtyping import Float

from toolkit.errors import require


def bits_a_row(k: float, *, n: int, d: int, rows: int, bits: int) -> float:
    """k (log2 n + b) + n d b / rows: k indices and coefficients, and the row's share of the dictionary.

    Args:
        k: atoms in a code, on average. n, d: atoms and their length. rows: rows that share the dictionary. bits: b,
            of each coefficient and each entry of an atom.
    """
    return k * (np.log2(n) + bits) + n * d * bits / rows


def quantised(values: Float[np.ndarray, "*any"], bits: int) -> Float[np.ndarray, "*any"]:
    """Each value moved to the nearest of 2**bits equally spaced levels from the smallest value to the largest.

    Raises:
        UserError: `bits` is not in 1..24, what float32 holds.
    """
    require(1 <= bits <= 24, f"bits={bits}: expected a whole number from 1 to 24")
    if values.size == 0:
        return values.copy()
    low, high = float(values.min()), float(values.max())
    step = (high - low) / (2**bits - 1)
    if step == 0:
        return values.copy()
    return (low + np.rint((values - low) / step) * step).astype(values.dtype)

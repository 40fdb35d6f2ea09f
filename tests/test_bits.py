"""Bits of a code by hand, and what rounding to levels does."""

import numpy as np
import pytest

from toolkit.bits import bits_a_row, quantised
from toolkit.errors import UserError


def test_bits_by_hand():
    assert bits_a_row(3, n=256, d=10, rows=64, bits=8) == 3 * (8 + 8) + 256 * 10 * 8 / 64
    assert bits_a_row(0, n=2, d=1, rows=2, bits=1) == 1


@pytest.mark.parametrize("bits", [1, 3, 8, 16])
def test_a_value_moves_by_half_a_step_at_most_and_takes_one_of_the_levels(bits):
    values = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32)
    found = quantised(values, bits)
    step = (values.max() - values.min()) / (2**bits - 1)
    assert np.abs(found - values).max() <= step / 2 * (1 + 1e-4) + 1e-6
    assert len(np.unique(found)) <= 2**bits
    assert found.dtype == np.float32
    assert found.min() == pytest.approx(values.min(), abs=1e-6)
    assert found.max() == pytest.approx(values.max(), abs=1e-6)
    assert quantised(found, bits) == pytest.approx(found, abs=1e-6)


def test_the_error_of_uniform_values_is_a_twelfth_of_the_step_squared():
    values = np.random.default_rng(1).random(200_000)
    for bits in (3, 6):
        step = 1 / (2**bits - 1)
        assert np.square(quantised(values, bits) - values).mean() == pytest.approx(step**2 / 12, rel=0.02)


def test_levels_of_one_value_or_none():
    assert np.array_equal(quantised(np.full(4, 2.5), 2), np.full(4, 2.5))
    assert quantised(np.empty(0), 8).size == 0
    for bits in (0, 25):
        with pytest.raises(UserError, match=f"bits={bits}: expected"):
            quantised(np.ones(2), bits)

"""Checks: intervals that cover as often as they say, and verdicts by hand."""

import math

import numpy as np
import pytest
import torch

from experiments import checks


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_the_interval_of_a_mean_covers_it_as_often_as_it_says(draw):
    generator = np.random.default_rng(0)
    # The skewed one needs more seeds for the same coverage.
    samples = {"normal": generator.normal(3, 2, (4000, 8)), "exponential": generator.exponential(3, (4000, 30))}[draw]
    found = [checks.interval(values) for values in samples]
    coverage = np.mean([one.low <= 3 <= one.high for one in found])
    assert coverage == pytest.approx(0.95, abs=0.011 if draw == "normal" else 0.035)


def test_the_interval_narrows_with_more_seeds():
    generator = np.random.default_rng(0)
    widths = [checks.interval(generator.normal(0, 1, n)) for n in (10, 1000)]
    assert (widths[1].high - widths[1].low) < 0.2 * (widths[0].high - widths[0].low)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_the_interval_of_a_share_covers_it(share):
    generator = np.random.default_rng(0)
    found = [checks.share_interval(int(hits), 40) for hits in generator.binomial(40, share, 4000)]
    assert np.mean([one.low <= share <= one.high for one in found]) == pytest.approx(0.95, abs=0.04)


def test_above_is_fooled_by_chance_at_the_level_it_says_and_has_power():
    generator = np.random.default_rng(0)
    null = [checks.above("", values, 0.0).passed for values in generator.normal(0, 1, (4000, 8))]
    effect = [checks.above("", values, 0.0).passed for values in generator.normal(2, 1, (400, 8))]
    assert np.mean(null) == pytest.approx(0.025, abs=0.008)
    assert np.mean(effect) > 0.98


def test_verdicts_by_hand():
    assert checks.at_least("", [1.0, 3.0], 2.0).passed
    assert not checks.at_least("", [1.0, 2.9], 2.0).passed
    assert checks.at_most("", [1.0], 1.0).passed
    assert not checks.at_most("", [1.0, 1.1], 1.0).passed
    assert checks.near("", [0.39, 0.42], 0.4, 0.01).passed
    assert not checks.near("", [0.39, 0.44], 0.4, 0.01).passed
    assert checks.within("", [0.0, 0.01, -0.01], -0.1, 0.1).passed
    assert not checks.within("", [0.0, 0.3, -0.3], -0.1, 0.1).passed  # the mean is 0, the interval is not
    assert checks.share("", [True, True, False], 0.6).passed
    assert not checks.share("", [True, False], 0.6).passed


def test_a_single_value_has_no_interval_and_nan_passes_nothing():
    one = checks.at_least("", [2.0], 1.0)
    assert one.passed
    assert math.isnan(one.low)
    assert one.spread == "2"
    assert not checks.above("", [2.0], 1.0).passed
    for make in (checks.at_least, checks.at_most, checks.above):
        assert not make("", [math.nan, 1.0], 0.5).passed


def test_a_p_value_counts_draws_as_large_and_itself():
    found = checks.rare("c", 3.0, [1.0, 2.0, 3.0, 4.0] + [0.0] * 95, 0.05)
    assert (found.measured, found.values, found.passed) == (3 / 100, 99, True)
    assert found.low < 2 / 99 < found.high
    assert not checks.rare("c", 2.0, [1.0, 2.0, 3.0, 4.0] + [0.0] * 55, 0.05).passed
    never = checks.rare("c", 5.0, torch.zeros(9), 0.05)
    assert (never.measured, never.low, never.passed) == (0.1, 0.0, False)
    assert never.high > 0.1


def test_p_values_of_nothing_pass_as_often_as_their_bound():
    draws = np.random.default_rng(0).normal(0, 1, (4000, 100))
    passed = [checks.rare("c", one[0], one[1:], 0.05).passed for one in draws]
    assert np.mean(passed) == pytest.approx(0.05, abs=0.011)

"""Experiments on an embedding: on a model whose tokens lack the sets, on a cloud that has a covariance alone."""

from dataclasses import replace

import pytest

from experiments import registry
from experiments.running import How, compute, run
from toolkit.errors import UserError

OUTSIDE = registry.chosen(["outside-superposition"])[0]
SMOKE = OUTSIDE.scales["smoke"]


def outcome(settings, folder):
    return compute(OUTSIDE, settings, How(scale="smoke", quiet=True), folder)


def test_sets_and_pairs_that_a_model_lacks_are_named_and_not_tested(tiny_model, tmp_path):
    finished = run(OUTSIDE, How(scale="smoke", quiet=True, out=str(tmp_path), model=str(tiny_model)))
    found = finished.outcome
    assert "Too few tokens to test: days, months, digits, space, capital." in found.conclusion
    assert found.metrics["sets"] == found.metrics["pairs"] == {}
    assert len(found.checks) == 6  # of the spectrum and the cosines
    assert [figure.name for figure in found.figures] == ["spectrum-and-cosines"]


def test_frequencies_are_refused_where_they_change_nothing(tiny_model, tmp_path):
    (tmp_path / "text.txt").write_text("a")
    how = How(scale="smoke", quiet=True, model=str(tiny_model), frequencies=str(tmp_path / "text.txt"))
    with pytest.raises(UserError, match="outside-superposition takes no --frequencies"):
        run(OUTSIDE, how)


def test_a_gaussian_of_the_same_covariance_keeps_the_spectrum_and_loses_the_rest(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, gaussian = outcome(SMOKE, tmp_path / "a"), outcome(OUTSIDE.broken, tmp_path / "b")
    kept = [check.claim for check in gaussian.checks if check.passed]
    assert all(check.passed for check in whole.checks)
    assert kept
    assert [claim for claim in kept if not claim.startswith("eigenvalues")] == []


def test_numbers_do_not_depend_on_workers(tmp_path):
    small = replace(SMOKE, folds=2, draws=99)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = compute(OUTSIDE, small, How(quiet=True, workers=1), tmp_path / "one")
    two = compute(OUTSIDE, small, How(quiet=True, workers=2), tmp_path / "two")
    assert one.checks == two.checks

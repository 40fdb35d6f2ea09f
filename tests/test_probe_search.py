"""The search for a selective probe: equal to plain nested loops, the winner known, its null uniform."""

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.base import clone
from test_control_tasks import memory

from toolkit import probes
from toolkit.control_tasks import control_labels, selectivity
from toolkit.errors import UserError
from toolkit.label_permutations import permuted_rows
from toolkit.permutation_null import permutation_null
from toolkit.probe_inputs import blind_folds, probe_rows
from toolkit.probe_search import ProbeSearch, default_candidates, select_probe
from toolkit.probes import LDAProbe, LinearProbe, LowRankProbe, MeanDifferenceProbe, MLPProbe
from toolkit.selectivity_limits import Limits

FEW = {"means": MeanDifferenceProbe(), "LDA": LDAProbe(shrinkage=0.01), "ridge": LinearProbe(loss="squared", l2=0.3)}


def plain(X, y, tokens, groups, *, tasks, redraws, parts=4):
    """Values of the search for the labels and each redraw, by loops over scikit-learn fits."""
    fold_of = blind_folds(probe_rows(X, y, None, groups), parts, seed=0)
    exchanged = y[permuted_rows(y, scheme="types", tokens=tokens, n=redraws, seed=0)]
    drawn = np.hstack([control_labels(y, tokens, n=tasks, seed=0), exchanged])
    right = {}

    def hits(name, key, column, fit, away):
        at = (name, key, fit.tobytes(), away.tobytes())
        if at not in right:
            right[at] = (clone(FEW[name]).fit(X[fit], column[fit]).predict(X[away]) == column[away]).sum()
        return right[at]

    def apart(name, key, column, fit, away):
        controls = [hits(name, t, drawn[:, t], fit, away) for t in range(tasks)]
        return hits(name, key, column, fit, away) - np.mean(controls)

    values, winners = [], []
    for key, column in [("y", y), *((t, drawn[:, t]) for t in range(tasks, tasks + redraws))]:
        total = 0.0
        for i in range(parts):
            others = [j for j in range(parts) if j != i]
            scores = [sum(apart(name, key, column, (fold_of != i) & (fold_of != j), fold_of == j) for j in others)
                      for name in FEW]  # fmt: skip
            winners.append(list(FEW)[int(np.argmax(scores))])
            total += apart(winners[-1], key, column, fold_of != i, fold_of == i)
        values.append(total / len(y))
    return values, winners


def test_the_search_and_its_null_are_plain_nested_loops():
    X, y, tokens, groups = memory(signal=1.5, documents=16, length=25, kinds=20)
    found = select_probe(X, y, tokens=tokens, groups=groups, candidates=FEW, tasks=4, redraws=6)
    values, winners = plain(X, y, tokens, groups, tasks=4, redraws=6)
    assert len(set(winners)) > 1
    np.testing.assert_allclose([found.value, *found.null], values, atol=1e-12)
    assert [row.chosen for row in found.table] == [winners[:4].count(name) for name in FEW]


def test_the_table_is_the_candidates_selectivity_and_the_winner_is_fitted_on_all_rows():
    X, y, tokens, groups = memory(signal=1.5)
    found = select_probe(X, y, tokens=tokens, groups=groups, candidates=FEW, tasks=7)
    for row in found.table:
        alone = selectivity(FEW[row.name], X, y, tokens=tokens, groups=groups, n=7, parts=4)
        assert (row.accuracy, row.control_accuracy) == pytest.approx((alone.accuracy, alone.control_accuracy))
    assert found.winner == max(found.table, key=lambda row: row.selectivity).name
    again = clone(FEW[found.winner]).fit(X, y, groups=groups)
    np.testing.assert_array_equal(found.probe.directions_, again.directions_)
    assert (found.p, len(found.null)) == (None, 0)
    assert found.interval[0] < found.value < found.interval[1]
    assert all(name in str(found) for name in FEW)


def test_one_candidate_is_its_selectivity_and_a_tie_goes_to_the_first():
    X, y, tokens, groups = memory(signal=1.0)
    one = {"means": MeanDifferenceProbe()}
    found = select_probe(X, y, tokens=tokens, groups=groups, candidates=one, tasks=9)
    alone = selectivity(one["means"], X, y, tokens=tokens, groups=groups, n=9, parts=4)
    assert found.value == pytest.approx(alone.value)
    assert found.interval == pytest.approx(alone.interval)
    twins = select_probe(X, y, tokens=tokens, groups=groups, candidates=one | {"twin": MeanDifferenceProbe()}, tasks=9)
    assert (twins.winner, [row.chosen for row in twins.table]) == ("means", [4, 0])


def test_the_search_says_what_is_missing_for_its_interval_and_for_its_p():
    X, y, tokens, groups = memory(signal=2.0)
    how = {"tokens": tokens, "groups": groups, "candidates": {"means": MeanDifferenceProbe()}, "quiet": True}
    found = select_probe(X, y, **how)
    assert (found.enough, found.limits.redraws) == (True, 0)
    assert found.statement in str(found)
    assert f"[{found.interval[0]:.3f}, {found.interval[1]:.3f}]" in found.statement
    few = select_probe(X, y, **how, redraws=18)
    assert not few.enough
    assert "as good as 18.0 redraws, and 19 are needed for a p of 0.05" in few.statement
    assert select_probe(X, y, **how, redraws=19).enough
    kept = groups < 5
    small = {**how, "tokens": tokens[kept], "groups": groups[kept]}
    assert (
        "as good as 5.0 documents of equal size, and 6 are needed" in select_probe(X[kept], y[kept], **small).statement
    )
    assert found != select_probe(X, y, **how)  # results are themselves, not their numbers


def codes_and_a_direction(documents=24, length=20, kinds=24, seed=0):
    """A large direction that is the label, and small codes of the types."""
    draw = np.random.default_rng(seed)
    groups = np.repeat(np.arange(documents), length)
    tokens, y = draw.integers(0, kinds, len(groups)), draw.integers(0, 2, len(groups))
    X = np.hstack([0.3 * np.eye(kinds)[tokens], 6.0 * y[:, None] + draw.standard_normal((len(y), 1))])
    return X, y, tokens, groups


def test_the_search_prefers_a_probe_that_cannot_remember_types():
    X, y, tokens, groups = codes_and_a_direction()
    pair = {"remembers": LDAProbe(shrinkage=1e-3), "reads": MeanDifferenceProbe()}
    found = select_probe(X, y, tokens=tokens, groups=groups, candidates=pair, tasks=10, redraws=19)
    assert found.winner == "reads"
    assert [row.chosen for row in found.table] == [0, 4]
    assert min(row.accuracy for row in found.table) > 0.98
    assert found.p == pytest.approx(1 / 20)
    # the control: of a label that is a type's, remembering is all there is (three p of .05 have a chance of 1e-4)
    tasks = control_labels(y, tokens, n=3, seed=9).T
    blind = [select_probe(X, y, tokens=tokens, groups=groups, candidates=pair, tasks=10, redraws=19) for y in tasks]
    assert max(found.p for found in blind) > 0.05


def test_the_default_grid_has_every_family_and_no_probe_twice():
    kinds = {type(probe) for probe in default_candidates(17).values()}
    assert kinds == {LDAProbe, LinearProbe, LowRankProbe, MeanDifferenceProbe, MLPProbe}
    ranks = [p.rank for p in default_candidates(6).values() if isinstance(p, LowRankProbe)]
    assert ranks == [1, 2, 4]
    assert not any(isinstance(p, LowRankProbe) for p in default_candidates(2).values())


def test_notebooks_import_all_from_one_place():
    assert (probes.select_probe, probes.selectivity, probes.permutation_null) == (
        select_probe, selectivity, permutation_null,
    )  # fmt: skip


@pytest.mark.slow
def test_the_default_grid_runs():
    X, y, tokens, groups = memory(signal=3.0, classes=4, documents=12)
    found = select_probe(X, y, tokens=tokens, groups=groups, tasks=3, redraws=2)
    assert [row.name for row in found.table] == list(default_candidates(4))
    assert found.p == pytest.approx(1 / 3)


def useless(seed, *, signal=0.0):
    """Rows that say nothing (or of the label a little), labels that are a coin for each of many types."""
    draw = np.random.default_rng(seed)
    groups, tokens, y = np.repeat(np.arange(20), 20), draw.integers(0, 60, 400), draw.integers(0, 2, 60)
    return draw.standard_normal((400, 4)) + signal * y[tokens, None], y[tokens], tokens, groups


@pytest.mark.slow
def test_the_searchs_p_is_uniform_where_every_candidate_is_useless_and_small_where_one_is_not():
    nulls, found = [], []
    for seed in range(200):
        X, y, tokens, groups = useless(seed)
        null = select_probe(X, y, tokens=tokens, groups=groups, candidates=FEW, tasks=5, redraws=19, seed=seed,
                            quiet=True)  # fmt: skip
        nulls.append(null.p)
    assert kstest(np.array(nulls) - 0.5 / 20, "uniform").pvalue > 0.01
    for seed in range(20):
        X, y, tokens, groups = useless(seed, signal=1.0)
        found.append(
            select_probe(X, y, tokens=tokens, groups=groups, candidates=FEW, tasks=5, redraws=19, quiet=True).p
        )
    assert np.mean(np.array(found) <= 0.05) == 1


def test_what_makes_no_sense_is_refused_in_one_line():
    X, y, tokens, groups = memory(signal=1.0)
    for changed, message in [
        ({"candidates": {}}, "candidates is empty"),
        ({"parts": 2}, "parts=2: expected a whole number of at least 3"),
        ({"tasks": 0}, "tasks=0"),
        ({"tasks": 1}, "tasks=1: expected a whole number of at least 2"),
        ({"redraws": -1}, "redraws=-1"),
        ({"confidence": 1.0}, "confidence=1.0"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            select_probe(X, y, tokens=tokens, groups=groups, **{"candidates": FEW, **changed})
        assert "\n" not in str(error.value)


def test_redraws_that_tie_with_the_observed_labels_count():
    """.8 - .1 is more than .7 in floating point."""
    probe, enough = MeanDifferenceProbe(), Limits(20, 6, 20, 6, 19, 19, (), "")
    tied = ProbeSearch("one", probe, (), 0.8, 0.1, (0.6, 0.8), np.full(19, 0.7), enough)
    assert tied.value > 0.7
    assert tied.p == 1.0

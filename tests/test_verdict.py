"""Verdicts: each axis against known truth, the procedure against theorems, and small calibrations."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control

from controls.axes import CAUSAL, WITHIN, Axis, above, below
from controls.axis_causal import Effort, _judged, causal_axes
from controls.axis_decodable import beyond_nulls, beyond_token, decode, null_scores
from controls.calibration import rate, uniformity
from controls.decoding import SHRINKAGE, deal, exchanged, folded
from controls.directions import covariates
from controls.outcomes import Outcome
from controls.settling import needed
from controls.subject import Subject, halves, subject_of
from controls.trials import Effect
from controls.verdict import Evidence, judge, open_question, step_up
from controls.worlds import open_world
from toolkit.errors import UserError

PRESENT, ABSENT, OPEN = Axis(0.9, 0.01, 0.001, 1.0), Axis(0.0, 0.01, 1.0, 0.0), Axis(0.4, 0.2, 0.3, 0.3)


def subject(*, n=2000, rho=0.0, reads=(1.0, 0.0), seed=0, token=None, null=None, rate=0.3):
    """Two labels along two directions of 16, noise, and a linear network that reads each as told."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n // 40), 40)
    y = (rng.random((n, 2)) < rate).astype(int)
    y[:, 1] = np.where(rng.random(n) < rho, y[:, 0], y[:, 1])
    basis = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    noise = 0.3 * rng.normal(size=(n, 16))
    x = torch.from_numpy(y @ basis[:2] + noise).float()
    readers = torch.from_numpy(np.stack([reads[0] * basis[0], reads[1] * basis[1], basis[2]], 1)).float()
    nulls = {
        "none": lambda s: torch.from_numpy(0.3 * np.random.default_rng(s).normal(size=(n, 16))).float(),
        "second": lambda s: torch.from_numpy(
            y[:, 1:] @ basis[1:2] + 0.3 * np.random.default_rng(s).normal(size=(n, 16))
        ).float(),
        "same": lambda s: torch.from_numpy(y @ basis[:2] + 0.3 * np.random.default_rng(s).normal(size=(n, 16))).float(),
    }
    return Subject(
        x, {"a": y[:, 0], "b": y[:, 1]}, groups, token, np.arange(n), lambda rows, at: rows @ readers,
        {"a": 0, "b": 1}, {} if null is None else {null: nulls[null]},
    )  # fmt: skip


def causal(one, seed=0):
    """C alone, no label's read-out watched for leakage."""
    return causal_axes(one, torch.zeros(0, one.activations.shape[1]).double(), np.zeros(0, int), level=0.025, seed=seed)


def trained(one, seeds=99):
    """W alone."""
    others = [covariates(one.table, f) for f in range(one.table.shape[1])]
    return beyond_nulls(null_scores(one, others, seeds=seeds, seed=0), one.names, level=0.025, seed=0)


def evidence(found=0.001, token=None, training=PRESENT, causal=PRESENT):
    return Evidence("f", 0.3, 0.8, 0.02, found, token, training, causal)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({}, "model"),
        ({"causal": ABSENT}, "unread"),
        ({"training": ABSENT}, "inherited"),
        ({"training": ABSENT, "causal": ABSENT}, "dataset"),
        ({"token": ABSENT, "training": OPEN}, "inherited"),
        ({"token": PRESENT}, "model"),
        ({"token": ABSENT, "causal": ABSENT}, "dataset"),
        ({"found": 0.4}, "undecided"),
        ({"training": OPEN}, "undecided"),
        ({"causal": OPEN}, "undecided"),
        ({"token": OPEN}, "undecided"),
    ],
)
def test_three_axes_make_the_verdict(given, verdict):
    told = judge([evidence(**given)])[0]
    assert told.verdict == verdict
    assert bool(told.why) == (verdict == "undecided")


@pytest.mark.parametrize(
    ("given", "axis"),
    [({"training": OPEN}, "W"), ({"causal": OPEN}, "C"), ({"token": OPEN}, "D")],
)
def test_the_open_axis_is_named(given, axis):
    assert open_question(evidence(**given), 0.02).startswith(axis)


def test_the_threshold_is_that_of_benjamini_and_hochberg():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.random(12) ** 3
        accepted = p <= step_up(p, 0.05)
        np.testing.assert_array_equal(accepted, false_discovery_control(p, method="bh") <= 0.05)


def test_an_equivalence_test_that_could_not_see_the_effect_says_nothing():
    assert below(0.0, 0.02, CAUSAL, level=0.025) < 1e-3
    assert below(0.0, 0.2, CAUSAL, level=0.025) == 1.0
    assert above(0.9, 0.05, WITHIN.high) < 1e-6 < above(0.45, 0.05, WITHIN.high)


def test_held_out_r_is_that_of_discriminants_fitted_one_by_one():
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(300, 5)) * [1, 2, 0.5, 1, 1], (rng.random((300, 2)) < 0.4).astype(float)
    X[:, 0] += Y[:, 0]
    fold = np.arange(300) % 3
    scores = np.empty((300, 2))
    for k in range(3):
        train, test = X[fold != k], X[fold == k]
        covariance = np.cov(train.T, bias=True)
        shrunk = covariance + SHRINKAGE * np.median(np.linalg.eigvalsh(np.cov(X.T, bias=True))) * np.eye(5)
        for c in range(2):
            y = Y[fold != k, c]
            w = np.linalg.solve(shrunk, train[y == 1].mean(0) - train[y == 0].mean(0))
            scores[fold == k, c] = (test - X.mean(0)) @ w / np.sqrt(w @ covariance @ w)
    data = folded(torch.from_numpy(X), deal(fold))
    expected = [np.corrcoef(scores[:, c], Y[:, c])[0, 1] for c in range(2)]
    np.testing.assert_allclose(data.r(torch.from_numpy(Y).float()).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(data.scores(torch.from_numpy(Y).float()).numpy(), scores, atol=1e-4)


def test_correlations_are_those_of_the_scores_where_variances_are_worlds_apart():
    """Most directions of a trained network's last token may hardly vary: sums in single precision once gave r = 1.2."""
    rng = np.random.default_rng(0)
    scales = np.r_[10.0, 1.0, 1e-3 * np.ones(6), 1e-5 * np.ones(16)]
    y = rng.integers(0, 2, 1200)
    rows = rng.normal(size=(1200, 24)) * scales
    rows[:, 3] += 1e-3 * y
    X = torch.from_numpy(rows @ np.linalg.qr(rng.normal(size=(24, 24)))[0])
    data, Y = folded(X, deal(np.arange(1200) % 3)), torch.from_numpy(y)[:, None].float()
    assert data.basis is not None
    expected = np.corrcoef(data.scores(Y)[:, 0], y)[0, 1]
    assert float(data.r(Y)[0]) == pytest.approx(expected, abs=1e-5)
    assert 0.35 < expected < 0.55  # sd 1 and a gap of 1: .45
    way = data.switches(Y)[0]
    assert float(way @ (X[y == 1].mean(0) - X[y == 0].mean(0)).double()) == pytest.approx(1, abs=1e-2)


def test_one_huge_direction_hides_nothing():
    one = subject()
    rng = np.random.default_rng(3)
    across = torch.linalg.svd(one.activations.mT @ torch.from_numpy(one.table).float())[0][:, -1]
    huge = one.activations + torch.from_numpy(1000 * rng.normal(size=(2000, 1))).float() * across
    dealt, Y = deal(halves(one.groups, 3, seed=0)), torch.from_numpy(one.table).float()
    torch.testing.assert_close(folded(huge, dealt).r(Y), folded(one.activations, dealt).r(Y), atol=0.02, rtol=0)


def test_halves_keep_documents_whole_and_even():
    groups = np.repeat(np.arange(50), np.random.default_rng(0).integers(1, 30, 50))
    part = halves(groups, 2, seed=3)
    assert all(len(set(part[groups == g])) == 1 for g in range(50))
    assert abs((part == 0).mean() - 0.5) < 0.02


def test_what_null_networks_show_is_inherited_and_what_they_lack_is_computed():
    for kind, settled in (("none", "present"), ("same", "absent")):
        assert [axis.settled for axis in trained(subject(null=kind))] == [settled, settled]


def test_without_weights_behind_them_activations_are_the_same_in_any_network():
    assert [axis.settled for axis in trained(subject())] == ["absent", "absent"]


def test_a_computed_label_that_goes_with_one_of_the_input_is_not_found_in_null_networks_by_way_of_it():
    one = subject(rho=0.8, null="second")
    computed, carried = trained(one)
    assert (computed.settled, carried.settled) == ("present", "absent")


def test_a_label_that_is_its_token_is_memorised_and_another_is_not():
    rng = np.random.default_rng(2)
    one = subject(token=rng.integers(0, 30, 2000))
    told = dict(one.labels) | {"a": one.tokens % 2}
    told = Subject(
        torch.cat([one.activations, torch.nn.functional.one_hot(torch.from_numpy(one.tokens), 30).float()], 1),
        told, one.groups, one.tokens, one.places, lambda rows, at: rows, {"a": None, "b": None}, {},
    )  # fmt: skip
    decoded, data = decode(told, permutations=99, seed=0)
    by_token, contextual = beyond_token(told, data, decoded, permutations=99, level=0.025, seed=0)
    assert by_token.settled == "absent"
    assert contextual.settled == "present"


def test_the_causal_effect_is_the_correlation_that_the_direction_brings_about():
    one = subject()
    used, idle = causal(one)
    outputs = one.downstream(one.activations, None).numpy()
    truth = np.corrcoef(outputs[:, 0], one.labels["a"])[0, 1]  # labels are independent: all of it is causal
    assert used.effect == pytest.approx(truth, abs=0.05)
    assert used.settled == "present"
    assert idle.settled == "open"
    assert idle.why == "the target never changes"


def test_a_bystander_is_told_from_what_it_goes_with_or_left_open():
    both = subject(rho=0.5)
    partner = Subject(both.activations, both.labels, both.groups, None, both.places, both.downstream,
                      {"a": 0, "b": 0}, {})  # fmt: skip
    used, idle = causal(partner, 1)
    assert used.settled == "present"
    assert idle.settled == "absent"
    near = subject(rho=0.995)
    near = Subject(near.activations, near.labels, near.groups, None, near.places, near.downstream, {"a": 0, "b": 0}, {})
    assert causal(near, 1)[1].settled == "open"


def test_covariates_leave_out_what_decides_the_feature_only():
    rng = np.random.default_rng(0)
    a, b = (rng.random((2, 3000)) < 0.4).astype(int)
    Y = np.stack([a & b, a, b, a ^ b, np.where(rng.random(3000) < 0.99, a & b, 1 - (a & b))], 1)
    kept = covariates(Y, 0)
    assert 4 in kept
    assert len(kept) == 3


def test_an_idle_feature_that_moves_another_output_is_not_called_absent():
    one = subject(reads=(1.0, 0.0))
    wrong = Subject(one.activations, one.labels, one.groups, None, one.places, one.downstream, {"a": 2, "b": 2}, {})
    a, b = causal(wrong)
    assert a.p_absent == 1.0
    assert "other than its target" in a.why
    assert b.settled == "absent"


def test_found_is_uniform_for_labels_of_nothing_and_sure_for_others():
    p = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(40), 20)
        rates = rng.beta(1, 3, 40)[groups]
        x = rng.normal(size=(40, 6))[groups] + rng.normal(size=(800, 6))  # documents differ in both
        y = {"f": (rng.random(800) < rates).astype(int)}
        one = Subject(torch.from_numpy(x).float(), y, groups, None, np.arange(800), lambda r, at: r, {"f": 0}, {})
        p.append(float(decode(one, permutations=99, seed=seed)[0].p_found[0]))
    assert uniformity(np.array(p), 99) > 0.01
    assert float(decode(subject(), permutations=99, seed=0)[0].p_found[0]) == pytest.approx(0.01)


def test_exchanged_documents_keep_labels_together_whatever_their_lengths():
    p = []
    groups = np.repeat(np.arange(63), [200] * 3 + [10] * 60)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = 2 * rng.normal(size=(63, 6))[groups] + rng.normal(size=(len(groups), 6))
        y = {"f": (rng.random(len(groups)) < rng.beta(1, 2, 63)[groups]).astype(int)}
        one = Subject(torch.from_numpy(x).float(), y, groups, None, np.arange(9), lambda r, at: r, {"f": 0}, {})
        p.append(float(decode(one, permutations=99, seed=seed)[0].p_found[0]))
    assert uniformity(np.array(p), 99) > 0.01
    source = exchanged(groups, 5, seed=0)
    for column in source.T:
        assert all(len(set(groups[column[groups == g]])) == 1 for g in range(63))


def moving(one, outputs, targets=None):
    """The same activations before another network."""
    targets = targets or dict.fromkeys(one.labels, 0)
    return Subject(one.activations, one.labels, one.groups, one.tokens, one.places, outputs, targets, one.nulls)


def test_what_is_read_only_in_some_contexts_is_not_called_unread():
    one = subject(n=4000, rate=0.5)
    a, b = (one.activations[torch.from_numpy(one.labels[name] == 1)].mean(0) for name in "ab")
    read = torch.linalg.pinv(torch.stack([a, b], 1))  # (2, 16)
    both = moving(one, lambda x, at: (2 * (x @ read.mT) - 1).prod(1, keepdim=True))
    assert all(axis.p_absent == 1.0 for axis in causal(both))
    assert any("one way" in axis.why for axis in causal(both))


def test_chosen_places_say_what_all_rows_say():
    """Places have a rare label as often as not; the effect is a correlation over rows."""
    one = subject(n=4000, rate=0.05, reads=(1.0, 1.0))
    on, off = (np.flatnonzero(one.labels["a"] == value) for value in (1, 0))
    few = np.sort(np.concatenate([on, off[: len(on)]]))
    every, some = causal(one)[0], causal(replace(one, places=few))[0]
    assert some.effect == pytest.approx(every.effect, abs=0.05)
    assert every.effect > 0.5


def judged(*, on, off=0.0, error=0.01, swap=None, swap_error=None, gap=0.0, awake=None, null=0.0):
    """C of a trial that measured so much."""
    steer = Effect(on, error, off)
    other = Effect(on if swap is None else swap, error if swap_error is None else swap_error, off)
    trial = SimpleNamespace(
        steered=lambda: steer, interchanged=lambda: other, awake=lambda: on if awake is None else awake,
        guard=lambda: (0.0, 0.0), squares=lambda: ((on**2, 0.0), (on**2, 0.0)),
        aim=SimpleNamespace(gap=gap, gap_error=0.02),
    )  # fmt: skip
    return _judged(trial, Outcome("matched", "f", "moved", on, np.full(99, null)), 0.025)


def test_c_says_what_keeps_it_open():
    assert judged(on=0.4).settled == "present"
    assert judged(on=0.01).settled == "absent"
    assert "closes part of the gap" in judged(on=0.12, gap=0.3).why
    assert "as much" in judged(on=0.15, null=0.5).why
    rough = judged(on=0.05, error=0.03, swap_error=0.04)
    assert "interchange is known too roughly" in rough.why
    assert "moves its target by 0.12, too much" in judged(on=0.125, off=0.03).why
    near = judged(on=0.24, error=0.03, off=0.01, gap=0.5)
    assert (near.settled, near.why) == ("open", "")
    assert "about" in needed(near, 0.025, 1000)


def test_what_other_labels_leave_nothing_of_is_not_said_to_be_missing():
    one = subject(n=800, null="none")
    scores = null_scores(one, [[1], [0]], seeds=3, seed=0)
    lost = replace(scores, r=torch.tensor([-0.1, 0.5]))
    first, second = beyond_nulls(lost, one.names, level=0.025, seed=0)
    assert first.why == "nothing is found of what other labels leave of it, at the rows where null networks are read"
    assert second.why == ""


def test_a_small_effect_that_is_sure_is_not_called_absent():
    one = subject(n=4000)
    loud = moving(one, lambda x, at: 0.08 * one.downstream(x, at)[:, :1] + one.downstream(x, at)[:, 2:])
    small, idle = causal(loud)
    assert small.p_absent == 1.0
    assert "closes part of the gap" in small.why
    assert idle.settled == "absent"


def test_a_label_that_is_mostly_its_token_and_is_written_as_it_is_counts_as_more_than_its_token():
    rng = np.random.default_rng(4)
    tokens = rng.integers(0, 40, 3000)
    groups = np.repeat(np.arange(75), 40)
    y = np.where(rng.random(3000) < 0.95, tokens % 2, rng.integers(0, 2, 3000))
    x = rng.normal(size=(3000, 8)) * 0.2
    x[:, 0] += y
    one = Subject(torch.from_numpy(x).float(), {"y": y}, groups, tokens, np.arange(9), lambda r, at: r, {"y": 0}, {})
    decoded, data = decode(one, permutations=99, seed=0)
    (axis,) = beyond_token(one, data, decoded, permutations=99, level=0.025, seed=0)
    assert axis.settled == "present"


def test_labels_of_nothing_do_not_keep_others_from_a_verdict():
    many = [evidence(found=0.001), *(evidence(found=0.2 + 0.01 * k, causal=OPEN) for k in range(12))]
    assert [one.verdict for one in judge(many)] == ["model", *["undecided"] * 12]


def test_an_idle_feature_that_goes_with_an_unlabelled_used_one_is_left_open():
    both = subject(n=4000, rho=0.7)
    alone = Subject(both.activations, {"b": both.labels["b"]}, both.groups, None, both.places, both.downstream,
                    {"b": 0}, {})  # fmt: skip
    axis = causal(alone)[0]
    assert axis.settled == "open"
    assert "directions disagree" in axis.why


def test_rates_count_each_seed_once():
    hits, counted = np.array([1, 1, 0, 0]), np.ones(4, bool)
    alone = rate(hits, counted, np.arange(4))
    paired = rate(hits, counted, np.array([0, 0, 1, 1]))
    assert alone.value == paired.value == 0.5
    assert paired.high - paired.low > alone.high - alone.low
    assert np.isnan(rate(hits, ~counted, np.arange(4)).value)


@pytest.mark.parametrize("world", ["read-and-idle", "token-identity"])
def test_a_world_is_judged_as_it_was_planted(world):
    from controls.judging import Budget, verdicts

    sample = open_world(world).sample(5, 3000)
    budget = Budget(permutations=399, null_seeds=60, effort=Effort(draws=40, rows=100, matched=199))
    found = verdicts(subject_of(sample), seed=5, budget=budget)
    said = {one.evidence.feature: one.verdict for one in found}
    wrong = {name: v for name, v in said.items() if v not in ("undecided", sample.truth[name])}
    assert not wrong
    assert sum(v != "undecided" for v in said.values()) >= 6
    assert all(said[name] == "undecided" for name, truth in sample.truth.items() if truth == "absent")


@pytest.mark.slow
def test_a_calibration_is_a_run_that_gives_the_same_numbers_again(tmp_path):
    from controls.__main__ import main

    args = ["calibrate", "--world", "spectral", "--seeds", "2", "--rows", "1500", "--workers", "1", "--quiet"]
    assert main([*args, "--out", str(tmp_path / "a")]) == 1  # two seeds are too few for the upper bounds
    assert main([*args, "--out", str(tmp_path / "b")]) == 1
    first, again = (json.loads(next(tmp_path.glob(f"{x}/*/001/result.json")).read_text())["metrics"] for x in "ab")
    assert first == again
    assert {"false_model_rate", "false_dataset_rate", "power_model", "power_dataset", "undecided_rate"} <= set(first)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--world", "no-such"], "unknown world"),
        (["--world", "no.such:World"], "cannot be imported"),
        (["--rows", "0"], "--rows must be at least 1"),
        (["--world", "spectral", "--rows", "60"], "documents are too few"),
        (["--sed", "1"], "unknown flag"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(args, line, tmp_path, capsys):
    from controls.__main__ import main

    assert main(["calibrate", *args, "--out", str(tmp_path / "runs")]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_labels_that_never_or_always_occur_are_refused():
    one = subject()
    with pytest.raises(UserError, match="label 'z' is never on"):
        Subject(one.activations, {"z": np.zeros(2000, int)}, one.groups, None, one.places, one.downstream, {"z": 0}, {})

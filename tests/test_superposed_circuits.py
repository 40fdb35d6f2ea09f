from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from experiments.network.superposed_circuits import EXPERIMENT, SMOKE, cells
from experiments.network.superposed_circuits_report import _crossing, summarise
from experiments.network.superposed_sizes import Settings
from toolkit.configs import ToyTraining
from toolkit.errors import UserError
from toolkit.superposed_circuits import (
    Calls,
    Circuits,
    Codes,
    draw_calls,
    draw_circuits,
    draw_codes,
    embed,
    relative_error,
)
from toolkit.superposition_error import (
    COLLISION,
    Sizes,
    affine_level,
    answer_variance,
    breakdown,
    first_order_error,
    predicted_error,
    stored_error,
)
from toolkit.trained_circuits import answers, circuits_source, train_circuits


def measured(sizes, *, instances=4, rows=2048, seed=0, shared=False):
    """Relative error of each instance."""
    T, m = sizes.circuits, sizes.width
    circuits = draw_circuits(instances, T, m, seed=seed)
    codes = draw_codes(instances, T, m, large=sizes.large, copies=sizes.copies, seed=seed, shared=shared)
    calls = draw_calls(instances, rows, T, m, k=sizes.k, seed=seed, step=0)
    return relative_error(embed(circuits, codes)(calls), circuits, calls)


@pytest.mark.parametrize("k", [1, 3, 16])
def test_circuits_that_lie_apart_answer_exactly_however_many_are_called(k):
    assert measured(Sizes(16, 128, 4, k, 2)).max() < 1e-10


@pytest.mark.parametrize("k", [1, 3])
def test_with_twice_as_many_they_do_not(k):
    assert measured(Sizes(32, 128, 4, k, 2)).min() > 1e-3


def test_permuting_circuits_permutes_answers():
    circuits, codes = draw_circuits(2, 40, 3, seed=0), draw_codes(2, 40, 3, large=30, copies=2, seed=1)
    calls = draw_calls(2, 50, 40, 3, k=4, seed=2, step=0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moved = Circuits(circuits.W1[:, order], circuits.W2[:, order])
    there = Codes(*(getattr(codes, each.name)[:, order] for each in fields(Codes)[:-1]), codes.large)
    same = Calls(order.argsort()[calls.which], calls.x)
    assert torch.allclose(embed(moved, there)(same), embed(circuits, codes)(calls), atol=1e-5)
    assert not torch.allclose(embed(moved, there)(calls), embed(circuits, codes)(calls), atol=0.1)


def test_the_order_of_calls_permutes_answers_and_scaling_inputs_scales_them():
    network = embed(draw_circuits(1, 40, 3, seed=0), draw_codes(1, 40, 3, large=30, copies=2, seed=1))
    calls = draw_calls(1, 50, 40, 3, k=4, seed=2, step=0)
    assert torch.allclose(network(Calls(calls.which.flip(2), calls.x.flip(2))), network(calls).flip(2), atol=1e-5)
    assert torch.allclose(network(Calls(calls.which, 3 * calls.x)), 3 * network(calls), atol=1e-4)
    assert not torch.allclose(network(Calls(calls.which, -calls.x)), -network(calls), atol=0.1)


@pytest.mark.parametrize(("copies", "k"), [(1, 1), (2, 4), (8, 2)])
def test_inputs_are_heard_with_noise_that_no_number_of_copies_changes(copies, k):
    sizes = Sizes(400, 128, 4, k, copies)
    circuits = draw_circuits(8, 400, 4, seed=0)
    network = embed(circuits, draw_codes(8, 400, 4, large=128, copies=copies, seed=0))
    calls = draw_calls(8, 2048, 400, 4, k=k, seed=0, step=0)
    assert (network.heard(calls) - calls.x).square().mean().item() == pytest.approx(sizes.heard, rel=0.05, abs=1e-9)
    assert sizes.heard == pytest.approx((k - 1) * 4 / 128, rel=0.1)


@pytest.mark.parametrize(
    "sizes",
    [Sizes(400, 256, 4, 1, 4), Sizes(800, 256, 4, 1, 4), Sizes(400, 256, 4, 3, 4), Sizes(600, 192, 6, 2, 4),
     Sizes(2000, 256, 4, 1, 4), Sizes(256, 128, 4, 1, 32)],
    ids=str,
)  # fmt: skip
def test_the_error_is_the_predicted_one(sizes):
    found = measured(sizes, instances=8, rows=4096)
    assert found.mean().item() == pytest.approx(predicted_error(sizes), rel=0.1)


@pytest.mark.parametrize(
    "sizes", [Sizes(100, 256, 4, 1, 4), Sizes(400, 256, 4, 1, 4), Sizes(200, 256, 4, 4, 4), Sizes(300, 192, 6, 2, 2)],
    ids=str,
)  # fmt: skip
def test_answers_written_back_into_as_many_numbers_have_the_leak_predicted(sizes):
    circuits = draw_circuits(8, sizes.circuits, sizes.width, seed=0)
    how = {"large": sizes.large, "copies": sizes.copies, "seed": 0}
    network = embed(circuits, draw_codes(8, sizes.circuits, sizes.width, **how))
    calls = draw_calls(8, 2048, sizes.circuits, sizes.width, k=sizes.k, seed=0, step=0)
    found = relative_error(network.stored(calls), circuits, calls).mean().item()
    assert found == pytest.approx(stored_error(sizes), rel=0.1)
    assert stored_error(sizes) > 1.2 * predicted_error(sizes)


def test_answers_written_back_by_circuits_that_lie_apart_are_exact():
    circuits = draw_circuits(1, 8, 4, seed=0)
    network = embed(circuits, draw_codes(1, 8, 4, large=64, copies=2, seed=0))
    calls = draw_calls(1, 256, 8, 4, k=3, seed=0, step=0)
    torch.testing.assert_close(network.stored(calls), circuits(calls), rtol=0, atol=1e-5)


def test_answers_written_back_break_down_at_far_fewer_circuits():
    at = Sizes(1024, 512, 4, 1, 4)
    assert breakdown(at, "circuits") > 8 * breakdown(at, "circuits", error=stored_error)


def test_the_error_grows_with_circuits_and_calls_and_falls_with_width_as_predicted():
    base = Sizes(512, 256, 4, 1, 4)
    for over, values in {"circuits": (400, 800, 1200), "large": (256, 384, 512), "k": (1, 2)}.items():
        each = [replace(base, **{over: value}) for value in values]
        found = [measured(sizes).mean().log().item() for sizes in each]
        slope, wanted = (
            np.polyfit(np.log(values), y, 1)[0] for y in (found, np.log([predicted_error(s) for s in each]))
        )
        assert slope == pytest.approx(wanted, abs=0.15)
        assert slope == pytest.approx({"circuits": 1, "large": -2, "k": 1}[over], abs=0.35)


def test_first_order_is_right_where_errors_are_small_and_knows_no_copies():
    for sizes in (Sizes(4096, 8192, 4, 1, 1), Sizes(4096, 8192, 4, 5, 2), Sizes(60_000, 16_384, 4, 2, 2)):
        assert predicted_error(sizes) == pytest.approx(first_order_error(sizes), rel=0.03)
    many = [first_order_error(Sizes(10**6, 8192, 4, 3, S)) for S in (1, 2, 4)]
    assert np.ptp(many) < 0.01 * many[0]
    powers = [
        np.log2(first_order_error(b) / first_order_error(Sizes(2**20, 2**12, 8, 1, 1)))
        for b in (Sizes(2**21, 2**12, 8, 1, 1), Sizes(2**20, 2**13, 8, 1, 1), Sizes(2**20, 2**12, 8, 2, 1))
    ]
    assert powers == pytest.approx([1, -2, 1], abs=0.01)


def test_dense_codes_and_one_code_for_all_fail():
    sparse = measured(Sizes(256, 128, 4, 1, 2)).mean()
    assert measured(Sizes(256, 128, 4, 1, 32)).mean() > 5 * sparse
    assert measured(Sizes(256, 128, 4, 1, 2), shared=True).mean() > 20


def test_a_plain_loop_agrees():
    T, m, D, S, k = 12, 3, 14, 2, 2
    circuits, codes = draw_circuits(1, T, m, seed=3), draw_codes(1, T, m, large=D, copies=S, seed=4)
    calls = draw_calls(1, 5, T, m, k=k, seed=5, step=0)
    W1, W2 = circuits.W1[0].double().numpy(), circuits.W2[0].double().numpy()
    W = np.zeros((D, D))
    for t in range(T):
        E, C = np.zeros((D, m)), np.zeros((D, m))
        for i in range(m):
            for s in range(S):
                E[codes.inputs[0, t, i, s], i] += codes.signs[0, t, i, s]
                C[codes.neurons[0, t, i, s], i] += 1
        W += C @ W1[t] @ E.T / S
    for row in range(5):
        X = np.zeros(D)
        for t, x in zip(calls.which[0, row].tolist(), calls.x[0, row].double().numpy(), strict=True):
            for i in range(m):
                for s in range(S):
                    X[codes.inputs[0, t, i, s]] += codes.signs[0, t, i, s] * x[i]
        H = np.maximum(W @ X, 0)
        for place, t in enumerate(calls.which[0, row].tolist()):
            hidden = np.array([H[codes.neurons[0, t, i]].mean() for i in range(m)])
            assert embed(circuits, codes)(calls)[0, row, place].numpy() == pytest.approx(W2[t] @ hidden, abs=1e-5)
            alone = W2[t] @ np.maximum(W1[t] @ calls.x[0, row, place].double().numpy(), 0)
            assert circuits(calls)[0, row, place].numpy() == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(("T", "copies"), [(7, 2), (8, 2), (9, 2), (40, 2), (10, 8)])
def test_codes_are_balanced_and_circuits_apart_as_often_as_said(T, copies):
    codes = draw_codes(1, T, 4, large=64, copies=copies, seed=0)
    for places in (codes.inputs[0], codes.neurons[0]):
        rows = places.flatten(1)
        assert all(len(row.unique()) == 4 * copies for row in rows)
        used = torch.bincount(rows.flatten(), minlength=64)
        assert used.max() <= -(-T * 4 * copies // 64)
    overlaps = torch.zeros(())
    for seed in range(200):
        rows = draw_codes(1, T, 4, large=64, copies=copies, seed=seed).neurons[0].flatten(1)
        wide = torch.zeros(T, 64).scatter_(1, rows, 1.0)
        overlaps += ((wide @ wide.mT).sum() - wide.sum()) / (T * (T - 1)) / 200
    assert overlaps.item() == pytest.approx((4 * copies) ** 2 / 64 * Sizes(T, 64, 4, 1, copies).overlap, rel=0.05)


def test_layers_have_codes_of_their_own_and_the_same_seed_gives_the_same():
    codes, again = (draw_codes(2, 20, 4, large=64, copies=2, seed=0) for _ in range(2))
    assert torch.equal(codes.inputs, again.inputs)
    assert not torch.equal(codes.inputs, codes.neurons)
    assert not torch.equal(codes.inputs[0], codes.inputs[1])
    assert codes.signs.unique().tolist() == [-1, 1]


def test_circuits_apart_in_one_layer_are_as_often_as_others_apart_in_the_next():
    overlaps = []
    for seed in range(50):
        codes = draw_codes(1, 16, 4, large=64, copies=2, seed=seed)
        wide = [torch.zeros(16, 64).scatter_(1, c[0].flatten(1), 1.0) for c in (codes.inputs, codes.neurons)]
        overlaps.append(torch.stack([(one @ one.mT)[*torch.triu_indices(16, 16, 1)] for one in wide]))
    assert abs(torch.corrcoef(torch.cat(overlaps, 1))[0, 1].item()) < 0.06


@pytest.mark.parametrize("k", [1, 3, 6])
def test_calls_are_of_different_circuits_drawn_alike(k):
    calls = draw_calls(2, 6000, 6, 3, k=k, seed=0, step=0)
    assert all(len(set(row)) == k for row in calls.which[0].tolist())
    often = torch.bincount(calls.which.flatten(), minlength=6) / 12_000
    assert torch.allclose(often, torch.full((6,), k / 6), atol=0.02)
    pairs = torch.zeros(12_000, 6).scatter_(1, calls.which.flatten(0, 1), 1.0)
    both = (pairs.mT @ pairs / 12_000).fill_diagonal_(k * (k - 1) / 30)
    assert torch.allclose(both, torch.full((6, 6), k * (k - 1) / 30), atol=0.02)
    assert calls.x[..., 0].eq(1).all()
    assert calls.x[..., 1:].mean().item() == pytest.approx(0, abs=0.03)
    assert calls.x[..., 1:].std().item() == pytest.approx(1, abs=0.03)


def test_means_variance_and_affine_level_are_those_of_simulated_circuits():
    circuits = draw_circuits(1, 1, 4, seed=0)
    calls = draw_calls(1, 200_000, 1, 4, k=1, seed=0, step=0)
    assert torch.allclose(circuits(calls).mean((1, 2)), circuits.means[:, 0], atol=0.01)
    many = draw_circuits(1, 3000, 4, seed=1)
    x = draw_calls(1, 500, 1, 4, k=1, seed=2, step=0).x[0, :, 0]
    y = torch.einsum("toh,tbh->tbo", many.W2[0], torch.einsum("thm,bm->tbh", many.W1[0], x).relu())
    spread = (y - many.means[0][:, None]).square().mean().item()
    left = y - x @ torch.linalg.lstsq(x.expand(3000, -1, -1), y).solution
    assert spread == pytest.approx(answer_variance(4), rel=0.04)
    assert left.square().mean().item() / spread == pytest.approx(affine_level(4), rel=0.04)


def test_a_collision_costs_what_simulation_says():
    a, b = torch.randn(2, 1_000_000, generator=torch.Generator().manual_seed(0))
    assert ((a + b).relu() - a.relu()).square().mean().item() == pytest.approx(COLLISION, rel=0.01)


def test_answering_the_mean_has_error_one_and_the_truth_none():
    circuits, calls = draw_circuits(2, 10, 4, seed=0), draw_calls(2, 100, 10, 4, k=2, seed=0, step=0)
    means = torch.stack([circuits.means[i][calls.which[i]] for i in range(2)])
    assert torch.allclose(relative_error(means, circuits, calls), torch.ones(2), atol=1e-5)
    assert relative_error(circuits(calls), circuits, calls).max() == 0


def test_break_down_is_where_the_prediction_is_one():
    base = Sizes(512, 256, 4, 1, 4)
    T = breakdown(base, "circuits")
    assert predicted_error(replace(base, circuits=int(T))) < 1 < predicted_error(replace(base, circuits=int(T) + 1))
    k = breakdown(base, "k")
    assert predicted_error(replace(base, k=int(k))) < 1 < predicted_error(replace(base, k=int(k) + 1))
    with pytest.raises(UserError, match="circuits or k"):
        breakdown(base, "width")
    with pytest.raises(UserError, match="does not reach 1"):
        breakdown(Sizes(4, 256, 4, 1, 4), "k")


def test_training_reads_the_same_task():
    circuits = draw_circuits(2, 6, 3, seed=0)
    batch = circuits_source(circuits, 2, seed=1).batch(7, 50)
    calls = draw_calls(2, 50, 6, 3, k=2, seed=1, step=7)
    truth, mean = circuits(calls), answer_variance(3)
    for i, row, at in ((0, 0, 0), (1, 49, 1), (0, 13, 1)):
        t = calls.which[i, row, at]
        assert torch.equal(batch.x.view(2, 50, 6, 3)[i, row, t], calls.x[i, row, at])
        assert torch.equal(batch.y.view(2, 50, 6, 3)[i, row, t], truth[i, row, at])
    called = batch.x.view(2, 50, 6, 3).abs().sum(-1) > 0
    assert called.sum(-1).eq(2).all()
    assert torch.equal(batch.weight.view(2, 50, 6, 3)[..., 0] > 0, called)
    assert (batch.weight * mean).sum(-1).mean().item() == pytest.approx(1)


def test_a_trained_network_learns_circuits_that_would_not_fit_side_by_side():
    circuits = draw_circuits(2, 12, 3, seed=0)
    training = ToyTraining(toy_steps=600, toy_batch=128, toy_lr=5e-3)
    trained = train_circuits(circuits, 1, large=18, training=training, seed=0)
    calls = draw_calls(2, 1024, 12, 3, k=1, seed=0, step=2**40)
    answer = answers(trained, calls, 3)
    error = relative_error(answer, circuits, calls)
    assert error.max() < 0.15
    assert torch.allclose(error, trained.loss, rtol=0.3)
    frozen, longer = (
        train_circuits(circuits, 1, large=18, training=ToyTraining(toy_steps=steps, toy_batch=128), seed=0, frozen=True)
        for steps in (1, 3)
    )
    assert torch.equal(frozen.parameters["W_1"], longer.parameters["W_1"])
    assert not torch.equal(frozen.parameters["W_2"], longer.parameters["W_2"])
    other = Calls((calls.which + 1) % 12, calls.x)
    assert relative_error(answer, circuits, other).min() > 1


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="at least 2"):
        draw_circuits(1, 3, 1, seed=0)
    with pytest.raises(UserError, match="4 x 5 = 20"):
        draw_codes(1, 3, 4, large=16, copies=5, seed=0)
    with pytest.raises(UserError, match="got 4"):
        draw_calls(1, 3, 3, 4, k=4, seed=0, step=0)
    with pytest.raises(UserError, match="codes must be for"):
        embed(draw_circuits(1, 3, 4, seed=0), draw_codes(1, 4, 4, large=16, copies=1, seed=0))
    with pytest.raises(UserError, match="1 <= k <= T"):
        Sizes(3, 16, 4, 4, 1)


def found_as(error, settings=SMOKE):
    """What the experiment would find if errors were given by a function of the sizes."""
    found = []
    for cell in cells(settings):
        sizes = Sizes(*(cell[name] for name in ("circuits", "large", "width", "k", "copies")))
        stored = cell["over"].startswith("stored") and error is predicted_error
        value = 100.0 if cell["over"] == "shared" else (stored_error if stored else error)(sizes)
        one = {"error": torch.full((3,), value) * torch.tensor([0.99, 1.0, 1.01])}
        found.append(one | ({"trained": torch.full((3,), 0.1)} if cell["over"] in ("trained", "frozen") else {}))
    return summarise(settings, cells(settings), found)


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_sweeps_of_every_scale_reach_the_break_downs(scale):
    found = found_as(predicted_error, EXPERIMENT.settings(scale))
    assert [check.claim for check in found.checks if not check.passed] == []


def test_the_report_agrees_with_theory_where_errors_do_and_says_so_where_they_do_not():
    right = found_as(predicted_error)
    assert all(check.passed for check in right.checks)
    assert "below the affine answer's" in right.conclusion
    flat = found_as(lambda sizes: 0.3)
    failed = {check.claim for check in flat.checks if not check.passed}
    assert {"slope in T (leading term: 1)", "slope in D (leading term: -2)", "circuits laid apart: error"} <= failed
    assert any(claim.startswith("break-down, T at k=1") for claim in failed)


def test_a_crossing_is_found_on_log_axes_and_nan_without_one():
    x = np.log([1, 10, 100])
    assert _crossing(x, np.log([0.1, 0.1, 10])) == pytest.approx(10**1.5)
    assert np.isnan(_crossing(x, np.log([0.1, 0.2, 0.3])))
    assert np.isnan(_crossing(x, np.log([2, 3, 4])))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"over_k": ()}, "over_k must be at least 1"),
        ({"over_circuits": (256, 256)}, "over_circuits needs two sizes"),
        ({"copies": 3}, "copies=3 must be one of over_copies"),
        ({"over_large": (512, 256)}, "over_large must rise"),
        ({"over_stored": (512, 256)}, "over_stored must rise, two sizes at least"),
        ({"over_stored": (512,)}, "over_stored must rise, two sizes at least"),
        ({"over_stored": (2, 512)}, "together=4 is more than the fewest circuits swept, 2"),
        ({"together": 1}, "together must be at least 2, got 1"),
        ({"over_copies": (4, 256)}, "over_copies=.4, 256.: width times copies must be at most 512"),
        ({"circuits": 32}, "fewer than two sizes of over_k are in superposition with a predicted error below 0.6"),
        ({"over_circuits": (16, 8192)}, "fewer than two sizes of over_circuits are in superposition"),
    ],
)
def test_sizes_that_make_no_sweep_are_refused(changed, says):
    with pytest.raises(UserError, match=says):
        Settings(**changed)

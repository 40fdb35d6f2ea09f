"""Curves of outputs along lines: linear networks have no plateau, known sigmoids are found, planted plateaus too."""

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from toolkit import plateau_curves
from toolkit.errors import UserError
from toolkit.plateau_curves import (
    first_share,
    fit_sigmoids,
    interpolated,
    largest_slope,
    logit_distance,
    output_distances,
    relative,
    root_divergence,
    shares,
    sigmoid,
)

S = shares(21)
PAIRS, D = 7, 6


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def curves(network, starts=None, ends=None, distance=logit_distance, **how):
    starts = drawn(PAIRS, D, seed=1) if starts is None else starts
    ends = drawn(PAIRS, D, seed=2) if ends is None else ends
    at = torch.arange(len(starts))
    return output_distances(lambda rows, at: network(rows), starts, ends, at, {"it": distance}, **how)["it"]


def test_a_linear_network_gives_the_straight_line_and_no_plateau():
    W = drawn(D, 9, seed=3)
    y = relative(curves(lambda rows: rows @ W + 1.0))
    torch.testing.assert_close(y, S.expand(PAIRS, -1))
    fit = fit_sigmoids(S, y)
    for value in (fit.width, first_share(S, y)):
        torch.testing.assert_close(value, torch.full((PAIRS,), 0.1, dtype=torch.float64), atol=1e-4, rtol=0)
    for value in (fit.sharpness, largest_slope(S, y)):
        torch.testing.assert_close(value, torch.ones(PAIRS, dtype=torch.float64), atol=1e-3, rtol=0)
    assert fit.residual.max() < 1e-5
    bent = relative(curves(lambda rows: (rows @ W).tanh()))  # the premise is needed
    assert (bent - S).abs().max() > 0.05


def test_adding_the_same_to_all_logits_is_no_movement():
    W, common = drawn(D, 9, seed=3), drawn(D, 1, seed=4)
    plain = curves(lambda rows: rows @ W)
    torch.testing.assert_close(curves(lambda rows: rows @ W + (rows @ common).exp()), plain)
    torch.testing.assert_close(curves(lambda rows: (rows @ W).log_softmax(1)), plain)


@pytest.mark.parametrize(("steepness", "centre"), [(3.0, 0.5), (12.0, 0.3), (40.0, 0.71), (6.0, 0.05), (9.0, 0.95)])
def test_a_known_sigmoid_is_recovered(steepness, centre):
    k, c = torch.tensor([[steepness], [centre]], dtype=torch.float64)
    y = sigmoid(S, k, c)
    fit = fit_sigmoids(S, y[None])
    assert fit.steepness.item() == pytest.approx(steepness, rel=1e-3)
    assert fit.centre.item() == pytest.approx(centre, abs=1e-3)
    fine = np.linspace(0, 1, 200_001)
    logistic = 1 / (1 + np.exp(-steepness * (fine - centre)))
    exact = (logistic - logistic[0]) / (logistic[-1] - logistic[0])  # the definition, as the docstring has it
    np.testing.assert_allclose(y, exact[::10_000], atol=1e-9)
    assert fit.width.item() == pytest.approx(np.interp(0.1, exact, fine), abs=1e-4)
    assert fit.sharpness.item() == pytest.approx((np.diff(exact) / np.diff(fine)).max(), rel=1e-3)


def test_fits_are_those_of_scipy_and_do_not_touch_one_another():
    noise = 0.03 * drawn(5, len(S), seed=5)
    k, c = torch.tensor([[4.0], [9.0], [15.0], [2.0], [25.0]]).double(), torch.linspace(0.2, 0.8, 5)[:, None].double()
    y = sigmoid(S, k, c) + noise
    fit = fit_sigmoids(S, y)
    for i in range(5):
        there = least_squares(
            lambda p, y=y[i].numpy(): sigmoid(S, torch.tensor([p[0]]), torch.tensor([p[1]])).numpy() - y,
            [float(k[i]), float(c[i])],
            bounds=([1e-3, 0], [160, 1]),
            xtol=1e-12,
        )
        assert fit.residual[i].item() == pytest.approx(np.sqrt(2 * there.cost / len(S)), abs=1e-6)
        np.testing.assert_allclose([fit.steepness[i], fit.centre[i]], there.x, rtol=1e-2)
        torch.testing.assert_close(fit_sigmoids(S, y[i : i + 1]).width, fit.width[i : i + 1], atol=1e-4, rtol=0)


def test_the_scale_of_inputs_and_outputs_does_not_matter():
    W = drawn(D, 9, seed=3)
    starts, ends = drawn(PAIRS, D, seed=1), drawn(PAIRS, D, seed=2)
    plain = relative(curves(lambda rows: (rows @ W).tanh()))
    torch.testing.assert_close(relative(curves(lambda rows: -50 * (rows @ W).tanh() + 3)), plain)
    scaled = curves(lambda rows: (rows / 7 @ W).tanh(), 7 * starts, 7 * ends)
    torch.testing.assert_close(relative(scaled), plain)


def two_cells(rows, gain):
    """Outputs that read which side of 0 the first coordinate is on, the more sharply the larger the gain."""
    side = torch.sigmoid(gain * rows[:, :1])
    return torch.cat([4 * side, -4 * side, 0.0 * rows[:, :1]], 1)


def test_a_planted_boundary_is_found_where_it_is_and_is_sharper_with_gain():
    starts, ends = drawn(5, D, seed=1), drawn(5, D, seed=2)
    where = torch.tensor([0.3, 0.4, 0.5, 0.6, 0.75]).double()
    starts[:, 0], ends[:, 0] = -where, 1 - where
    found = []
    for gain in (1.0, 10.0, 40.0):
        y = relative(curves(lambda rows, gain=gain: two_cells(rows, gain), starts, ends))
        fit = fit_sigmoids(S, y)
        found.append(torch.stack([fit.sharpness, largest_slope(S, y), fit.width, first_share(S, y)]))
        if gain > 1:
            torch.testing.assert_close(fit.centre, where, atol=0.01, rtol=0)
            assert (fit.width > 0.15).logical_or(where < 0.4).all()
    assert (found[1] > found[0]).all()
    assert (found[2] > found[1]).all()
    torch.testing.assert_close(found[1][0], torch.full((5,), 2.5).double(), atol=0.35, rtol=0)  # gain / 4 of the whole
    assert (found[0][:2] < 1.1).all()
    torch.testing.assert_close(found[2][2], found[2][3], atol=0.02, rtol=0)  # with the fit and without


def test_normalising_alone_bends_a_line_between_orthogonal_rows_as_geometry_says():
    starts, ends = torch.eye(D).double()[:2], torch.eye(D).double()[2:4]
    y = relative(
        curves(lambda rows: rows / rows.norm(dim=1, keepdim=True), starts, ends, lambda a, b: (b - a).norm(dim=2))
    )
    s = S.numpy()
    exact = np.sqrt(2) * np.sin(np.arctan2(s, 1 - s) / 2)
    np.testing.assert_allclose(y, np.stack([exact] * 2), atol=1e-12)
    fine = np.linspace(0, 1, 100_001)
    exact = np.sqrt(2) * np.sin(np.arctan2(fine, 1 - fine) / 2)
    assert (np.diff(exact) / np.diff(fine)).max() == pytest.approx(1.31, abs=0.01)  # what the bars of N6 rest on
    assert np.interp(0.1, exact, fine) == pytest.approx(0.125, abs=0.001)


def test_root_divergence_begins_straight_where_divergence_itself_has_a_plateau():
    W = 0.05 * drawn(D, 9, seed=3)
    network = lambda rows: (rows @ W).log_softmax(1)  # noqa: E731
    root = curves(network, distance=root_divergence)
    assert (relative(root) - S).abs().max() < 0.03
    assert (first_share(S, relative(root.square())) > 0.28).all()
    starts, ends = drawn(PAIRS, D, seed=1), drawn(PAIRS, D, seed=2)
    p, q = network(starts), network(ends)
    torch.testing.assert_close(root[:, -1].square(), (p.exp() * (p - q)).sum(1))


def test_blocks_change_nothing_and_each_line_keeps_its_place():
    W = drawn(PAIRS, D, 4, seed=6)
    starts, ends = drawn(PAIRS, D, seed=1), drawn(PAIRS, D, seed=2)
    sizes = []

    def rest(rows, at):
        sizes.append(len(rows))
        return torch.einsum("rd,rdo->ro", rows, W[at]).tanh()  # (rows, d), (rows, d, outputs) -> (rows, outputs)

    at = torch.arange(PAIRS).flip(0)
    whole = output_distances(rest, starts, ends, at, {"it": logit_distance}, steps=11)["it"]
    parts = output_distances(rest, starts, ends, at, {"it": logit_distance}, steps=11, block=25)["it"]
    torch.testing.assert_close(whole, parts)
    assert sizes == [77, 22, 22, 22, 11]
    one = (interpolated(starts[:1], ends[:1], 11)[0] @ W[PAIRS - 1]).tanh()
    change = one - one[:1]
    torch.testing.assert_close(whole[0], (change - change.mean(1, keepdim=True)).norm(dim=1))


def test_the_share_is_read_between_steps_and_at_the_first_crossing():
    y = torch.tensor([[0, 0, 0.05, 0.15, 1], [0, 0.2, 0.05, 0.5, 1], [0.0, 0, 0, 0, 1]]).double()
    s = shares(5)
    torch.testing.assert_close(first_share(s, y), torch.tensor([0.625, 0.125, 0.775]).double())
    torch.testing.assert_close(largest_slope(s, y), torch.tensor([3.4, 2.0, 4.0]).double())


def test_outputs_that_end_where_they_began_have_no_curve_and_spoil_no_other():
    distances = torch.stack([torch.zeros(21), torch.linspace(0, 2, 21)]).double()
    y = relative(distances)
    fit = fit_sigmoids(S, y)
    for value in (fit.width, fit.sharpness, fit.residual, fit.centre, first_share(S, y), largest_slope(S, y)):
        assert value.isnan().tolist() == [True, False]
    assert fit_sigmoids(S, y[:1]).width.isnan().all()


def test_a_step_is_as_steep_as_the_points_can_tell():
    y = (S > 0.52).double()[None]
    fit = fit_sigmoids(S, y)
    assert fit.centre.item() == pytest.approx(0.525, abs=0.02)
    assert 20 < fit.sharpness.item() <= plateau_curves.STEEPEST * 20 / 4 * 1.001
    assert fit.residual.item() < 1e-2


def test_too_few_steps_are_refused():
    with pytest.raises(UserError, match="at least 5 steps, got 4"):
        shares(4)

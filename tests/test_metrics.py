"""Scores against hand-computed values, closed forms and other implementations."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score

from toolkit import metrics

SQUARE_ANTIPRISM = [
    [(2 / 3) ** 0.5 * np.cos(turn), (2 / 3) ** 0.5 * np.sin(turn), side * 3**-0.5]
    for side, shift in ((1, 0.0), (-1, np.pi / 4))
    for turn in shift + np.pi / 2 * np.arange(4)
]
TWO_DIGONS = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])


def polygon(n):
    angle = 2 * torch.pi * torch.arange(n) / n
    return torch.stack([angle.cos(), angle.sin()])  # (2, n)


def simplex(n, *, seed=0, noise=0.0):
    """n unit vectors in n - 1 dimensions with cosines -1/(n - 1), in a random orientation."""
    generator = torch.Generator().manual_seed(seed)
    plane = torch.linalg.qr(torch.cat([torch.ones(n, 1), torch.randn(n, n - 1, generator=generator)], 1)).Q[:, 1:]
    return torch.nn.functional.normalize(plane.T, dim=0) + noise * torch.randn(n - 1, n, generator=generator)


@pytest.mark.parametrize(
    ("W", "expected"),
    [
        (polygon(2), 1 / 2),
        (polygon(3), 2 / 3),
        (polygon(4), 1 / 2),
        (polygon(5), 2 / 5),
        (0.9 * polygon(5), 2 / 5),
        (simplex(4), 3 / 4),
        (simplex(5), 4 / 5),
        (torch.tensor(SQUARE_ANTIPRISM).T.float(), 3 / 8),
        (torch.eye(4)[:3, :3], 1.0),
        (torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q[:, :4], 1.0),
    ],
)
def test_every_vertex_of_a_regular_shape_takes_dimensions_over_vertices(W, expected):
    torch.testing.assert_close(metrics.feature_dimensionality(W), torch.full((W.shape[1],), expected))
    torch.testing.assert_close(metrics.capacity(W), torch.full((W.shape[1],), expected))


def test_feature_dimensionality_by_hand_for_two_features_at_sixty_degrees_with_norms_two_and_one():
    W = torch.tensor([[2.0, 0.5], [0.0, 0.75**0.5]])
    # G = [[4, 1], [1, 1]]: D_1 = 16 / (16 + 1), D_2 = 1 / (1 + 1).
    torch.testing.assert_close(metrics.feature_dimensionality(W), torch.tensor([16 / 17, 1 / 2]))
    torch.testing.assert_close(metrics.gram(W), torch.tensor([[4.0, 1.0], [1.0, 1.0]]))
    assert metrics.dimensions_per_feature(W).item() == pytest.approx(2 / 5)


def test_features_that_are_zero_take_no_dimension_and_leave_the_others_alone():
    W = torch.cat([polygon(5), torch.zeros(2, 2)], 1)
    torch.testing.assert_close(metrics.feature_dimensionality(W), torch.tensor([0.4] * 5 + [0.0] * 2))


def test_an_all_zero_model_has_no_features_no_capacity_and_no_geometry():
    W = torch.zeros(2, 5)
    assert metrics.feature_dimensionality(W).tolist() == [0.0] * 5
    assert metrics.dimensions_per_feature(W).item() == float("inf")
    assert not metrics.represented(W).any()
    assert metrics.geometry(W) == {}


def test_represented_means_squared_norm_above_one_half():
    W = torch.tensor([[0.72, 0.70, 0.0], [0.0, 0.0, 1.0]])
    assert metrics.represented(W).tolist() == [True, False, True]


def test_instances_in_one_tensor_are_measured_one_by_one():
    W = torch.stack([polygon(5), torch.cat([torch.eye(2), torch.zeros(2, 3)], 1)])
    expected = torch.tensor([[0.4] * 5, [1.0, 1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(metrics.feature_dimensionality(W), expected)
    torch.testing.assert_close(metrics.dimensions_per_feature(W), torch.tensor([2 / 5, 1.0]))


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 8)).flatmap(
        lambda shape: arrays(np.float64, shape, elements=st.floats(-2, 2).map(lambda v: round(v, 2)))
    )
)
def test_capacities_lie_between_zero_and_one_and_sum_to_no_more_than_the_dimensions(W):
    capacity = metrics.capacity(torch.from_numpy(W))
    assert (capacity >= 0).all()
    assert (capacity <= 1 + 1e-9).all()
    assert capacity.sum() <= W.shape[0] + 1e-9


@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 1000))
def test_capacities_of_a_tight_frame_sum_to_the_dimensions(m, extra, seed):
    # Rows of an orthogonal matrix: W W^T = I, so sum C_i = trace of the identity.
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((m + extra, m + extra)))[0]
    assert metrics.capacity(torch.from_numpy(q[:m])).sum().item() == pytest.approx(m)


@pytest.mark.parametrize(
    ("W", "expected"),
    [
        (torch.eye(3), {"dedicated": 3}),
        (TWO_DIGONS, {"digon": 2}),
        (polygon(3), {"triangle": 1}),
        (polygon(5), {"pentagon": 1}),
        (polygon(6), {"hexagon": 1}),
        (polygon(9), {"9 in 2": 1}),
        (simplex(4), {"tetrahedron": 1}),
        (torch.tensor(SQUARE_ANTIPRISM).T.float(), {"square antiprism": 1}),
        (torch.block_diag(polygon(5), polygon(2)[:1], torch.ones(1, 1)), {"pentagon": 1, "digon": 1, "dedicated": 1}),
        (torch.cat([polygon(5), 0.5 * polygon(3)], 1), {"pentagon": 1}),
    ],
)
def test_geometry_names_the_shapes(W, expected):
    assert metrics.geometry(W) == expected


def test_geometry_names_a_five_cell_whose_vertices_are_a_little_off():
    # Its cosines are exactly -1/4: the threshold that joins features must not sit there.
    assert [metrics.geometry(simplex(5, seed=seed, noise=0.003)) for seed in range(20)] == [{"5-cell": 1}] * 20


def test_matching_is_blind_to_the_order_and_length_of_latents_but_not_to_their_sign():
    order = torch.tensor([3, 0, 4, 1, 2])
    decoder = polygon(5).T[order] * torch.tensor([[0.5], [1.0], [2.0], [3.0], [0.1]])
    match = metrics.signed_matching(polygon(5).T, decoder)
    assert match.score == pytest.approx(1.0)
    assert order[match.latents].tolist() == [0, 1, 2, 3, 4]
    decoder[1] *= -1  # the latent of feature 0 now points away from it, and counts against the dictionary
    score = metrics.signed_matching(polygon(5).T, decoder).score
    assert score == pytest.approx(best_by_permutation(polygon(5).T @ torch.nn.functional.normalize(decoder, dim=1).T))
    assert score < 0.7


def test_duplicates_of_a_latent_gain_nothing():
    decoder = torch.eye(4)[:3]
    assert metrics.signed_matching(torch.eye(4), decoder).score == pytest.approx(3 / 4)
    assert metrics.signed_matching(torch.eye(4), decoder.repeat(3, 1)).score == pytest.approx(3 / 4)
    assert metrics.signed_matching(torch.eye(4), torch.eye(4)).score == pytest.approx(1.0)


def test_on_two_digons_half_a_dictionary_scores_one_half_where_absolute_cosines_see_no_difference():
    features = TWO_DIGONS.T
    perfect, half = features, features[[0, 2]]
    doubled = torch.cat([half, half])
    assert metrics.signed_matching(features, perfect).score == pytest.approx(1.0)
    assert metrics.signed_matching(features, half).score == pytest.approx(1 / 2)
    assert metrics.signed_matching(features, doubled).score == pytest.approx(1 / 2)
    # The premise dropped: by |cos| the doubled half is as perfect as the whole.
    assert best_by_permutation((features @ perfect.T).abs()) == pytest.approx(1.0)
    assert best_by_permutation((features @ doubled.T).abs()) == pytest.approx(1.0)


def test_features_without_a_latent_are_marked_and_score_zero_and_a_zero_latent_matches_nothing():
    match = metrics.signed_matching(torch.eye(3), torch.eye(3)[1:2])
    assert match.latents.tolist() == [-1, 0, -1]
    assert match.cosines.tolist() == [0.0, 1.0, 0.0]
    assert metrics.signed_matching(torch.eye(2), torch.zeros(2, 2)).score == 0.0


def best_by_permutation(cosines):
    """Mean of the best one-to-one assignment by trying every one of them."""
    n = len(cosines)
    return max(cosines[range(n), list(p)].mean().item() for p in permutations(range(n)))


def test_matching_is_the_best_of_all_permutations():
    for seed in range(20):
        directions, decoder = (metrics.random_dictionary(5, 3, seed=2 * seed + i) for i in range(2))
        expected = best_by_permutation(directions @ decoder.T)
        assert metrics.signed_matching(directions, decoder).score == pytest.approx(expected, abs=1e-6)


def test_chance_level_of_five_random_latents_on_the_pentagon():
    drawn = [metrics.random_dictionary(5, 2, seed=seed) for seed in range(2000)]
    scores = np.array([metrics.signed_matching(polygon(5).T, decoder).score for decoder in drawn])
    # The best of the 120 assignments, for angles drawn uniformly and anew.
    angles = np.random.default_rng(1).uniform(0, 2 * np.pi, (2000, 1, 5))
    cosines = np.cos(2 * np.pi * np.arange(5)[:, None] / 5 - angles)  # (draws, features, latents)
    every = np.array(list(permutations(range(5))))  # (120, features)
    best = cosines[:, np.arange(5), every].mean(-1).max(-1)
    assert abs(scores.mean() - best.mean()) < 4 * np.hypot(scores.std(), best.std()) / 2000**0.5
    assert abs(scores.mean() - 0.72) < 0.005 + 4 * scores.std() / 2000**0.5


def test_random_dictionaries_are_uniform_on_the_sphere_and_follow_their_seed():
    drawn = metrics.random_dictionary(4000, 3, seed=5)
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(4000))
    # Coordinates of a uniform point on the sphere in three dimensions are uniform on [-1, 1].
    assert drawn.mean(0).abs().max() < 4 / (3 * 4000) ** 0.5
    assert (drawn.T @ drawn / 4000 - torch.eye(3) / 3).abs().max() < 4 * (4 / 45 / 4000) ** 0.5
    assert torch.equal(drawn, metrics.random_dictionary(4000, 3, seed=5))
    assert not torch.equal(drawn, metrics.random_dictionary(4000, 3, seed=6))


def test_fvu_by_hand_about_the_mean_and_about_zero():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    recovered = torch.tensor([[1.0, 1.0], [3.0, 0.0]])
    assert metrics.fvu(x, recovered) == pytest.approx(1 / 2)  # error 1, distances from (2, 0): 1 + 1
    assert metrics.fvu(x, recovered, about="zero") == pytest.approx(1 / 10)  # squares 1 + 9
    assert metrics.fvu(x, x) == 0.0


def test_the_mean_explains_nothing_about_the_mean_and_zero_nothing_about_zero():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) + 3
    weights = torch.rand(50, generator=torch.Generator().manual_seed(1))
    mean = x.mean(0).expand_as(x)
    weighted_mean = ((weights[:, None] * x).sum(0) / weights.sum()).expand_as(x)
    assert metrics.fvu(x, mean) == pytest.approx(1.0, abs=1e-6)
    assert metrics.fvu(x, weighted_mean, weights=weights) == pytest.approx(1.0, abs=1e-6)
    assert metrics.fvu(x, torch.zeros_like(x), about="zero") == pytest.approx(1.0, abs=1e-6)
    assert metrics.fvu(x, torch.zeros_like(x)) > 2


@pytest.mark.parametrize("about", ["mean", "zero"])
def test_weighted_scores_are_those_of_repeated_rows(about):
    x, recovered = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([1, 4, 0, 2, 1, 3])
    repeated = [tensor.repeat_interleave(counts, 0) for tensor in (x, recovered)]
    weighted = metrics.fvu(x, recovered, about=about, weights=counts.float())
    assert weighted == pytest.approx(metrics.fvu(*repeated, about=about), rel=1e-5)
    assert weighted != pytest.approx(metrics.fvu(x, recovered, about=about), rel=1e-2)
    assert metrics.l0(recovered, counts.float()) == pytest.approx(metrics.l0(repeated[1]))


def test_l0_and_dead_by_hand():
    latents = torch.tensor([[0.0, 2.0, 0.0, 0.1], [0.0, 1.0, 0.0, 0.0]])
    assert metrics.l0(latents) == pytest.approx(3 / 2)
    assert metrics.dead(latents) == pytest.approx(1 / 2)


def brute_force_f1(latents, on):
    thresholds = np.concatenate([[0.0], np.unique(latents)])
    return max(f1_score(on, (latents > t) & (latents > 0), zero_division=0.0) for t in thresholds)


@pytest.mark.parametrize("levels", [4, 1000])
def test_f1_is_scikit_learns_at_its_best_threshold(levels):
    generator = np.random.default_rng(levels)
    on = generator.random((60, 5)) < [0.02, 0.2, 0.5, 0.9, 1.0]
    on[0] = True
    latents = generator.integers(0, levels, (60, 5)) / levels + 0.5 * on * generator.random((60, 1)).round()
    measured = metrics.f1(torch.from_numpy(latents), torch.from_numpy(on * 1.0))
    expected = [brute_force_f1(latents[:, i], on[:, i]) for i in range(5)]
    np.testing.assert_allclose(measured, expected, rtol=1e-6)


def test_f1_of_perfect_silent_and_impossible_detectors():
    features = torch.tensor([[0.3, 0.3, 0.0], [0.0, 0.0, 0.0], [0.8, 0.8, 0.0]])
    latents = torch.tensor([[0.3, 0.0, 0.4], [1e-4, 0.0, 0.0], [0.8, 0.0, 0.0]])
    measured = metrics.f1(latents, features)
    assert measured[:2].tolist() == [1.0, 0.0]
    assert measured[2].isnan()


@pytest.mark.parametrize("slope", [0.0, 0.8, 1.0, 1.1])
def test_shrinkage_is_one_minus_the_slope(slope):
    true = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
    assert metrics.shrinkage(slope * true, true) == pytest.approx(1 - slope, abs=1e-5)


def test_least_squares_gain_undoes_a_scale_and_beats_its_neighbours():
    generator = torch.Generator().manual_seed(0)
    x, rebuilt = torch.randn(2, 40, 3, generator=generator)
    assert metrics.least_squares_gain(x, 0.25 * x) == pytest.approx(4.0)
    assert metrics.least_squares_gain(x, torch.zeros_like(x)) == 0.0
    gain = metrics.least_squares_gain(x, rebuilt)
    errors = [metrics.fvu(x, scale * rebuilt, about="zero") for scale in (gain, gain - 0.05, gain + 0.05)]
    assert errors[0] == min(errors)


def one_at_a_time(W, rows=500, *, seed=0):
    """Rows with one feature on, or none, and the activations they make."""
    generator = torch.Generator().manual_seed(seed)
    on = torch.randint(0, W.shape[1] + 1, (rows,), generator=generator)
    values = torch.rand(rows, 1, generator=generator) + 0.1
    features = values * torch.nn.functional.one_hot(on, W.shape[1] + 1)[:, :-1]
    return features, features @ W.T


def test_recovery_of_a_perfect_dictionary_is_perfect_in_every_score():
    W = 1.1 * polygon(5)
    features, x = one_at_a_time(W)
    latents = torch.cat([features * 1.1, torch.zeros(len(x), 1)], 1)[:, [5, 2, 0, 1, 4, 3]]
    decoder = torch.cat([polygon(5).T, -torch.ones(1, 2)])[[5, 2, 0, 1, 4, 3]]
    found = metrics.recovery(W, features, x, latents, decoder, torch.zeros(2))
    assert found.signed_mcc == pytest.approx(1.0)
    assert found.recovered == 5
    assert found.f1 == pytest.approx(1.0)
    assert found.fvu == pytest.approx(0.0, abs=1e-9)
    assert found.fvu_zero == pytest.approx(0.0, abs=1e-9)
    assert found.l0 == pytest.approx((features > 0).float().sum(1).mean().item())
    assert found.dead == pytest.approx(1 / 6)
    assert found.shrinkage == pytest.approx(0.0, abs=1e-5)


def test_recovery_of_half_a_dictionary_is_half():
    features, x = one_at_a_time(TWO_DIGONS)
    kept = [0, 2]
    found = metrics.recovery(TWO_DIGONS, features, x, features[:, kept], TWO_DIGONS.T[kept], torch.zeros(2))
    lost = features[:, [1, 3]].square().sum() / features.square().sum()
    assert found.signed_mcc == pytest.approx(1 / 2)
    assert found.recovered == 2
    assert found.f1 == pytest.approx(1 / 2)
    assert found.fvu_zero == pytest.approx(lost.item(), rel=1e-5)
    assert found.shrinkage == pytest.approx(lost.item(), rel=1e-4)
    assert found.dead == 0.0


def test_recovery_asks_only_for_features_that_are_represented_and_sees_bias_and_shrinkage():
    W = torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, 0.2]])
    features, x = one_at_a_time(W)
    bias = torch.tensor([0.3, -0.1])
    rebuilt = 0.8 * features[:, :2] + bias
    found = metrics.recovery(W, features, x, 0.4 * features[:, :2], 2 * torch.eye(2), bias)
    assert (found.signed_mcc, found.recovered) == (pytest.approx(1.0), 2)
    assert found.shrinkage == pytest.approx(0.2, abs=1e-5)
    assert found.fvu == pytest.approx(metrics.fvu(x, rebuilt), rel=1e-5)

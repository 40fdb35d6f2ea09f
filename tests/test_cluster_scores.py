"""Scores of clusters against scikit-learn, by hand, and where there is nothing; maps keep blobs apart."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import silhouette_score

from toolkit.cluster_scores import (
    Score,
    cosine_distances,
    euclidean_distances,
    nearest,
    purity,
    scores,
    silhouette,
)
from toolkit.errors import UserError
from toolkit.maps import umap_plane


def points(n, d, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d))).float()


def blobs(n, d, kinds, apart):
    labels = torch.arange(n) % kinds
    return points(n, d) + apart * points(kinds, d, seed=1)[labels], labels


@pytest.mark.parametrize(("metric", "distances"), [("cosine", cosine_distances), ("euclidean", euclidean_distances)])
def test_the_silhouette_is_scikit_learns(metric, distances):
    rows, labels = blobs(60, 5, 4, 2)
    labels[labels == 3] = 5  # a number no point has, as labels of tokens may have
    labels[7] = 3  # and a point alone
    expected = silhouette_score(rows.numpy(), labels.numpy(), metric=metric)
    assert silhouette(distances(rows), labels).item() == pytest.approx(expected, abs=1e-5)
    drawn = torch.stack([labels.roll(s) for s in range(3)])
    each = [silhouette_score(rows.numpy(), one.numpy(), metric=metric) for one in drawn]
    np.testing.assert_allclose(silhouette(distances(rows), drawn), each, atol=1e-5)


def test_one_label_alone_has_no_silhouette_and_all_the_purity():
    D = euclidean_distances(points(10, 3))
    same = torch.zeros(10, dtype=torch.int64)
    assert silhouette(D, same).item() == 0
    assert purity(nearest(D, 3), same).item() == 1
    assert Score(1.0, torch.ones(5)).beyond_chance == 0


def test_purity_by_hand():
    line = torch.tensor([[0.0], [1.0], [3.0], [6.0]])
    neighbours = nearest(euclidean_distances(line), 1)
    assert neighbours.flatten().tolist() == [1, 0, 1, 2]
    labels = torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1]])
    torch.testing.assert_close(purity(neighbours, labels), torch.tensor([0.75, 0.5, 0.75], dtype=torch.float64))
    assert Score(0.75, torch.tensor([0.4, 0.6])).beyond_chance == pytest.approx(0.5)
    with pytest.raises(UserError, match="4 neighbours need more points"):
        nearest(euclidean_distances(line), 4)


def test_a_point_is_never_its_own_neighbour():
    twins = torch.ones(6, 3)
    assert not (nearest(cosine_distances(twins), 3) == torch.arange(6)[:, None]).any()


def test_labels_without_a_place_score_as_their_permutations_and_blobs_far_more():
    p_values = []
    for seed in range(100):
        D, labels = cosine_distances(points(40, 6, seed)), torch.arange(40) % 3
        found = scores(D, labels, k=4, draws=39, seed=seed)["silhouette"]
        p_values.append((1 + (found.permuted >= found.found).sum().item()) / 40)
    assert stats.kstest(p_values, "uniform").pvalue > 0.001
    rows, labels = blobs(60, 6, 3, 3)
    found = scores(cosine_distances(rows), labels, k=4, draws=99, seed=0)
    assert found["purity"].beyond_chance > 0.9
    assert found["silhouette"].found > found["silhouette"].permuted.max() + 0.3


@pytest.mark.slow
def test_a_map_keeps_blobs_apart_and_follows_its_seed():
    rows, labels = blobs(90, 20, 3, 2)
    a, b, c = (umap_plane(rows, seed=seed, neighbours=10) for seed in (0, 0, 1))
    assert a.shape == (90, 2)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert purity(nearest(euclidean_distances(a), 5), labels) > 0.95
    with pytest.raises(UserError, match="a map with 15 neighbours needs more points, got 15"):
        umap_plane(rows[:15], seed=0)

"""The planted embedding holds what it says it holds."""

import pytest
import torch

from toolkit.errors import UserError
from toolkit.planted_embedding import Planting, plant

WORLD = Planting(
    tokens=500, d=24, atoms=48, active=3, clusters=3, clustered=20, circles=(7, 12), pairs=(30,), noise=0.0
)
TRUTH = plant(WORLD, seed=0)


def test_rows_are_their_codes_times_the_dictionary_but_for_circles_and_second_members():
    assert TRUTH.rows.dtype == torch.float32
    error = (TRUTH.rows - TRUTH.codes @ TRUTH.dictionary).norm(dim=1)
    added = torch.cat([*TRUTH.circles, TRUTH.pairs[0][:, 1]])
    assert set((error > 1e-5).nonzero().flatten().tolist()) == set(added.tolist())
    torch.testing.assert_close(TRUTH.dictionary.norm(dim=1), torch.ones(48))


def test_codes_have_as_many_atoms_as_asked_and_the_sign_asked():
    plain = Planting(tokens=300, d=16, atoms=32, active=5)
    codes = plant(plain, seed=1).codes
    assert ((codes != 0).sum(1) == 5).all()
    assert (codes >= 0).all()
    signed = plant(Planting(tokens=300, d=16, atoms=32, active=5, signed=True), seed=1).codes
    assert 0.4 < (signed[signed != 0] > 0).float().mean() < 0.6


def test_clusters_share_an_atom_circles_are_circles_and_pairs_have_one_offset():
    for atom, members in enumerate(TRUTH.clusters):
        assert (TRUTH.codes[members, atom] > 0).all()
        assert ((TRUTH.codes[members] != 0).sum(1) == 3).all()
    for members in TRUTH.circles:
        x = TRUTH.rows[members] - TRUTH.rows[members].mean(0)
        torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x)))
        steps = (x - x.roll(1, 0)).norm(dim=1)
        torch.testing.assert_close(steps, steps[:1].expand_as(steps))
        assert torch.linalg.matrix_rank(x, rtol=1e-4) == 2
    first, second = TRUTH.rows[TRUTH.pairs[0]].unbind(1)
    torch.testing.assert_close(second - first, TRUTH.offsets[:1].expand(30, -1), rtol=1e-4, atol=1e-5)


def test_a_family_of_atoms_lies_together_and_each_member_has_one_of_its_own():
    world = Planting(tokens=400, d=200, atoms=40, active=2, clusters=2, clustered=50, family=5)
    truth = plant(world, seed=0)
    torch.testing.assert_close(truth.dictionary.norm(dim=1), torch.ones(40))
    cosines = truth.dictionary @ truth.dictionary.T
    for at, members in enumerate(truth.clusters):
        own = slice(5 * at, 5 * at + 5)
        within = cosines[own, own][~torch.eye(5, dtype=torch.bool)]
        assert within.mean().item() == pytest.approx(0.5, abs=0.07)
        assert (truth.codes[members, own] > 1).sum(1).tolist() == [1] * 50
    assert cosines[:5, 5:10].abs().mean() < 0.15


def test_parts_do_not_overlap_and_noise_is_as_large_as_asked():
    parts = torch.cat([*TRUTH.clusters, *TRUTH.circles, TRUTH.pairs[0].flatten()])
    assert len(parts.unique()) == len(parts) == 3 * 20 + 19 + 60
    plain = Planting(tokens=2000, d=30, atoms=60, noise=0.1)
    truth = plant(plain, seed=0)
    assert (truth.rows - truth.codes @ truth.dictionary).std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.equal(truth.rows, plant(plain, seed=0).rows)
    assert not torch.equal(truth.rows, plant(plain, seed=1).rows)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tokens": 10, "circles": (7, 12)}, "19 tokens in clusters, circles and pairs do not fit into 10"),
        ({"active": 200}, "active must lie in"),
        ({"circles": (2,)}, "a circle needs at least 3 tokens"),
        ({"atoms": 4, "clusters": 5}, "the clusters need 5 atoms of their own, and there are 4"),
    ],
)
def test_what_cannot_be_planted_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        Planting(**given)

"""How outputs moved: Pythagoras for both distances, another optimiser as oracle, hand-made cases."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit.errors import UserError
from toolkit.movements import centred, distances, explained_nats, movements


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


P, Q = draw(8, 30).log_softmax(1), (draw(8, 30) + 0.7 * draw(8, 30, seed=1)).log_softmax(1)
E = centred(draw(3, 30, seed=2), "kl")
WANTED, UP = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), torch.ones(8, dtype=torch.float64)


def tilt(p, e, t):
    return (p + t * e).log_softmax(-1)


def nearest(p, q, e):
    """t >= 0 at which the tilted p is nearest to q, by another optimiser."""
    found = minimize_scalar(
        lambda t: float(distances(tilt(p, e, t)[None], q[None], "kl")), bounds=(0, 50), options={"xatol": 1e-12}
    )
    return found.x


def test_divergence_splits_into_what_the_nearest_tilt_explains_and_the_rest():
    found = movements(P, Q, E, WANTED, UP, divergence="kl")
    some = False
    for i in range(8):
        t = nearest(P[i], Q[i], E[WANTED[i]])
        r = tilt(P[i], E[WANTED[i]], t)[None]
        rest = distances(r, Q[i : i + 1], "kl")
        assert float(found.divergence[i] - found.explained[i]) == pytest.approx(float(rest), abs=1e-6)
        if t > 1e-3:
            some = True
            assert float(distances(P[i : i + 1], r, "kl")) == pytest.approx(float(found.explained[i]), abs=1e-6)
            # the theorem needs the nearest tilt: at another the parts do not add up
            far = tilt(P[i], E[WANTED[i]], t + 1.0)[None]
            parts = distances(far, Q[i : i + 1], "kl") + distances(P[i : i + 1], far, "kl")
            assert float(parts) > float(found.divergence[i]) + 0.01
    assert some


@pytest.mark.parametrize("t", [1e-3, 0.1, 1.0, 8.0, 40.0])
def test_a_tilt_along_the_effect_is_on_target_altogether_and_against_it_not_at_all(t):
    moved = torch.stack([tilt(p, E[j], t) for p, j in zip(P, WANTED, strict=True)])
    found = movements(P, moved, E, WANTED, UP, divergence="kl")
    torch.testing.assert_close(found.explained, found.divergence, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.along[torch.arange(8), WANTED], torch.full((8,), t, dtype=torch.float64))
    against = movements(P, moved, E, WANTED, -UP, divergence="kl")
    assert against.explained.max() < 1e-12
    assert (against.along[torch.arange(8), WANTED] < 0).all()


def test_small_movements_are_split_by_the_fisher_metric():
    change = 1e-3 * draw(8, 30, seed=3)
    e, p = E[WANTED], P.exp()

    def covariance(a, b):
        return (p * a * b).sum(1) - (p * a).sum(1) * (p * b).sum(1)

    t = (covariance(change, e) / covariance(e, e)).clamp(min=0)
    found = explained_nats(P, (P + change).log_softmax(1), e)
    torch.testing.assert_close(found, t.square() * covariance(e, e) / 2, rtol=0.02, atol=1e-9)


def test_squared_distances_by_hand():
    clean, moved = torch.zeros(2, 3), torch.tensor([[3.0, 4.0, 0.0], [-3.0, 4.0, 0.0]])
    effects = torch.tensor([[2.0, 0.0, 0.0], [2.0, 1.0, 0.0]])
    found = movements(clean, moved, effects, torch.tensor([0, 0]), torch.ones(2), divergence="squared")
    np.testing.assert_allclose(found.divergence, [12.5, 12.5])
    np.testing.assert_allclose(found.explained, [4.5, 0.0])  # 3 along the first axis, and -3
    # 3 / 2 along the first effect; of the second what is not along the first is (0, 1, 0)
    np.testing.assert_allclose(found.along, [[1.5, 4.0], [-1.5, 4.0]])


def test_movement_along_other_effects_is_the_least_squares_slope_on_what_the_wanted_one_lacks():
    change = draw(8, 30, seed=4)
    found = movements(torch.zeros_like(change), change, E, WANTED, UP, divergence="squared").along
    for i, j in enumerate(WANTED.tolist()):
        for k in range(3):
            others = torch.stack([E[k], E[j]], 1) if k != j else E[[j]].mT
            # a slope on e_k beside e_j, of a movement with its part along e_j taken out, is the slope on the residual
            slope = torch.linalg.lstsq(others, change[i, :, None]).solution[0, 0]
            assert float(found[i, k]) == pytest.approx(float(slope), abs=1e-9)


def test_parallel_effects_are_not_told_apart():
    effects, clean = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.zeros(1, 2)
    found = movements(clean, clean + 1, effects, torch.tensor([0]), torch.ones(1), divergence="squared")
    assert found.along[0, 0] == 1
    assert found.along[0, 1].isnan()


def test_a_constant_on_all_logits_is_no_effect():
    torch.testing.assert_close(centred(E + 5, "kl"), E)
    torch.testing.assert_close(centred(E + 5, "squared"), E + 5)


def test_which_attribute_was_wanted_may_be_said_on_another_device():
    with FakeTensorMode():  # refuses to mix devices, as a GPU does
        there = {"device": "meta"}
        clean, effects, signs = torch.empty(4, 7, **there), torch.empty(3, 7, **there), torch.ones(4, **there)
        wanted = torch.zeros(4, dtype=torch.long)
        found = movements(clean, clean + 1, effects, wanted, signs, divergence="squared")
        assert found.along.shape == (4, 3)
        assert found.along.device.type == "meta"


def test_an_unknown_divergence_is_named():
    with pytest.raises(UserError, match="unknown divergence 'kll': did you mean 'kl'"):
        distances(P, Q, "kll")

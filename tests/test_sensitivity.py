"""Distances to thresholds and the Jacobian's singular vectors: closed forms, Jacobians by autograd, refusals."""

import numpy as np
import pytest
import random_models
import torch

from toolkit import sensitivity
from toolkit.downstream import LanguageDownstream
from toolkit.errors import UserError
from toolkit.language import load_model
from toolkit.sensitivity import along, fisher_forms, sensitive_directions, threshold_distances
from toolkit.sphere_search import unit_rows

EXACT = 1.011
"""A bracket of a factor of 2 halved six times."""


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def reached(f, truth, thresholds, furthest):
    """The distances of curves f(distance, curve) are `truth` within the bracket, and never below it."""
    found = threshold_distances(f, truth.shape[1], thresholds, furthest=furthest)
    assert (found >= truth * (1 - 1e-12)).all()
    assert (found <= truth * EXACT).all()
    return found


def test_a_quadratic_divergence_passes_t_nats_at_the_root_of_2t_over_its_form():
    form = 10.0 ** torch.linspace(-2, 2, 50).double()
    thresholds = [0.01, 0.1, 1.0]
    truth = (2 * torch.tensor(thresholds).double()[:, None] / form).sqrt()
    reached(lambda t, which: form[which] * t**2 / 2, truth, thresholds, 20.0)


def test_closed_forms_of_other_shapes():
    t = torch.tensor([0.2, 0.5]).double()
    truth = torch.stack([t, t**2, t.log1p(), -(1 - t).log()], 1)

    def curves(x, which):
        return torch.stack([x, x.sqrt(), x.expm1(), 1 - (-x).exp()])[which, torch.arange(len(x))]

    reached(curves, truth, t.tolist(), 3.0)


def test_the_first_of_several_crossings_by_a_dense_scan():
    rates = torch.linspace(0.3, 1.0, 20).double()

    def waves(x, which):
        return torch.sin(rates[which] * x) ** 2

    found = threshold_distances(waves, 20, [0.5], furthest=8.0)
    grid = torch.linspace(1e-4, 8, 80_000).double()
    first = torch.stack([grid[(torch.sin(rate * grid) ** 2 >= 0.5).nonzero()[0, 0]] for rate in rates])
    torch.testing.assert_close(found[0], first, rtol=0.0115, atol=0)


def test_what_is_not_reached_is_censored_and_the_furthest_itself_counts():
    found = threshold_distances(lambda t, which: t * (which + 1), 2, [4.0, 8.0, 9.0], furthest=4.0)
    assert found.isinf().tolist() == [[False, False], [True, False], [True, True]]
    torch.testing.assert_close(found[0, 0], torch.tensor(4.0).double(), rtol=0.011, atol=0)


def test_a_threshold_passed_before_the_first_rung_is_bounded_by_it():
    rung = 4.0 / 2 ** (sensitivity.RUNGS - 1)
    found = threshold_distances(lambda t, which: torch.full_like(t, 5.0), 3, [1.0], furthest=4.0)
    assert (found <= rung / 64 * 1.001).all()
    assert (found > 0).all()


@pytest.mark.parametrize("share", [0.99, 0.979, 0.7, 0.51, 0.26, 0.13, 0.02, 0.001])
def test_below_the_first_rung_the_crossing_is_exceeded_by_a_46th_of_it_at_most(share):
    rung = 4.0 / 2 ** (sensitivity.RUNGS - 1)
    found = threshold_distances(lambda t, which: t, 1, [share * rung], furthest=4.0)[0, 0]
    assert share * rung <= found <= share * rung + rung / 46
    if share == 0.979:
        assert found > share * rung + rung / 50  # it does come near to that


def test_curves_have_thresholds_of_their_own_and_are_asked_no_further_than_needed():
    asked = []

    def line(t, which):
        asked.append(t.max().item())
        return t

    own = torch.tensor([[0.01, 0.5], [0.1, 0.02]]).double()
    found = threshold_distances(line, 2, own, furthest=1_000.0)
    assert (found >= own).all()
    assert (found <= own * 1.6).all()  # the first rung is .49: below it distances are to a 46th of it
    assert max(asked) < 2


@pytest.mark.parametrize(
    ("thresholds", "furthest", "message"),
    [([], 1.0, "one at least"), ([0.1, 0.0], 1.0, "above 0 nats"), ([0.1], 0.0, "furthest distance must be above 0")],
)
def test_thresholds_and_distances_that_mean_nothing_are_refused(thresholds, furthest, message):
    with pytest.raises(UserError, match=message):
        threshold_distances(lambda t, which: t, 3, thresholds, furthest=furthest)


class Reader:
    """tanh, then a softmax; each place adds its own bias."""

    def __init__(self, d=7, outputs=11, places=4):
        self.A, self.B = draw(9, d), draw(outputs, 9, seed=1)
        self.bias = draw(places, outputs, seed=2)

    def __call__(self, rows, at):
        return (torch.tanh(rows @ self.A.mT / 3) @ self.B.mT + self.bias[at]).log_softmax(1)


def explicit(rest, x):
    """G of each place from its whole Jacobian, (places, d, d)."""
    found = []
    for place in range(len(x)):
        at = torch.tensor([place])
        J = torch.autograd.functional.jacobian(lambda row: rest(row[None], at)[0], x[place])  # noqa: B023
        p = rest(x[place][None], at)[0].exp()
        found.append(J.mT @ (p[:, None] * J))
    return torch.stack(found)


def test_sensitive_directions_are_the_top_eigenvectors_of_the_explicit_fisher_information():
    rest, x = Reader(), draw(4, 7, seed=3)
    G = explicit(rest, x)
    found = sensitive_directions(rest, x, count=2, rounds=60, tolerance=1e-7, seed=0)
    values, vectors = torch.linalg.eigh(G)
    torch.testing.assert_close(found.fisher, values.flip(1)[:, :2])
    cosines = (found.directions * vectors.flip(2)[:, :, :2].mT).sum(2).abs()
    torch.testing.assert_close(cosines, torch.ones(4, 2).double(), atol=1e-7, rtol=0)
    assert found.residual.max() < 1e-6
    early = sensitive_directions(rest, x, count=1, rounds=1, seed=0)
    assert early.residual.max() > 0.01  # what is not settled says so


def test_no_direction_is_more_sensitive_and_divergences_of_small_steps_are_half_the_form():
    rest, x = Reader(), draw(4, 7, seed=3)
    units = unit_rows(draw(50, 4, 7, seed=4))
    form = fisher_forms(rest, x, units)
    G = explicit(rest, x)
    torch.testing.assert_close(form, torch.einsum("wpi,pij,wpj->wp", units, G, units))
    assert (form <= sensitive_directions(rest, x, count=1, seed=0).fisher[:, 0] * 1.0001).all()
    at = torch.arange(4)
    curve = along(rest, x, rest(x, at), units)
    nats = curve(torch.full((200,), 1e-4).double(), torch.arange(200)).view(50, 4)
    torch.testing.assert_close(nats, form * 1e-8 / 2, rtol=2e-3, atol=1e-14)
    distances = threshold_distances(curve, 200, [1e-6], furthest=1.0)[0].view(50, 4)
    torch.testing.assert_close(distances, (2e-6 / form).sqrt(), rtol=0.02, atol=0)


def test_blocks_change_nothing(monkeypatch):
    rest, x = Reader(), draw(4, 7, seed=3)
    units = unit_rows(draw(5, 4, 7, seed=4))
    curve = along(rest, x, rest(x, torch.arange(4)), units)
    whole = threshold_distances(curve, 20, [0.05], furthest=5.0), fisher_forms(rest, x, units)
    monkeypatch.setattr(sensitivity, "BLOCK", 3)
    parts = threshold_distances(curve, 20, [0.05], furthest=5.0), fisher_forms(rest, x, units)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("kind", [random_models.gpt2, random_models.llama], ids=["gpt2", "llama"])
def test_a_language_models_directions_are_those_of_its_whole_jacobian(kind, tmp_path):
    kind().save_pretrained(tmp_path)
    places = torch.tensor([[0, 2], [1, 3], [2, 1]])
    rest = LanguageDownstream(load_model(str(tmp_path)), "blocks.0.hook_resid_post", random_models.tokens(), places)
    x = rest.activations
    found = sensitive_directions(rest, x, count=2, rounds=60, tolerance=1e-3, seed=0)
    values, vectors = torch.linalg.eigh(explicit(rest, x))
    torch.testing.assert_close(found.fisher, values.flip(1)[:, :2], rtol=1e-3, atol=1e-9)
    cosines = (found.directions[:, 0] * vectors[:, :, -1]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(3), atol=1e-2, rtol=0)


def test_more_directions_than_dimensions_are_refused():
    with pytest.raises(UserError, match="8 sensitive directions were asked for, and activations have 7 dimensions"):
        sensitive_directions(Reader(), draw(4, 7), count=8, seed=0)

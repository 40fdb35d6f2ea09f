"""Same-norm perturbations: a direction that is read is special, one that is not or that is random is not."""

import numpy as np
import pytest
import torch
from planted_reader import DOCUMENTS, ROWS, D, Fixed, are_uniform, case_of, random_case, read_and_idle, reader

from controls.finders import Latents
from controls.natural_moves import PLACES, Ground, net
from controls.perturbations import (
    ANGLE,
    RADII,
    _circles,
    covariance,
    isotropic,
    latent_swap,
    real,
    sphere,
)
from toolkit.errors import UserError
from toolkit.sae import SAE, SAEConfig

THREE = {"isotropic": isotropic, "covariance": covariance, "real": real}
SEEDS = 60


@pytest.mark.parametrize("log", [True, False], ids=["log-probabilities", "numbers"])
@pytest.mark.parametrize("name", THREE)
def test_the_direction_that_is_read_stands_out_and_the_idle_one_does_not(name, log):
    used, idle = THREE[name](read_and_idle(log=log))
    assert (used.control, used.feature, idle.feature) == (f"perturbations.{name}", "used=1", "idle=1")
    assert used.p <= 0.05
    assert idle.p > 0.5
    assert used.note == "99 draws: p cannot be below 0.01"


def test_the_statistic_is_the_mean_log_divergence_of_the_moved_outputs():
    case = read_and_idle(draws=5)
    used = isotropic(case)[0]
    ground = Ground(case)
    move = ground.moves()[0]
    x, outputs = ground.rows(move.where).float(), case.subject.downstream
    at = torch.arange(len(x))
    y = case.subject.labels["used=1"][ground.subject.places[move.where.at.numpy()]]
    to = move.length * move.unit * torch.from_numpy(1.0 - 2.0 * y)[:, None]  # added where it is off
    clean, moved = outputs(x, at).double(), outputs((x + to).float(), at).double()
    kl = torch.nn.functional.kl_div(clean, moved, log_target=True, reduction="none").sum(1)  # KL(moved || clean)
    assert used.observed == pytest.approx(float(kl.log().mean()), abs=1e-4)
    assert move.length == pytest.approx(2, abs=0.15)
    assert len(x) == PLACES
    assert y.mean() == 0.5


def test_places_are_of_documents_that_directions_were_not_taken_from():
    ground = Ground(read_and_idle())
    assert not ground.learn[ground.subject.places].any()
    assert 0.4 < ground.learn.mean() < 0.6
    at = torch.tensor([3, 0])
    expected = ground.case.subject.downstream(ground.subject.activations[ground.subject.places[at]], None)
    torch.testing.assert_close(
        ground.subject.downstream(ground.subject.activations[ground.subject.places[at]], at), expected
    )


@pytest.mark.parametrize("name", THREE)
def test_p_is_uniform_where_the_direction_is_one_of_those_drawn(name):
    p = [THREE[name](random_case(seed, draw=name))[0].p for seed in range(SEEDS)]
    assert are_uniform(p)


def test_the_isotropic_null_alone_is_too_weak_for_what_activations_fill():
    """Where activations fill two dimensions of twelve, and those are read, any direction of the data stands out."""
    rng = np.random.default_rng(0)
    X = torch.from_numpy(rng.normal(size=(DOCUMENTS * ROWS, D)) * np.r_[2, 2, np.full(D - 2, 0.05)])
    labels = {"nothing=1": rng.integers(0, 2, len(X))}
    finder = Fixed(torch.eye(D)[:1] + torch.eye(D)[1:2])

    def outputs(x):
        return torch.stack([x[:, 0], x[:, 1]], 1)

    case = case_of(X, labels, outputs, finder=finder, draws=99)
    assert isotropic(case)[0].p <= 0.05
    assert covariance(case)[0].p > 0.2
    assert real(case)[0].p > 0.2


def test_the_sphere_peaks_at_what_is_read():
    """Exactly there where outputs are linear and distances squared; log-probabilities bend far out."""
    found = sphere(read_and_idle(log=False))
    assert [o.feature for o in found] == ["used=1", "idle=1"] * len(RADII)
    used, idle = ([o for o in found if o.feature == name] for name in ("used=1", "idle=1"))
    assert [o.statistic for o in used] == [
        f"log ratio of the mean KL at the direction and {ANGLE:.0f} degrees from it, at radius {r:g}" for r in RADII
    ]
    assert all(o.p <= 0.05 for o in used)
    assert all(o.p > 0.5 for o in idle)
    assert sphere(read_and_idle())[0].p <= 0.05


def test_points_of_a_circle_lie_on_the_sphere_at_their_angle():
    units, towards = torch.eye(D)[:3].double(), torch.from_numpy(np.random.default_rng(0).normal(size=(4, D)))
    points = _circles(units, towards)
    assert points.shape == (3, 1 + 2 * 4, D)
    torch.testing.assert_close(points.norm(dim=2), torch.ones(3, 9).double())
    cosines = (points * units[:, None]).sum(2)
    assert torch.equal(cosines[:, 0], torch.ones(3).double())
    torch.testing.assert_close(cosines[:, 1:], torch.full((3, 8), np.cos(np.deg2rad(ANGLE))).double())
    torch.testing.assert_close(points[:, 1:5] + points[:, 5:], 2 * cosines[:, 1:5, None] * units[:, None])


def test_peaks_on_the_sphere_have_uniform_p_for_random_directions():
    found = [[o.p for o in sphere(random_case(seed))] for seed in range(SEEDS)]
    assert all(are_uniform(p) for p in np.transpose(found))


def latents_case(outputs, *, which=(0,), seed=0, draws=99):
    """Orthogonal latents: the first is on in half of the rows, even ones in a third, odd ones in a quarter."""
    rng = np.random.default_rng([seed, 7])
    on = rng.random((DOCUMENTS * ROWS, D)) < np.r_[1 / 2, np.where(np.arange(1, D) % 2, 1 / 4, 1 / 3)]
    latents = on * rng.uniform(0.5, 2, on.shape)
    turn = np.linalg.qr(rng.normal(size=(D, D)))[0]
    eye = torch.from_numpy(turn).float()[None]
    parameters = {"W_enc": eye, "W_dec": eye, "b_enc": torch.full((1, D), -1e-3), "b_dec": torch.zeros(1, D)}
    sae = SAE(SAEConfig(architecture="l1", width=D), "rows", parameters, torch.zeros(1, 1))
    finder = Latents(sae, which)
    X = torch.from_numpy(latents @ turn).float()
    labels = finder.labels(None, X)
    assert all((labels[f"sae:{k}"] == on[:, k]).all() for k in which)
    return case_of(X, labels, lambda x: outputs(x, eye[0], rng), finder=finder, seed=seed, draws=draws)


def test_a_swap_moves_outputs_where_the_latent_is_read_and_not_where_neither_is():
    used, idle = latent_swap(latents_case(lambda x, W, rng: 3 * x @ W[:1].T + 0.05 * x @ W[1::2].T, which=(0, 4)))
    assert used.p <= 0.05
    assert idle.p > 0.5
    assert "with latent" in used.note
    partner = int(used.note.split("latent ")[1].split(",")[0])
    assert partner % 2 == 0  # about as often on


def test_swaps_have_uniform_p_where_the_reader_is_random():
    def case(seed):
        R = torch.from_numpy(np.random.default_rng([seed, 9]).normal(size=(D, 2))).float()
        return latents_case(lambda x, W, rng: x @ R, seed=seed, draws=19)

    assert are_uniform([latent_swap(case(seed))[0].p for seed in range(SEEDS)])


def test_a_swap_needs_an_sae():
    with pytest.raises(UserError, match="give --sae"):
        latent_swap(read_and_idle())


def test_a_direction_of_length_zero_is_refused():
    case = random_case(0)
    nothing = case_of(
        case.subject.activations,
        dict(case.subject.labels),
        reader(np.random.default_rng(0)),
        finder=Fixed(torch.zeros(1, D)),
    )
    with pytest.raises(UserError, match="'nothing=1' has a direction of length 0"):
        isotropic(nothing)


def test_a_label_that_is_one_thing_where_directions_are_taken_from_is_refused():
    case = read_and_idle()
    y = np.where(Ground(case).learn, 0, case.subject.labels["used=1"])
    for finder in (None, Fixed(torch.eye(D)[:1])):
        half = case_of(case.subject.activations, {"half=1": y}, reader(np.random.default_rng(0)), finder=finder)
        with pytest.raises(UserError, match="'half=1' has a direction of length 0"):
            real(half)


def test_activations_that_never_change_are_refused_and_outputs_that_never_change_reject_nothing():
    labels = dict(random_case(0).subject.labels)
    with pytest.raises(UserError, match="never change"):
        isotropic(case_of(torch.ones(DOCUMENTS * ROWS, D), labels, reader(np.random.default_rng(0))))
    with pytest.raises(UserError, match="not finite"):
        isotropic(case_of(random_case(0).subject.activations, labels, lambda x: x[:, :2] + torch.nan))
    case = read_and_idle()
    still = case_of(case.subject.activations, dict(case.subject.labels), lambda x: torch.zeros(len(x), 3))
    assert [o.p for o in covariance(still)] == [1.0, 1.0]


def test_a_label_that_is_rare_is_tried_where_it_is_and_elsewhere():
    case = read_and_idle()
    y = np.zeros(len(case.subject.activations), int)
    y[[10, 200, 330, 590]] = 1
    X = case.subject.activations + 2 * torch.from_numpy(y)[:, None]
    move = Ground(case_of(X, {"rare=1": y}, reader(np.random.default_rng(0)))).moves()[0]
    assert len(move.where.at) == PLACES
    assert 0 < (move.where.sign < 0).sum() <= 4


def test_net_is_on_less_off_and_gives_nothing_for_no_movement():
    on, off = torch.tensor([1.0, 0.0, 0.0, -1.0]), torch.tensor([0.01, 0.0, 1.0, 0.5])
    found = net(on, off)
    assert found[0] == pytest.approx(0.99, abs=1e-5)
    assert found[1] == found[2] == 0
    assert found[3] < -1


@pytest.mark.parametrize("kind", ["isotropic", "covariance", "real", "latent-swap", "sphere"])
def test_they_are_registered(kind):
    import controls.perturbations  # noqa: F401
    from controls.registry import _CONTROLS

    assert _CONTROLS[f"perturbations.{kind}"].null
    assert not _CONTROLS[f"perturbations.{kind}"].dear

"""Same-norm perturbations: a direction that is read is special, one that is not or that is random is not."""

import numpy as np
import pytest
import torch
from planted_reader import DOCUMENTS, ROWS, D, Fixed, are_uniform, case_of, random_case, read_and_idle, reader

from controls import half_moments
from controls.asked_each import noted
from controls.finders import Latents
from controls.half_moments import spread, with_labels
from controls.natural_moves import PLACES, Ground, net
from controls.outcomes import Outcome
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
from controls.steering_nulls import ablate, erasure, family, steer
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


def latents_case(outputs, *, which=(0,), named=None, once=None, seed=0, draws=99):
    """Orthogonal latents: the first is on in half of the rows, even ones in a third, odd ones in a quarter.

    Of those the finder knows (`which`) some may be features (`named`); one may be on in a single row (`once`).
    """
    rng = np.random.default_rng([seed, 7])
    on = rng.random((DOCUMENTS * ROWS, D)) < np.r_[1 / 2, np.where(np.arange(1, D) % 2, 1 / 4, 1 / 3)]
    if once is not None:
        on[:, once] = np.arange(len(on)) == 0
    latents = on * rng.uniform(0.5, 2, on.shape)
    turn = np.linalg.qr(rng.normal(size=(D, D)))[0]
    eye = torch.from_numpy(turn).float()[None]
    parameters = {"W_enc": eye, "W_dec": eye, "b_enc": torch.full((1, D), -1e-3), "b_dec": torch.zeros(1, D)}
    sae = SAE(SAEConfig(architecture="l1", width=D), "rows", parameters, torch.zeros(1, 1))
    finder = Latents(sae, which)
    X = torch.from_numpy(latents @ turn).float()
    labels = finder.labels(None, X)
    assert all((labels[f"sae:{k}"] == on[:, k]).all() for k in which)
    labels = {f"sae:{k}": labels[f"sae:{k}"] for k in (which if named is None else named)}
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


def test_latents_that_are_left_out_of_the_labels_change_nothing_for_the_others():
    """An audit leaves out latents that are never on; the finder knows them still."""

    def outputs(x, W, rng):
        return 3 * x @ W[:1].T + 0.05 * x @ W[1::2].T

    for run in (isotropic, latent_swap, sphere):
        some, all_of_them = (run(latents_case(outputs, which=w, named=(0, 4), draws=9)) for w in ((1, 0, 4), (0, 4)))
        assert [o.feature for o in some] == [o.feature for o in all_of_them]
        assert {o.feature for o in some} == {"sae:0", "sae:4"}
        assert all(
            a.observed == b.observed and (a.null == b.null).all() for a, b in zip(some, all_of_them, strict=True)
        )


def test_a_finder_that_has_another_number_of_directions_than_features_is_refused():
    case = random_case(0)
    finder = Fixed(torch.eye(D)[:2], names=("nothing=1",))
    with pytest.raises(UserError, match="fixed has 2 directions for 1 features"):
        isotropic(case_of(case.subject.activations, dict(case.subject.labels), lambda x: x, finder=finder))


def test_a_latent_that_cannot_be_swapped_is_a_note_on_the_others():
    def outputs(x, W, rng):
        return 3 * x @ W[:1].T + 0.05 * x @ W[1::2].T

    (used,) = latent_swap(latents_case(outputs, which=(0, 5), once=5))
    assert (used.feature, used.p <= 0.05) == ("sae:0", True)
    assert "not asked: latent 'sae:5' is not on, with one as frequent off" in used.note
    with pytest.raises(UserError, match="'sae:5' is not on"):
        latent_swap(latents_case(outputs, which=(0, 5), named=(5,), once=5))


def with_one_that_cannot_be_moved():
    """Used, idle and a label that is never on where directions are taken from."""
    case = read_and_idle()
    y = np.zeros(len(case.subject.activations), int)
    y[np.flatnonzero(~Ground(case).learn)[:15]] = 1
    labels = {"rare=1": y, **case.subject.labels}
    return case_of(case.subject.activations, labels, reader(np.random.default_rng(0), log=False), draws=99)


CONTROLS = [isotropic, covariance, real, sphere, ablate, steer, family, erasure]


@pytest.mark.parametrize("run", CONTROLS, ids=[run.__name__ for run in CONTROLS])
def test_a_feature_that_cannot_be_moved_is_a_note_on_the_others(run):
    found = run(with_one_that_cannot_be_moved())
    assert {o.feature for o in found} == {"used=1", "idle=1"}
    assert all("not asked: feature 'rare=1' has a direction of length 0" in o.note for o in found)
    assert all(o.p <= 0.05 for o in found if o.feature == "used=1")


def test_notes_name_three_features_and_count_the_others():
    left = {name: f"feature {name!r} is dull: drop it" for name in "abcde"} | {"a": "outputs are not finite"}
    one = Outcome("c", "f", "s", 1.0, np.zeros(3), note="n")
    said = "n; not asked: feature 'a', outputs are not finite, feature 'b' is dull, feature 'c' is dull, 2 more"
    assert noted([one], left)[0].note == said
    assert noted([one], {}) == [one]
    with pytest.raises(UserError, match=r"not finite \(nor can 4 other features be asked\)"):
        noted([], left)


def test_the_ground_of_a_case_is_made_once():
    first, second = read_and_idle(), read_and_idle(seed=1)
    assert Ground.of(first) is Ground.of(first)
    assert Ground.of(second).case is second
    assert Ground.of(first).case is first


def test_moments_from_blocks_are_those_of_all_rows(monkeypatch):
    monkeypatch.setattr(half_moments, "AT_ONCE", 7)
    rng = np.random.default_rng(0)
    X, Y = 1000 + rng.normal(size=(50, 4)), rng.integers(0, 2, (50, 3))
    first, rest = torch.arange(0, 50, 3), torch.from_numpy(np.setdiff1d(np.arange(50), np.arange(0, 50, 3)))
    rows = torch.from_numpy(X)
    one, both = spread(rows, first), spread(rows, first) + spread(rows, rest)
    for found, among in ((one, first.numpy()), (both, np.arange(50))):
        assert found.count == len(among)
        np.testing.assert_allclose(found.mean.numpy(), X[among].mean(0))
        np.testing.assert_allclose(found.covariance.numpy(), np.cov(X[among].T, bias=True), atol=1e-9)
    expected = np.cov(np.c_[Y, X][first.numpy()].T, bias=True)[:3, 3:]
    np.testing.assert_allclose(with_labels(rows, torch.from_numpy(Y), first).numpy(), expected, atol=1e-9)


def test_natural_directions_are_those_of_least_squares():
    ground = Ground(read_and_idle())
    X, y = ground.subject.activations.numpy()[ground.learn], ground.table[ground.learn]
    expected = np.linalg.lstsq(np.c_[np.ones(len(y)), y], X, rcond=None)[0][1:]
    for move, row in zip(ground.moves(), expected, strict=True):
        np.testing.assert_allclose((move.length * move.unit).numpy(), row, atol=1e-5)
    means = np.stack([X[y[:, f] == 1].mean(0) - X[y[:, f] == 0].mean(0) for f in range(2)])
    np.testing.assert_allclose(ground.differences.numpy(), means, atol=1e-5)


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
    for finder in (None, Fixed(torch.eye(D)[:1], names=("half=1",))):
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

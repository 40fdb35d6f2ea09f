"""Interventions: a feature that is read moves its target as few directions do, others do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from concept_erasure import LeaceEraser
from planted_reader import DOCUMENTS, ROWS, D, Fixed, are_uniform, case_of, random_case, read_and_idle, reader

from controls import steering_nulls
from controls.decoding import deal, folded
from controls.natural_moves import Ground
from controls.prepared import chosen_places
from controls.steering_nulls import ERASED, MATCHED, MEMBERS, OWN, ablate, erasure, family, steer
from controls.subject import as_float
from toolkit.errors import UserError
from toolkit.steering import dual_basis

ALL = {"ablate": ablate, "steer": steer, "family": family, "erasure": erasure}
SEEDS = 60


@pytest.mark.parametrize("log", [True, False], ids=["log-probabilities", "numbers"])
@pytest.mark.parametrize("name", ALL)
def test_the_feature_that_is_read_stands_out_and_the_idle_one_does_not(name, log):
    found = ALL[name](read_and_idle(log=log))
    assert {o.control for o in found} == {f"interventions.{name}"}
    assert all(o.p <= 0.05 for o in found if o.feature == "used=1")
    assert all(o.p > 0.05 for o in found if o.feature == "idle=1")
    assert {o.feature for o in found} == {"used=1", "idle=1"}


@pytest.mark.parametrize("name", ["ablate", "steer"])
def test_p_is_uniform_where_the_direction_is_one_of_those_drawn(name):
    p = [ALL[name](random_case(seed))[0].p for seed in range(SEEDS)]
    assert are_uniform(p)


@pytest.mark.parametrize("name", ["ablate", "steer", "erasure"])
def test_p_is_uniform_where_the_label_is_of_nothing_and_the_direction_is_fitted(name):
    p = [ALL[name](random_case(seed, finder=False))[0].p for seed in range(SEEDS)]
    assert are_uniform(p)


def test_each_member_of_the_family_has_uniform_p_where_the_label_is_of_nothing():
    p = [[o.p for o in family(random_case(seed, finder=False, isotropic=True))] for seed in range(SEEDS)]
    assert all(are_uniform(column) for column in np.transpose(p))


def test_without_the_split_of_documents_fitted_directions_of_nothing_would_stand_out(monkeypatch):
    """The same noise in a direction and in what is looked for: why the documents are dealt."""
    kept = Ground.__init__

    def all_rows(self, case):
        kept(self, case)
        self.learn, self.subject = np.ones(len(self.learn), bool), case.subject

    monkeypatch.setattr(Ground, "__init__", all_rows)
    assert np.mean([steer(random_case(seed, finder=False))[0].p <= 0.1 for seed in range(20)]) > 0.5


def test_steering_takes_as_many_directions_as_there_are_draws():
    used = steer(read_and_idle(draws=999))[0]
    assert len(used.null) == 999
    assert used.note == ""
    assert used.p < 0.01
    assert steer(read_and_idle(draws=9))[0].note == "9 draws: p cannot be below 0.1"


def test_a_coordinate_is_replaced_by_that_of_a_row_with_the_other_label():
    ground = Ground(read_and_idle())
    move = ground.awake(ground.moves()[0])
    y = ground.subject.table[:, 0]
    rows = steering_nulls._partners(ground, move, np.random.default_rng(0))
    assert (y[rows] == 1 - y[ground.subject.places[move.where.at.numpy()]]).all()
    assert not ground.learn[rows].any()
    given = ground.subject.activations[rows].double()
    swapped = ground.rows(move.where) + torch.outer((given - ground.rows(move.where)) @ move.unit, move.unit)
    torch.testing.assert_close(swapped @ move.unit, given @ move.unit)


def test_a_named_target_is_what_counts():
    targets = {"used=1": 0, "idle=1": 0}
    used, idle = steer(read_and_idle(log=False, targets=targets))
    assert used.p <= 0.05 < idle.p


def test_a_dormant_part_of_a_direction_is_left_out():
    """Makelov et al. 2023: half of the direction is in a dimension that never varies, and is read."""
    rng = np.random.default_rng(4)
    X = rng.normal(size=(DOCUMENTS * ROWS, D))
    labels = {"idle=1": (X[:, 1] > 0).astype(int)}
    X[:, 0] = 1e-6 * rng.normal(size=len(X))
    finder = Fixed(torch.eye(D)[:1] + torch.eye(D)[1:2], names=("idle=1",))
    case = case_of(torch.from_numpy(X), labels, reader(rng), finder=finder, draws=99)
    ground = Ground(case)
    move = ground.moves()[0]
    awake = ground.awake(move)
    torch.testing.assert_close(awake.unit, torch.eye(D)[1].double(), atol=1e-5, rtol=0)
    assert awake.length == pytest.approx(move.length * 0.5**0.5)
    assert steer(case)[0].p > 0.05
    asleep = case_of(torch.from_numpy(X), labels, reader(rng), finder=Fixed(torch.eye(D)[:1], names=("idle=1",)))
    with pytest.raises(UserError, match="direction of length 0"):
        steer(asleep)


def correlated(seed=0):
    """An idle label that goes with the used one, and noise that is not round."""
    rng = np.random.default_rng(seed)
    used = rng.integers(0, 2, DOCUMENTS * ROWS)
    idle = np.where(rng.random(len(used)) < 0.7, used, 1 - used)
    X = rng.normal(size=(len(used), D)) * np.linspace(0.3, 1, D)
    X[:, 0] += 2 * used
    X[:, 1] += 2 * idle
    return case_of(torch.from_numpy(X), {"used=1": used, "idle=1": idle}, reader(rng), draws=99)


def test_members_are_the_probe_the_means_the_pattern_and_the_dual():
    ground = Ground(correlated())
    W = steering_nulls._read_outs(ground)
    moves = ground.moves()
    probe, means, pattern, dual = steering_nulls._members(ground, moves[1], W).numpy()
    assert len(MEMBERS) == 4
    assert abs(probe @ W[1]) == pytest.approx(np.linalg.norm(W[1]))
    assert abs(W[0] @ dual) < 1e-5 < abs(W[1] @ dual)  # the dual leaves the other read-out alone
    assert abs(W[0] @ pattern) < 1e-5
    assert (
        np.abs(dual - dual_basis(W[[1, 0]]).vectors[:, 0] / np.linalg.norm(dual_basis(W[[1, 0]]).vectors[:, 0])).max()
        < 1e-4
    )
    assert means[0] > 0.2  # the difference of means is fooled by what goes with the label
    assert abs(pattern[0]) < means[0] / 2
    torch.testing.assert_close(torch.from_numpy(pattern), moves[1].unit, atol=0.05, rtol=0)  # given the other label


def test_all_members_and_random_directions_move_outputs_equally_far():
    ground = Ground(correlated())
    where = ground.anywhere(8)
    vectors = steering_nulls._matched(ground, ground.drawn(5, np.random.default_rng(0)), where)
    kl = ground.log_divergence(vectors, where.sign[None], where).exp().mean(1)
    np.testing.assert_allclose(kl.numpy(), MATCHED, rtol=0.011)


def test_a_member_that_moves_nothing_counts_as_zero_and_says_so():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(DOCUMENTS * ROWS, D))
    y = (X[:, 1] > 0).astype(int)
    R = torch.zeros(D, 4)
    found = family(case_of(torch.from_numpy(X), {"idle=1": y}, lambda x: (x @ R).log_softmax(1)))
    assert all(o.observed == 0 and o.p == 1 and "no length moves outputs" in o.note for o in found)


def test_leace_erases_the_label_and_random_erasers_are_of_its_kind():
    case = read_and_idle()
    used = erasure(case)[0]
    before, after = (float(part.split()[0]) for part in used.note.removeprefix("held-out r ").split("before, "))
    assert before > 0.8
    assert abs(after) < 0.15
    ground = Ground(case)
    whitening = steering_nulls._whitening(ground)
    erasers = steering_nulls._erasers(ground, whitening, ground.moves()[0], np.random.default_rng(0))
    ones = (erasers.left * erasers.right).sum(1)  # each is a projection of rank 1
    torch.testing.assert_close(ones, torch.ones_like(ones))
    sigma = torch.cov(ground.subject.activations[torch.from_numpy(ground.learn)].double().mT)
    along = erasers.right @ sigma  # each takes out of Sigma what its concept explains: left goes with Sigma right
    cosines = torch.nn.functional.cosine_similarity(along, erasers.left)
    assert (cosines > 0.99).all()


def test_what_is_erased_is_what_concept_erasure_erases():
    case = read_and_idle(draws=3)
    ground = Ground(case)
    move, learn = ground.moves()[0], torch.from_numpy(ground.learn)
    y = torch.from_numpy(case.subject.labels["used=1"])[learn]
    eraser = LeaceEraser.fit(case.subject.activations[learn].double(), y, constrain_cov_trace=False)
    x = ground.rows(ground.places(move.number, ERASED))
    clean, moved = (case.subject.downstream(rows.float(), None).double() for rows in (x, eraser(x)))
    kl = (moved.exp() * (moved - clean)).sum(1)
    where = ground.places(move.number, ERASED)
    y_at, rate = (where.sign < 0).double(), case.subject.labels["used=1"].mean()
    weights = y_at * (rate / y_at.sum()) + (1 - y_at) * ((1 - rate) / (1 - y_at).sum())
    assert erasure(case)[0].observed == pytest.approx(float((kl @ weights).log()), abs=1e-3)


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.02])
def test_erasing_a_label_is_not_special_where_all_directions_are_read_alike(rate):
    """However rare the label is and however often it is on at the places: the share of p <= .05, and the median p."""
    p = [erasure(alike(rate, seed))[0].p for seed in range(40)]
    assert np.mean(np.array(p) <= 0.05) <= 0.125
    assert 0.3 <= np.median(p) <= 0.7


def alike(rate, seed):
    """Outputs are the activations in their units: whitened, every direction is read alike.

    Places are where an audit takes them, with the label at half of them.
    """
    rng = np.random.default_rng([seed, 11])
    y = (rng.random(60 * DOCUMENTS) < rate).astype(int)
    X = rng.normal(size=(len(y), D))
    X[:, 0] += 2 * y
    case = case_of(torch.from_numpy(X), {"rare=1": y}, lambda x: x.clone(), seed=seed, draws=39)
    at = chosen_places(y[:, None], case.subject.groups, 400, seed=seed)
    alone = replace(case.subject, places=at, weigh=lambda outputs: 1 / torch.from_numpy(X.std(0)))
    return replace(case, subject=alone)


@pytest.mark.parametrize("scale", [1.0, 1e4], ids=["round", "lopsided"])
def test_what_is_left_of_the_label_is_what_a_read_out_of_erased_rows_finds(scale):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, DOCUMENTS * ROWS)
    X = torch.from_numpy(rng.normal(size=(len(y), D)) + 2 * y[:, None] * (np.arange(D) < 3))
    X[:, -1] *= scale
    dealt = deal(np.arange(len(y)) % 3)
    data = folded(X, dealt)
    assert (data.basis is not None) == (scale > 1)
    left, right = (torch.from_numpy((np.arange(D) < 3) + 0.1 * rng.normal(size=D)) for _ in range(2))
    left[-1], right[-1] = left[-1] * scale, right[-1] / scale
    right = right / (left @ right)
    rows = X - torch.outer((X - X.mean(0)) @ right, left)
    Y = as_float(np.stack([y, rng.permutation(y)], 1))
    found = steering_nulls._erased(data, left, right).r(Y)
    np.testing.assert_allclose(found.numpy(), folded(rows, dealt).r(Y).numpy(), atol=2e-3)
    assert found[0] < 0.8 * data.r(Y)[0]


def test_the_finders_own_direction_is_a_member_where_it_has_one():
    case = read_and_idle()
    finder = Fixed(torch.eye(D)[:2], names=("used=1", "idle=1"))
    told = case_of(
        case.subject.activations, dict(case.subject.labels), case_outputs(case), finder=finder, draws=case.draws
    )
    found = family(told)
    assert [o.statistic.split(":")[0] for o in found] == [*MEMBERS, OWN] * 2
    used, idle = (o for o in found if o.statistic.startswith(OWN))
    assert used.p <= 0.05 < idle.p
    assert [o.statistic.split(":")[0] for o in family(case)] == [*MEMBERS] * 2


def case_outputs(case):
    return lambda x: case.subject.downstream(x, None)


def test_the_finders_own_direction_has_uniform_p_where_it_is_one_of_those_drawn():
    p = [family(random_case(seed))[-1].p for seed in range(SEEDS)]
    assert are_uniform(p)


def test_a_label_that_is_one_thing_in_half_of_the_documents_is_refused():
    case = read_and_idle()
    y = np.where(Ground(case).learn, case.subject.labels["used=1"], 0)
    lopsided = case_of(case.subject.activations, {"half=1": y}, reader(np.random.default_rng(0)))
    with pytest.raises(UserError, match="never on in half of the documents"):
        ablate(lopsided)
    assert steer(lopsided)[0].p == 1.0  # no target can be told there

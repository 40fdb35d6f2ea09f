"""Interventions against matched directions: does a feature's direction move its target as few others do?

An effect is the movement of the outputs on target less that off target, at places of documents that neither direction
nor matched ones were taken from.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from controls.case import Case
from controls.decoding import FOLDS, deal, folded
from controls.natural_moves import PLACES, Ground, Move, floor_of, unit_rows
from controls.outcomes import Outcome
from controls.registry import control
from controls.subject import as_float, halves
from controls.trials import Place
from toolkit.errors import require
from toolkit.matched_scale import matched_scales
from toolkit.steering import dual_basis, mean_differences

MATCHED = 0.1
"""Mean divergence at which a family of directions is compared, in nats (or half squared standard deviations)."""
RIDGE = 1e-6
"""Of the dual, for labels that nearly depend on one another."""
SMALLEST = 1e-6
"""Singular value, a correlation, below which there is nothing to erase."""
MEMBERS = ("probe", "difference of means", "pattern", "dual")
"""A family of directions: the probe's weights, the difference of class means, Haufe's pattern and the dual vector."""


@control(
    "interventions.ablate",
    null="the coordinate along the direction, resampled, moves the target as matched directions do",
    mind="backup circuits hide what is used; directions that hardly vary on data are left out",
)
def ablate(case: Case) -> list[Outcome]:
    """The coordinate of a random row with the other label, against other directions moved by as much there."""
    ground, found = Ground(case), []
    for move in (ground.awake(move) for move in ground.moves()):
        rng = np.random.default_rng([case.seed, 239, move.number])
        given = ground.subject.activations[torch.from_numpy(_partners(ground, move, rng))].double()
        amounts = (given - ground.rows(move.where)) @ move.unit
        found.append(_against(ground, move, amounts[None], rng, "interventions.ablate", "at resampled coordinates"))
    return found


def _partners(ground: Ground, move: Move, rng: np.random.Generator) -> np.ndarray:
    """For each place a row with the other label, of the half that places are in."""
    y = ground.subject.table[:, move.number]
    own = y[ground.subject.places[move.where.at.numpy()]]
    pools = [np.flatnonzero(~ground.learn & (y == 1 - value)) for value in (0, 1)]
    for value in np.unique(own):
        require(
            len(pools[value]) > 0,
            f"feature {move.feature!r} is {'always' if value else 'never'} on in half of the documents: take more rows",
        )
    return np.array([rng.choice(pools[value]) for value in own])


@control(
    "interventions.steer",
    null="steering by the natural length moves the target as matched directions of that length do",
    mind="directions that hardly vary on data are left out; 999 directions and more need that many draws",
)
def steer(case: Case) -> list[Outcome]:
    """From one label to the other, against directions of the same length drawn from the covariance."""
    ground, found = Ground(case), []
    for move in (ground.awake(move) for move in ground.moves()):
        rng = np.random.default_rng([case.seed, 241, move.number])
        found.append(_against(ground, move, move.amounts, rng, "interventions.steer", "at its natural length"))
    return found


def _against(
    ground: Ground, move: Move, amounts: Float[Tensor, "one places"], rng: np.random.Generator, name: str, how: str
) -> Outcome:
    """The direction and others from the covariance, at the same places by the same amounts."""
    vectors = torch.cat([move.unit[None], ground.drawn(ground.case.draws, rng)])
    values = ground.effects(vectors, amounts, move.where, [ground.aim(move)])[:, 0].numpy()
    what = f"effect on target less off target, {how}"
    return Outcome(name, move.feature, what, float(values[0]), values[1:], note=floor_of(ground.case.draws))


@control(
    "interventions.family",
    null="at the same KL, each way to turn a read-out into a direction moves the target as random directions do",
    mind="the best probe is not the best steering vector: compare the members",
)
def family(case: Case) -> list[Outcome]:
    """Probe, difference of means, Haufe's pattern and dual, each as far as moves outputs by MATCHED."""
    ground = Ground(case)
    moves, where, read_outs = ground.moves(), ground.anywhere(PLACES), _read_outs(ground)
    drawn = ground.drawn(case.draws, np.random.default_rng([case.seed, 251]))
    members = torch.cat([_members(ground, move, read_outs) for move in moves])
    vectors = _matched(ground, torch.cat([members, drawn]), where)
    effects = ground.effects(vectors, where.sign[None], where, [ground.aim(move) for move in moves]).numpy()
    found = []
    for f, move in enumerate(moves):
        for number, member in enumerate(MEMBERS, start=f * len(MEMBERS)):
            what = f"{member}: effect on target less off target, at a KL of {MATCHED:g}"
            stuck = "" if vectors[number].any() else "no length moves outputs so far: counted as 0"
            note = "; ".join(part for part in (stuck, floor_of(case.draws)) if part)
            observed, null = float(effects[number, f]), effects[len(members) :, f]
            found.append(Outcome("interventions.family", move.feature, what, observed, null, note=note))
    return found


def _matched(ground: Ground, units: Float[Tensor, "some d"], where: Place) -> Float[Tensor, "some d"]:
    """Each as long as moves outputs by MATCHED in the mean over places; 0 where no length does."""

    def measure(vectors: Float[Tensor, "v d"]) -> Float[Tensor, " v"]:
        return ground.log_divergence(vectors, where.sign[None], where).exp().mean(1)

    return matched_scales(measure, units, MATCHED, ground.distance).nan_to_num(0.0)[:, None] * units


def _read_outs(ground: Ground) -> Float[np.ndarray, "features d"]:
    """Discriminants of all features, from the rows to learn from."""
    rows = torch.from_numpy(ground.learn)
    data = folded(ground.subject.activations[rows], deal(np.zeros(int(rows.sum()), int)))
    found: np.ndarray = data.switches(as_float(ground.subject.table[ground.learn])).numpy()
    return found


def _members(ground: Ground, move: Move, read_outs: Float[np.ndarray, "features d"]) -> Float[Tensor, "members d"]:
    """At length 1; pattern and dual leave the read-outs of the other labels alone."""
    X = ground.subject.activations[torch.from_numpy(ground.learn)].double().numpy()
    y = ground.subject.table[ground.learn, move.number]
    others = [other for other in move.others if read_outs[other].any()][: X.shape[1] - 1]
    W = read_outs[[move.number, *others]]
    pattern = dual_basis(W, covariance=np.cov(X.T).reshape(X.shape[1], -1), ridge=RIDGE).vectors[:, 0]
    dual = dual_basis(W, ridge=RIDGE).vectors[:, 0]
    return unit_rows(torch.from_numpy(np.stack([W[0], mean_differences(X, y)[:, 0], pattern, dual])))


@control(
    "interventions.erasure",
    null="erasing what tells the label (LEACE) moves outputs no more than erasing a random subspace of that rank",
    mind="what is erased has the variance that activations have there: norms are not matched",
)
def erasure(case: Case) -> list[Outcome]:
    """LEACE (Belrose et al. 2023) fitted on half of the documents, against erasers of concepts drawn at random."""
    ground, found = Ground(case), []
    held_out = ~ground.learn
    X = case.subject.activations[torch.from_numpy(held_out)]
    groups = np.unique(case.subject.groups[held_out], return_inverse=True)[1]
    dealt = deal(halves(groups, FOLDS, seed=case.seed))
    before = folded(X, dealt).r(as_float(case.subject.table[held_out]))
    for move in ground.moves():
        erasers = _erasers(ground, move, np.random.default_rng([case.seed, 257, move.number]))
        amounts = -erasers.coordinates(ground.rows(move.where))
        values = ground.log_divergence(erasers.left, amounts, move.where).mean(1).numpy()
        left = X - torch.outer(erasers.coordinates(X.double())[0], erasers.left[0]).to(X)
        after = float(folded(left, dealt).r(as_float(case.subject.table[held_out][:, [move.number]])))
        note = f"held-out r {float(before[move.number]):.2f} before, {after:.2f} after"
        note = "; ".join(part for part in (note, floor_of(case.draws)) if part)
        what = "mean log KL of the outputs when the label is erased"
        found.append(Outcome("interventions.erasure", move.feature, what, float(values[0]), values[1:], note=note))
    return found


@dataclass(frozen=True)
class Erasers:
    """Of rank 1 each: x less left (right . (x - mean)); the first is LEACE's, the others of random concepts."""

    left: Float[Tensor, "erasers d"]
    """Along which it moves."""
    right: Float[Tensor, "erasers d"]
    """What it reads."""
    mean: Float[Tensor, " d"]
    """Of the rows it was fitted on."""

    def coordinates(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "erasers rows"]:
        """How much of `left` each takes away from each row."""
        return self.right @ (x - self.mean).mT


def _erasers(ground: Ground, move: Move, rng: np.random.Generator) -> Erasers:
    """LEACE's for the label, and those it would make for labels whose covariances with the activations are random.

    Such covariances are draws from N(0, Sigma), as those of labels that have nothing to do with the activations are;
    whitened, they point anywhere.
    """
    from concept_erasure import LeaceFitter

    X = ground.subject.activations[torch.from_numpy(ground.learn)].double()
    y = torch.from_numpy(ground.subject.table[ground.learn, move.number]).double()
    fitter = LeaceFitter.fit(X, (y - y.mean()) / y.std(), svd_tol=SMALLEST, constrain_cov_trace=False)
    require(bool(fitter.eraser.proj_right.any()), f"nothing in the activations goes with {move.feature!r}")
    values, vectors = torch.linalg.eigh(fitter.sigma_xx)
    varied = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    roots = torch.where(varied, values.clamp(min=1e-300).sqrt(), 0.0)
    u = unit_rows(torch.from_numpy(rng.normal(size=(ground.case.draws, len(values)))) * varied)
    left = torch.cat([fitter.eraser.proj_left.mT, (u * roots) @ vectors.mT])
    right = torch.cat([fitter.eraser.proj_right, (u * torch.where(varied, 1 / roots, 0.0)) @ vectors.mT])
    return Erasers(left, right, fitter.mean_x)

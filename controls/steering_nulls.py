"""Interventions against matched directions: does a feature's direction move its target as few others do?

An effect is the movement of the outputs on target less that off target, at places of documents that neither direction
nor matched ones were taken from.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from controls.asked_each import each, floor_of, joined, noted
from controls.case import Case
from controls.decoding import FOLDS, Folded, deal, folded
from controls.natural_moves import PLACES, Ground, Move, unit_rows
from controls.outcomes import Outcome
from controls.registry import control
from controls.subject import as_float, halves
from controls.trials import Place
from toolkit.errors import UserError, require
from toolkit.matched_scale import matched_scales
from toolkit.steering import dual_basis

MATCHED = 0.1
"""Mean divergence at which a family of directions is compared, in nats (or half squared standard deviations)."""
RIDGE = 1e-6
"""Of the dual, for labels that nearly depend on one another."""
SMALLEST = 1e-6
"""Singular value, a correlation, below which there is nothing to erase."""
MEMBERS = ("probe", "difference of means", "pattern", "dual")
"""A family of directions: the probe's weights, the difference of class means, Haufe's pattern and the dual vector."""
OWN = "the finder's own"
"""One more member, where the finder has directions."""
ERASED = 2 * PLACES
"""Places at which a label is erased."""
GUARD = 1e-5
"""Share of the mean variance that a ridge has at least where a direction was erased: rounding is what is left there."""


@control(
    "interventions.ablate",
    null="the coordinate along the direction, resampled, moves the target as matched directions do",
    mind="backup circuits hide what is used; directions that hardly vary on data are left out; 999 directions need "
    "that many draws",
)
def ablate(case: Case) -> list[Outcome]:
    """The coordinate of a random row with the other label, against other directions moved by as much there."""
    ground = Ground.of(case)

    def ask(move: Move) -> list[Outcome]:
        move, rng = ground.awake(move), np.random.default_rng([case.seed, 239, move.number])
        given = ground.subject.activations[torch.from_numpy(_partners(ground, move, rng))].double()
        amounts = (given - ground.rows(move.where)) @ move.unit
        return [_against(ground, move, amounts[None], rng, "interventions.ablate", "at resampled coordinates")]

    return each([(move.feature, move) for move in ground.moves()], ask, ground.left)


def _partners(ground: Ground, move: Move, rng: np.random.Generator) -> np.ndarray:
    """For each place a row with the other label, of the half that places are in."""
    y = ground.table[:, move.number]
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
    ground = Ground.of(case)

    def ask(move: Move) -> list[Outcome]:
        move, rng = ground.awake(move), np.random.default_rng([case.seed, 241, move.number])
        return [_against(ground, move, move.amounts, rng, "interventions.steer", "at its natural length")]

    return each([(move.feature, move) for move in ground.moves()], ask, ground.left)


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
    mind="the best probe is not the best steering vector: compare the members; 999 directions need that many draws",
)
def family(case: Case) -> list[Outcome]:
    """Probe, difference of means, pattern, dual and the finder's own, each as far as moves outputs by MATCHED."""
    ground = Ground.of(case)
    where, read_outs = ground.anywhere(PLACES), _read_outs(ground)
    given, left, moves, members = ground.moves(), dict(ground.left), list[Move](), list[Tensor]()
    for move in given:
        try:
            members.append(_members(ground, move, read_outs))
            moves.append(move)
        except UserError as error:
            left[move.feature] = str(error)
    if not moves:
        return noted([], left)
    drawn = ground.drawn(case.draws, np.random.default_rng([case.seed, 251]))
    vectors = _matched(ground, torch.cat([*members, drawn]), where)
    effects = ground.effects(vectors, where.sign[None], where, [ground.aim(move) for move in moves]).numpy()
    null, first, found = effects[-case.draws :], 0, list[Outcome]()
    for f, (move, own) in enumerate(zip(moves, members, strict=True)):
        rows = slice(first, first + len(own))
        still = ~vectors[rows].any(1).numpy()
        found += _of_members(move, effects[rows, f], still, null[:, f])
        first += len(own)
    return noted(found, left)


def _of_members(
    move: Move,
    effects: Float[np.ndarray, " members"],
    still: Bool[np.ndarray, " members"],
    null: Float[np.ndarray, " draws"],
) -> list[Outcome]:
    """An outcome a member."""
    found = []
    for member, effect, stuck in zip((*MEMBERS, OWN)[: len(effects)], effects, still, strict=True):
        what = f"{member}: effect on target less off target, at a KL of {MATCHED:g}"
        note = joined("no length moves outputs so far: counted as 0" if stuck else "", floor_of(len(null)))
        found.append(Outcome("interventions.family", move.feature, what, float(effect), null, note=note))
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
    found: np.ndarray = data.switches(as_float(ground.table[ground.learn])).numpy()
    return found


def _members(ground: Ground, move: Move, read_outs: Float[np.ndarray, "features d"]) -> Float[Tensor, "members d"]:
    """At length 1; pattern and dual leave the read-outs of the other labels alone."""
    covariance = ground.learned.covariance.numpy()
    others = [other for other in move.others if read_outs[other].any()][: len(covariance) - 1]
    W = read_outs[[move.number, *others]]
    pattern = dual_basis(W, covariance=covariance, ridge=RIDGE).vectors[:, 0]
    dual = dual_basis(W, ridge=RIDGE).vectors[:, 0]
    found = torch.from_numpy(np.stack([W[0], ground.differences[move.number].numpy(), pattern, dual]))
    return unit_rows(torch.cat([found, move.unit[None]]) if move.given else found)


@control(
    "interventions.erasure",
    null="erasing what tells the label (LEACE) moves outputs no more than erasing a random subspace of that rank",
    mind="what is erased has the variance that activations have there: norms are not matched; 999 subspaces need that "
    "many draws",
)
def erasure(case: Case) -> list[Outcome]:
    """LEACE (Belrose et al. 2023) fitted on half of the documents, against erasers of concepts drawn at random.

    Places where the label is on and where it is off count as often as in the data, and divergences are averaged before
    the logarithm: a rare label's coordinate is far out where it is on, and one of a frequent label is hardly ever 0,
    but every eraser takes away the same mean square.
    """
    ground, whitening = Ground.of(case), _whitening(Ground.of(case))
    held_out = ~ground.learn
    groups = np.unique(case.subject.groups[held_out], return_inverse=True)[1]
    data = folded(case.subject.activations[torch.from_numpy(held_out)], deal(halves(groups, FOLDS, seed=case.seed)))
    Y = as_float(ground.table[held_out])
    before = data.r(Y)

    def ask(move: Move) -> list[Outcome]:
        erasers = _erasers(ground, whitening, move, np.random.default_rng([case.seed, 257, move.number]))
        where = ground.places(move.number, ERASED)
        kl = ground.log_divergence(erasers.left, -erasers.coordinates(ground.rows(where)), where).exp()
        values = (kl @ _weights(where, float(ground.table[:, move.number].mean()))).log().numpy()
        after = float(_erased(data, erasers.left[0], erasers.right[0]).r(Y[:, [move.number]]))
        note = joined(f"held-out r {float(before[move.number]):.2f} before, {after:.2f} after", floor_of(case.draws))
        what = "log of the mean KL of the outputs when the label is erased"
        return [Outcome("interventions.erasure", move.feature, what, float(values[0]), values[1:], note=note)]

    return each([(move.feature, move) for move in ground.moves()], ask, ground.left)


def _weights(where: Place, rate: float) -> Float[Tensor, " places"]:
    """Of each place, so that those with the label count as often as it occurs."""
    on = where.sign < 0
    weights = torch.where(on, rate / on.sum().clamp(min=1), (1 - rate) / (~on).sum().clamp(min=1)).double()
    return weights / weights.sum()


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


@dataclass(frozen=True)
class Whitening:
    """The covariance of the rows to learn from, shrunk as concept_erasure shrinks it."""

    vectors: Float[Tensor, "d d"]
    """Its eigenvectors, in columns."""
    roots: Float[Tensor, " d"]
    """Square roots of its eigenvalues; 0 for those that are rounding."""

    @property
    def inverse(self) -> Float[Tensor, " d"]:
        """1 / roots, 0 where they are."""
        return torch.where(self.roots > 0, 1 / self.roots, 0.0)


def _whitening(ground: Ground) -> Whitening:
    from concept_erasure.shrinkage import optimal_linear_shrinkage

    values, vectors = torch.linalg.eigh(optimal_linear_shrinkage(ground.learned.covariance, ground.learned.count))
    varied = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return Whitening(vectors, torch.where(varied, values.clamp(min=1e-300).sqrt(), 0.0))


def _erasers(ground: Ground, whitening: Whitening, move: Move, rng: np.random.Generator) -> Erasers:
    """LEACE's for the label, and those it would make for labels whose covariances with the activations are random.

    With u the whitened covariance of label and activations at length 1, LEACE takes off W^-1 u u^T W (x - mean)
    (Belrose et al. 2023, Theorem 4.3). Covariances of labels that have nothing to do with the activations are draws
    from N(0, Sigma); whitened, they point anywhere.
    """
    roots, inverse, vectors = whitening.roots, whitening.inverse, whitening.vectors
    toward = (ground.with_labels[move.number] @ vectors * inverse)[None]
    spread = float(ground.table[ground.learn, move.number].std())
    require(float(toward.norm()) > SMALLEST * spread, f"nothing in the activations goes with {move.feature!r}")
    drawn = torch.from_numpy(rng.normal(size=(ground.case.draws, len(roots)))) * (roots > 0)
    u = unit_rows(torch.cat([toward, drawn]))
    return Erasers((u * roots) @ vectors.mT, (u * inverse) @ vectors.mT, ground.learned.mean)


def _erased(data: Folded, left: Float[Tensor, " d"], right: Float[Tensor, " d"]) -> Folded:
    """The same rows without left (right . x): their sums follow from those that are there."""
    if data.basis is not None:  # rows are x basis, whose columns are orthogonal
        left, right = left @ data.basis, (right @ data.basis) / data.basis.square().sum(0)
    P = torch.eye(len(left)).double() - torch.outer(right, left)
    grams = P.mT @ data.grams @ P
    floor = GUARD * float(grams.sum(0).diagonal().mean() / data.counts.sum())
    X = data.X - torch.outer(data.X @ right.to(data.X), left.to(data.X))
    return replace(data, X=X, sums=data.sums @ P, grams=grams, ridge=data.ridge.clamp(min=floor))

"""C: does the rest of the network move with the feature, as with few other directions?

A feature's direction is fitted on two thirds of the documents, once on each, and tried at places of the last third:
added where the feature is off, taken off where it is on. The movement of the target, as the correlation of label and
target that it brings about, is the effect. It is present if it is above the bound, and stays there when rows exchange
their coordinates (an interchange) and without directions that hardly vary on data; if few directions of the same length
do as much with as little beside it; and if the discriminant, which is blind to what varies without the feature, does
not do clearly less. It is absent if its mean is below the lower bound, its root mean square over rows below the upper
one, no other output is moved, and it closes no share of a gap that the data show.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.axes import CAUSAL, Axis, above, below, unasked
from controls.directions import Moments, covariates, directions, moments
from controls.outcomes import Outcome
from controls.outputs import Outputs, clean_outputs, target
from controls.steering_curve import Curve
from controls.subject import Subject, halves, units
from controls.trials import Place, Trial

ONE_SIDED = 1.645
"""Standard errors of a one-sided bound at 5%."""
SHARE_CLOSED = 0.25
"""Of a gap in the data; what closes more is not unread, however small."""
SURE_GAP = 3.0
"""Standard errors from which a gap counts as one."""
DISAGREES = 0.75
"""Share of the effect below which the discriminant does clearly less."""


@dataclass(frozen=True)
class Effort:
    """How much is computed."""

    draws: int = 64
    """Resamplings of documents behind each direction's uncertainty."""
    rows: int = 200
    """Places of each label value at which a direction is tried, at most."""
    drawn_rows: int = 24
    """Of these, those at which resampled directions are tried."""
    matched: int = 999
    """Directions drawn for the null."""
    matched_rows: int = 16
    """Of these places, those at which they are tried."""


def causal_axes(
    subject: Subject,
    read_outs: Float[Tensor, "found d"],
    owners: Int[np.ndarray, " found"],
    *,
    level: float,
    seed: int,
    effort: Effort | None = None,
    told: Callable[[int], None] = lambda done: None,
) -> list[Axis]:
    """C of every feature; `read_outs` find the labels of the features `owners`, for leakage into them."""
    ground = Ground.of(subject, read_outs, owners, seed=seed)
    found = []
    for f in range(subject.table.shape[1]):
        found.append(ground.axis(f, level=level, effort=effort or Effort()))
        told(1)
    return found


@dataclass(frozen=True)
class Ground:
    """What the causal axes of all features share."""

    subject: Subject
    """What is judged."""
    outputs: Outputs
    """Clean."""
    sums: Moments
    """Behind directions."""
    units: Int[np.ndarray, " rows"]
    """Of resampling."""
    part: Int[np.ndarray, " rows"]
    """Each row's third of the documents."""
    read_outs: Float[Tensor, "found d"]
    """Of labels that are there."""
    owners: Int[np.ndarray, " found"]
    """Their features."""
    seed: int
    """Every draw follows from it."""

    @classmethod
    def of(cls, subject: Subject, read_outs: Tensor, owners: Int[np.ndarray, " found"], *, seed: int) -> "Ground":
        """Compute it."""
        of = units(subject.groups, seed=seed)
        sums = moments(subject.activations, subject.table, of)
        return cls(subject, clean_outputs(subject), sums, of, halves(of, 3, seed=seed), read_outs, owners, seed)

    def axis(self, f: int, *, level: float, effort: Effort) -> Axis:
        """C of one feature."""
        return self.axis_and_curve(f, level=level, effort=effort, curve=False)[0]

    def axis_and_curve(self, f: int, *, level: float, effort: Effort, curve: bool = True) -> tuple[Axis, Curve | None]:
        """C of one feature, and its steering curve where there is anything to steer."""
        trial = self.trial(f, effort)
        if isinstance(trial, str):
            return unasked(trial), None
        leaks = [i for i, owner in enumerate(self.owners) if owner in self.subject.fellows(f)]
        null = _matched(trial, self.sums, self.read_outs[leaks], effort, seed=self.seed + f)
        name = self.subject.names[f]
        outcome = Outcome("interventions.steer", name, STEERED, float(null[0]), null[1:].numpy())
        return _judged(trial, outcome, level), trial.curve() if curve else None

    def trial(self, f: int, effort: Effort) -> "Trial | str":
        """The feature's directions at places they were not fitted on, or why there is none."""
        subject, Y, part = self.subject, self.subject.table, self.part
        others = covariates(Y, f, subject.fellows(f))
        aim = target(subject, self.outputs, f, others, self.units[subject.places])
        where = places(subject, Y[:, f], part == 2, self.units, effort.rows, seed=self.seed + f)
        if where is None:
            return "a third of the documents has no place with, or none without, the feature"
        if aim.spread <= 1e-12:
            return "the target never changes"
        part_of_unit = np.zeros(int(self.units.max()) + 1, int)
        part_of_unit[self.units] = part
        both = [
            directions(
                self.sums,
                f,
                others,
                torch.from_numpy((part_of_unit == side).astype(float)),
                draws=effort.draws,
                seed=7919 * self.seed + 2 * f + side,
            )
            for side in (0, 1)
        ]
        return Trial(subject, self.outputs, aim, where, both, effort.drawn_rows)


def places(
    subject: Subject,
    y: Int[np.ndarray, " rows"],
    allowed: np.ndarray,
    of: Int[np.ndarray, " rows"],
    most: int,
    *,
    seed: int,
) -> Place | None:
    """As many places without as with the feature, among those allowed; None where there are not two of each."""
    at, rng = subject.places, np.random.default_rng([seed, 71])
    sides = [rng.permutation(np.flatnonzero(allowed[at] & (y[at] == value))) for value in (0, 1)]
    count = min(most, *(len(side) for side in sides))
    if count < 2:
        return None
    chosen = np.stack([side[:count] for side in sides], 1).ravel()  # off and on take turns
    return Place(torch.from_numpy(chosen), torch.tensor([1.0, -1.0]).double().repeat(count), of[at[chosen]])


STEERED = "target moved, less outputs and labels moved beside it, as correlations"
"""What C's null is of."""


@torch.no_grad()
def _matched(
    trial: Trial, sums: Moments, read_outs: Float[Tensor, "others d"], effort: Effort, *, seed: int
) -> Float[Tensor, " one_and_matched"]:
    """Movement on target, less what moves beside it: of the direction, then of others of its length.

    The others are drawn from the covariance of the activations, across the direction itself. Beside the target count
    the other outputs and the read-outs of other labels, in shares of what their own label moves them by.
    """
    unit, length = trial.true_length()
    rng = np.random.default_rng([seed, 81])
    z = torch.from_numpy(rng.normal(size=(effort.matched, len(unit))))
    drawn = (z * sums.values.clamp(min=0).sqrt()) @ sums.vectors.mT
    drawn = drawn - torch.outer(drawn @ unit, unit)
    drawn = torch.cat([unit[None], drawn / drawn.norm(dim=1, keepdim=True)]) * length
    leak = (drawn @ read_outs.mT).square().mean(1).sqrt() if len(read_outs) else torch.zeros(len(drawn))
    few = trial.where.first(2 * effort.matched_rows)
    means = (part.mean(1) for part in trial.in_parts(drawn, few))
    moved = torch.cat([trial.aim.on(mean).abs() - trial.aim.off(mean) for mean in means])
    return moved - leak * trial.aim.factor


def _judged(trial: Trial, outcome: Outcome, level: float) -> Axis:
    steer, swap = trial.steered(), trial.interchanged()
    on, error = abs(steer.on), steer.error
    awake = abs(trial.awake())
    p_each = [above(effect - steer.off, error, CAUSAL.high) for effect in (on, abs(swap.on), awake)]
    p = max(p_each) if steer.on * swap.on > 0 else 1.0
    apart, rank = "", outcome.p
    beaten = "other directions of its length move the target as much" * (rank > level and on - steer.off > CAUSAL.low)
    p = max(p, rank) if rank > level else p
    if p <= level:
        drop, drop_error = trial.guard()
        if drop > 2.33 * drop_error and drop > (1 - DISAGREES) * on:
            p, apart = 1.0, "directions disagree: something that goes with it, and has no label, may be what is used"
    p_absent = max(below(abs(one.on), one.error, CAUSAL, level=level) for one in (steer, swap))
    veto = _not_absent(trial, on, error) if p_absent < 1 else ""
    p_absent = 1.0 if veto else p_absent
    less = on - steer.off
    blind = "its interchange is known too roughly to show absence: more rows would tell"
    blind *= on < CAUSAL.low and below(0.0, steer.error, CAUSAL, level=level) < 1
    blind *= below(0.0, swap.error, CAUSAL, level=level) == 1
    beside = f"it moves its target by {on:.2f}, too much for absent; less what moves beside it, {less:.2f}, too little"
    beside *= on >= CAUSAL.low >= less
    why = (apart or veto or beaten or blind or beside) if min(p, p_absent) > level else ""
    return Axis(on - steer.off, error, p, p_absent, why, CAUSAL, (outcome,))


def _not_absent(trial: Trial, on: float, error: float) -> str:
    """Why an effect with a small mean is not absent, or ""."""
    rows, outputs = trial.squares()
    small = on < CAUSAL.low  # from there on the mean itself says that it is not absent
    if small and rows[0] + ONE_SIDED * rows[1] > CAUSAL.high**2:
        return "it moves the target in some rows one way, in others the other way"
    if small and outputs[0] - ONE_SIDED * outputs[1] > CAUSAL.high**2:
        return "it moves outputs other than its target"
    gap = abs(trial.aim.gap)
    if on < CAUSAL.high and gap > SURE_GAP * trial.aim.gap_error and on - ONE_SIDED * error > SHARE_CLOSED * gap:
        return "its effect is small but closes part of the gap that the data show"
    return ""

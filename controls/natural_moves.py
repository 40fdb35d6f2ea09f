"""A feature's own movement of the activations, places to try it at, and directions to hold against it.

Directions are taken from one half of the documents; places, and what is looked for in the outputs, from the other, so
that what is noise in the one is not the same noise in the other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.case import Case
from controls.directions import covariates, varies
from controls.half_moments import Spread, spread, with_labels
from controls.outputs import Outputs, Target, clean_outputs, target
from controls.subject import halves, units
from controls.trials import Place
from toolkit.downstream import Downstream
from toolkit.errors import UserError, require
from toolkit.movements import distances

PLACES = 16
"""Places a feature is tried at, half of them with it where there are so many: each is a row for each direction."""
BLOCK = 512
"""Rows the rest of the network is asked about at a time: each has a vocabulary of outputs."""
FLOOR = 1e-8
"""Nats (or half squared standard deviations) below which a divergence is rounding."""
NO_LENGTH = 1e-6
"""Share of the typical distance from the mean below which a movement is none."""
NORMALISED = 1e-3
"""How far the logarithm of the sum of probabilities may lie from 0 for outputs to be log-probabilities."""


@dataclass(frozen=True)
class Move:
    """What a feature does to the activations."""

    feature: str
    """Its name."""
    number: int
    """Among the subject's features."""
    others: tuple[int, ...]
    """Labels of its family that are held fixed, numbered as features."""
    unit: Float[Tensor, " d"]
    """Its direction, of length 1: what its finder says, or the difference of class means with the others fixed."""
    length: float
    """How far the means with and without it lie apart along the direction."""
    where: Place
    """Where it is tried; added where it is off, taken off where it is on."""
    given: bool
    """Whether the direction is what its finder says."""

    @property
    def amounts(self) -> Float[Tensor, "one places"]:
        """Signed steps of its natural length."""
        return self.length * self.where.sign[None]


class Ground:
    """A case's places and outputs, on which any movements are tried.

    Attributes:
        subject: places of the half that directions are not taken from.
        learn: rows that directions are taken from.
        table: labels of all rows.
        learned: mean and covariance of the rows to learn from.
        mean: of all activations.
        values: eigenvalues of the covariance of all activations, ascending.
        vectors: its eigenvectors, in columns.
        left: features that cannot be moved, and why.
    """

    def __init__(self, case: Case) -> None:
        """Deal the documents.

        Raises:
            UserError: activations that never change, fewer than two places in a half of the documents.
        """
        whole = case.subject
        self.case, self._units = case, units(whole.groups, seed=case.seed)
        part = halves(self._units, 2, seed=case.seed)
        self.learn = part == 0
        kept = np.flatnonzero(part[whole.places] == 1)
        require(len(kept) >= 2, f"{len(kept)} places in half of the documents are too few: take more rows")
        self.subject = replace(whole, places=whole.places[kept], downstream=_numbered(whole.downstream, kept))
        self.table, self.left = whole.table, dict[str, str]()
        self.learned: Spread = spread(whole.activations, torch.from_numpy(np.flatnonzero(self.learn)))
        both = self.learned + spread(whole.activations, torch.from_numpy(np.flatnonzero(~self.learn)))
        self.mean, (self.values, self.vectors) = both.mean, torch.linalg.eigh(both.covariance)
        require(bool(self.values[-1] > 0), "the activations never change: no direction can be moved along")

    @classmethod
    def of(cls, case: Case) -> "Ground":
        """Of a case, made once: the last one is kept, for nine controls ask for the same."""
        if not _LAST or _LAST[0].case is not case:
            _LAST[:] = [cls(case)]
        return _LAST[0]

    @cached_property
    def outputs(self) -> Outputs:
        """Clean ones, at every place."""
        return clean_outputs(self.subject)

    @property
    def distance(self) -> float:
        """Of rows from their mean, root mean square."""
        return float(self.values.clamp(min=0).sum().sqrt())

    @cached_property
    def with_labels(self) -> Float[Tensor, "features d"]:
        """Covariance of each label with the activations, in the rows to learn from."""
        learn = torch.from_numpy(np.flatnonzero(self.learn))
        return with_labels(self.subject.activations, torch.from_numpy(self.table), learn)

    @cached_property
    def differences(self) -> Float[Tensor, "features d"]:
        """Means with each label less means without, in the rows to learn from; 0 where it is one thing there."""
        rates = torch.from_numpy(self.table[self.learn].mean(0))
        return self.with_labels / (rates * (1 - rates)).clamp(min=1e-30)[:, None]

    def moves(self) -> list[Move]:
        """Of every feature that can be moved; the others are in `left`.

        Raises:
            UserError: no feature goes with any movement of the activations.
        """
        if not self._moves:
            raise UserError(next(iter(self.left.values())))
        return list(self._moves)

    @cached_property
    def _moves(self) -> list[Move]:
        names, families = list(self.subject.names), self.subject.families
        found: dict[int, Move] = {}
        for family in dict.fromkeys(families.get(name, "") for name in names):
            members = [number for number, name in enumerate(names) if families.get(name, "") == family]
            given = named_directions(self.case, family)
            for move in self._of_family(members, given):
                try:
                    self._check(move.feature, move.length)
                    found[move.number] = move
                except UserError as error:
                    self.left[move.feature] = str(error)
        return [found[number] for number in sorted(found)]

    def awake(self, move: Move) -> Move:
        """The movement without its part in directions that hardly vary on data.

        What such a part does when it is moved is no evidence that the feature is used (Makelov et al. 2023).

        Raises:
            UserError: nothing is left.
        """
        vectors = self.vectors[:, varies(self.values)]
        v = vectors @ (vectors.mT @ move.unit)
        self._check(move.feature, move.length * float(v.norm()))
        return replace(move, unit=v / v.norm(), length=move.length * float(v.norm()))

    def aim(self, move: Move) -> Target:
        """Where the feature is looked for in the outputs."""
        place_units = self._units[self.subject.places]
        return target(self.subject, self.outputs, move.number, list(move.others), place_units)

    def drawn(self, count: int, rng: np.random.Generator) -> Float[Tensor, "count d"]:
        """Directions of length 1 from N(0, covariance)."""
        z = torch.from_numpy(rng.normal(size=(count, len(self.values))))
        return unit_rows((z * self.values.clamp(min=0).sqrt()) @ self.vectors.mT)

    def anywhere(self, count: int) -> Place:
        """Places whatever their labels, and by turns to add and to take off."""
        at = np.random.default_rng([self.case.seed, 211]).permutation(len(self.subject.places))[:count]
        sign = torch.tensor([1.0, -1.0]).double().repeat(count)[: len(at)]
        return Place(torch.from_numpy(at), sign, self._units[self.subject.places[at]])

    def rows(self, where: Place) -> Float[Tensor, "places d"]:
        """Activations at places."""
        return self.subject.activations[torch.from_numpy(self.subject.places)[where.at]].double()

    def log_divergence(
        self, v: Float[Tensor, "some d"], amounts: Float[Tensor, "ones places"], where: Place
    ) -> Float[Tensor, "some places"]:
        """log KL(moved || clean) of each movement at each place; of half squared distances for other outputs."""

        def look(clean: Tensor, moved: Tensor) -> Tensor:
            kind = "kl" if _normalised(clean) else "squared"
            if kind == "squared":
                clean, moved = clean * self.outputs.scale, moved * self.outputs.scale
            rows = moved.flatten(0, 1)  # (some * places, outputs)
            return distances(clean.repeat(len(moved), 1), rows, kind).view(moved.shape[:2]).double()

        return self._over(v, amounts, where, look).clamp(min=FLOOR).log()

    def effects(
        self, v: Float[Tensor, "some d"], amounts: Float[Tensor, "ones places"], where: Place, aims: Sequence[Target]
    ) -> Float[Tensor, "some aims"]:
        """On target less off target (`net`), of the mean movement of the outputs towards the feature.

        On target counts in the sense in which the data show the outputs to differ with the label.
        """
        sign = where.sign[:, None]

        def look(clean: Tensor, moved: Tensor) -> Tensor:
            movement = ((moved - clean).double() * sign).mean(1) * self.outputs.scale  # (some, outputs)
            return torch.stack([net(aim.on(movement) * np.sign(aim.gap), aim.off(movement)) for aim in aims], 1)

        return self._over(v, amounts, where, look)

    @torch.no_grad()
    def _over(self, v: Tensor, amounts: Tensor, where: Place, look: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`look` at clean (places, outputs) and moved (some, places, outputs), in blocks of movements."""
        x, dtype = self.rows(where), self.subject.activations.dtype
        clean = self.subject.downstream(x.to(dtype), where.at)
        at_once = max(1, BLOCK // len(x))
        parts = []
        for some, sizes in zip(v.split(at_once), amounts.expand(len(v), -1).split(at_once), strict=True):
            changed = (x + sizes[:, :, None] * some[:, None]).flatten(0, 1)  # (some * places, d)
            moved = self.subject.downstream(changed.to(dtype), where.at.repeat(len(some)))
            parts.append(look(clean, moved.view(len(some), *clean.shape)))
        found = torch.cat(parts)
        require(bool(found.isfinite().all()), f"outputs of {self.case.hook} are not finite where activations are moved")
        return found

    def _of_family(self, members: list[int], given: Mapping[str, Tensor]) -> Iterator[Move]:
        """Each member's movement, along the direction given by its name or its own conditional one."""
        Y, names = self.table[:, members], list(self.subject.names)
        for column, number in enumerate(members):
            others = tuple(members[other] for other in covariates(Y, column))
            if given:
                v = given[names[number]]
                length = float((unit_rows(v[None]) * self.differences[number]).sum().abs())
            else:
                v = self._conditional([number, *others])
                length = float(v.norm())
            unit = unit_rows(v[None])[0]
            yield Move(names[number], number, others, unit, length, self.places(number, PLACES), bool(given))

    def _conditional(self, numbers: list[int]) -> Float[Tensor, " d"]:
        """The difference of class means of the first label with the others held fixed: least squares."""
        y = torch.from_numpy(self.table[self.learn][:, numbers]).double()
        own = (y - y.mean(0)).mT @ (y - y.mean(0)) / len(y)
        ridge = 1e-9 * own.diagonal().mean().clamp(min=1e-9)  # a label may depend on others in this half
        return torch.linalg.solve(own + ridge * torch.eye(len(own)), self.with_labels[numbers])[0]

    def places(self, number: int, count: int) -> Place:
        """Half of them with the feature and half without, where there are so many."""
        y = self.table[self.subject.places, number]
        rng = np.random.default_rng([self.case.seed, 223, number])
        off, on = (rng.permutation(np.flatnonzero(y == value)) for value in (0, 1))
        with_it = min(len(on), max(count // 2, count - len(off)))
        at = np.concatenate([off[: count - with_it], on[:with_it]])
        return Place(torch.from_numpy(at), torch.from_numpy(1.0 - 2.0 * y[at]), self._units[self.subject.places[at]])

    def _check(self, feature: str, length: float) -> None:
        if not length > NO_LENGTH * self.distance:
            raise UserError(
                f"feature {feature!r} has a direction of length 0: activations that vary do not differ with it in half "
                "of the documents, so that there is nothing to move; leave it out or take more rows"
            )


def unit_rows(v: Float[Tensor, "some d"]) -> Float[Tensor, "some d"]:
    """Each at length 1; rows of 0 stay."""
    return v / v.norm(dim=1, keepdim=True).clamp(min=1e-30)


def net(on: Float[Tensor, " some"], off: Float[Tensor, " some"]) -> Float[Tensor, " some"]:
    """On target less off target, where off target counts in the measure on / sqrt(on^2 + off^2) that there is any on.

    Plainly on - off would rank a direction that moves nothing (0) above most that move something. This is on - off for
    movements on target, 0 for none, and has the sign of `on`.
    """
    return on - off * on.abs() / torch.hypot(on, off).clamp(min=1e-30)


def named_directions(case: Case, family: str) -> dict[str, Tensor]:
    """What a finder writes or reads along for each feature that it names, judged or not; nothing where it has none.

    Raises:
        UserError: a finder with another number of directions than features.
    """
    finder = case.finders.get(family)
    given = None if finder is None else finder.directions()
    if finder is None or given is None:
        return {}
    order = list(finder.labels(case.reading, case.subject.activations[:1]))
    require(len(given) == len(order), f"{family} has {len(given)} directions for {len(order)} features")
    return dict(zip(order, given.double(), strict=True))


_LAST: list[Ground] = []


def _numbered(downstream: Downstream, kept: Int[np.ndarray, " kept"]) -> Downstream:
    places = torch.from_numpy(kept)

    def some(activations: Tensor, at: Tensor) -> Tensor:
        return downstream(activations, places[at])

    return some


def _normalised(outputs: Float[Tensor, "rows outputs"]) -> bool:
    """Whether they are log-probabilities."""
    return outputs.shape[1] > 1 and float(outputs.logsumexp(1).abs().max()) < NORMALISED

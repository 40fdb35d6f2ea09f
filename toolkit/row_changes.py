"""What can be done to activations at a hook: frozen changes of rows, at all positions or some.

Rows are what a hook holds at one position of one sequence, its heads flattened into one axis. Exact, bit for bit:
`Add` at scale 0, `Patch` with the run's own activations, `Replace` with the identity, and every position not chosen.
The others are exact up to rounding. `toolkit.interventions.intervene` runs a model with them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toolkit.errors import check_types, require

Positions = Bool[Tensor, "batch positions"] | Sequence[int] | None
"""Where to act: everywhere (None), where a mask is true, or at these positions of every sequence, counted from 0."""
Rows = Float[Tensor, "batch positions d"]
"""What a hook holds, heads flattened."""
_LARGEST = 1e38  # activations are float32


@dataclass(frozen=True, eq=False)
class Intervention(ABC):
    """A change of the rows at one hook.

    Raises:
        UserError: a field of another type, NaN or infinity, a shape that no hook has, a direction that is all zero.
    """

    hook: str
    """A name among the model's `hook_names`."""
    positions: Positions = field(default=None, kw_only=True)
    """Where: None for everywhere, a mask (batch, positions), or positions of every sequence counted from 0."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.positions is not None and not isinstance(self.positions, Tensor):
            require(
                isinstance(self.positions, Sequence) and all(isinstance(at, int) and at >= 0 for at in self.positions),
                f"{self}: positions are whole numbers from 0, or a mask (batch, positions); got {self.positions}",
            )

    def __str__(self) -> str:
        return f"{type(self).__name__} at {self.hook}"

    def mask(self, batch: int, length: int) -> Bool[Tensor, "batch positions"]:
        """The chosen positions of `batch` sequences of `length` tokens.

        Raises:
            UserError: a position beyond the sequences, or a mask of another shape.
        """
        chosen = torch.zeros(batch, length, dtype=torch.bool)
        if self.positions is None:
            return ~chosen
        if isinstance(self.positions, Tensor):
            shape = tuple(self.positions.shape)
            require(
                shape == (batch, length),
                f"{self}: its mask is {shape}, the tokens are {(batch, length)}; one entry for each is needed",
            )
            return self.positions.bool().cpu()
        beyond = [at for at in self.positions if at >= length]
        require(not beyond, f"{self}: position {beyond[:1]} is beyond sequences of {length} tokens, counted from 0")
        chosen[:, list(self.positions)] = True
        return chosen

    def apply(self, rows: Rows) -> Rows:
        """The rows as they go on; those not chosen stay as they are, bit for bit.

        Raises:
            UserError: what is to be written does not fit the rows.
        """
        chosen = self.mask(*rows.shape[:2]).to(rows.device)
        changed = self.change(rows, chosen)
        return torch.where(chosen[..., None], changed, rows)

    @abstractmethod
    def change(self, rows: Rows, chosen: Bool[Tensor, "batch positions"]) -> Rows:
        """All rows changed; only those of the chosen positions are used."""

    def _need(self, given: Tensor, name: str, shape: tuple[int, ...]) -> None:
        found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        require(
            found == shape,
            f"{self}: {name} is {found}, the activations there ask for {shape}",
        )

    def _need_finite(self, given: Tensor, name: str, *, axes: tuple[int, ...]) -> None:
        right = isinstance(given, Tensor) and given.is_floating_point()
        require(right, f"{self}: {name} must be a tensor of floating-point numbers, got {type(given).__name__}")
        shape = tuple(given.shape)
        require(
            len(shape) in axes and 0 not in shape,
            f"{self}: {name} must have {' or '.join(map(str, axes))} axes and be of some length, got shape {shape}",
        )
        require(bool(given.isfinite().all()), f"{self}: {name} holds NaN or infinity")

    def _unit(self, direction: Tensor) -> Tensor:
        self._need_finite(direction, "direction", axes=(1,))
        norm = direction.double().norm()
        require(bool(norm > 0), f"{self}: direction must be one row of d numbers, not all zero")
        return direction.double() / norm


@dataclass(frozen=True, eq=False)
class Add(Intervention):
    """row + scale * direction."""

    direction: Float[Tensor, " d"]
    """What is added, at its own norm."""
    scale: float = 1.0
    """How much of it; at 0 nothing changes, exactly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need_finite(self.direction, "direction", axes=(1,))
        require(abs(self.scale) <= _LARGEST, f"{self}: scale must be at most {_LARGEST:g} in size, got {self.scale}")

    def change(self, rows: Rows, chosen: Bool[Tensor, "batch positions"]) -> Rows:
        """As in the class."""
        self._need(self.direction, "direction", (rows.shape[2],))
        return rows + self.scale * self.direction.to(rows)


@dataclass(frozen=True, eq=False)
class SetCoordinate(Intervention):
    """The coordinate along a direction, row . direction / |direction|, becomes `value`; what is orthogonal stays."""

    direction: Float[Tensor, " d"]
    """Only where it points matters."""
    value: float | Float[Tensor, "batch positions"]
    """The new coordinate, in the activations' units; one for all, or one a position."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._unit(self.direction)
        if isinstance(self.value, Real):
            finite = abs(cast(float, self.value)) <= _LARGEST
            require(finite, f"{self}: value holds NaN or infinity, got {self.value}")
        else:
            self._need_finite(self.value, "value", axes=(0, 2))

    def change(self, rows: Rows, chosen: Bool[Tensor, "batch positions"]) -> Rows:
        """As in the class."""
        self._need(self.direction, "direction", (rows.shape[2],))
        value = torch.as_tensor(self.value)
        if value.ndim:
            self._need(value, "value", tuple(rows.shape[:2]))
        return _with_coordinate(rows, self._unit(self.direction).to(rows), value.to(rows))


def _with_coordinate(rows: Rows, unit: Float[Tensor, " d"], value: Tensor) -> Rows:
    return rows + (value - rows @ unit)[..., None] * unit


@dataclass(frozen=True, eq=False)
class SwapCoordinates(Intervention):
    """The coordinate along a direction is taken from the same position of another sequence, or of another run."""

    direction: Float[Tensor, " d"]
    """Only where it points matters."""
    partner: Int[Tensor, " batch"] | Float[Tensor, "batch positions ..."]
    """For each sequence the one to take from, a permutation of the batch; or another run's activations at this hook."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._unit(self.direction)
        require(
            isinstance(self.partner, Tensor), f"{self}: partner must be a tensor, got {type(self.partner).__name__}"
        )
        if self.partner.is_floating_point():
            self._need_finite(self.partner, "partner", axes=(3, 4))
        else:
            numbers = self.partner.ndim == 1 and not self.partner.is_complex()
            whole = numbers and self.partner.sort().values.tolist() == list(range(len(self.partner)))
            require(whole, f"{self}: partner must be a permutation of the batch, got {self.partner.tolist()}")

    def change(self, rows: Rows, chosen: Bool[Tensor, "batch positions"]) -> Rows:
        """As in the class."""
        self._need(self.direction, "direction", (rows.shape[2],))
        unit = self._unit(self.direction).to(rows)
        if self.partner.is_floating_point():
            other = self.partner.flatten(2).to(rows)
            self._need(other, "partner", tuple(rows.shape))
        else:
            self._need(self.partner, "partner", (len(rows),))
            other = rows[self.partner.to(rows.device)]
        return _with_coordinate(rows, unit, other @ unit)


@dataclass(frozen=True, eq=False)
class Ablate(Intervention):
    """The rows are replaced by zero, by a mean row, or by rows drawn without replacement from the chosen positions."""

    kind: str
    """`zero`, `mean` or `resample`, which permutes the chosen rows: their distribution stays, their place is lost."""
    mean: Float[Tensor, " d"] | None = None
    """For `mean`: the row to write; None for the mean of the chosen rows."""
    seed: int = 0
    """For `resample`: which permutation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.kind in ("zero", "mean", "resample"), f"{self}: kind {self.kind!r}: expected zero, mean or resample"
        )
        require(self.mean is None or self.kind == "mean", f"{self}: a mean row goes with kind mean, not {self.kind}")
        if self.mean is not None:
            self._need_finite(self.mean, "mean", axes=(1,))
        require(0 <= self.seed < 2**63, f"{self}: seed must be a whole number in [0, 2**63), got {self.seed}")

    def change(self, rows: Rows, chosen: Bool[Tensor, "batch positions"]) -> Rows:
        """As in the class."""
        if self.kind == "zero":
            return torch.zeros_like(rows)
        if self.kind == "resample":
            drawn = torch.randperm(int(chosen.sum()), generator=torch.Generator().manual_seed(self.seed))
            changed = rows.clone()
            changed[chosen] = rows[chosen][drawn.to(rows.device)]
            return changed
        mean = rows[chosen].mean(0) if self.mean is None else self.mean.to(rows)
        self._need(mean, "mean", (rows.shape[2],))
        return mean.expand_as(rows)


@dataclass(frozen=True, eq=False)
class ProjectOut(Intervention):
    """The part of each row in the span of some directions is removed."""

    directions: Float[Tensor, "k d"] | Float[Tensor, " d"]
    """They need be neither orthogonal nor of unit length; of dependent ones the span counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need_finite(self.directions, "directions", axes=(1, 2))
        require(bool((self.directions != 0).any()), f"{self}: directions are all zero: there is nothing to remove")

    def change(self, rows: Rows, chosen: Bool[Tensor, "batch positions"]) -> Rows:
        """As in the class."""
        directions = torch.atleast_2d(self.directions)  # (d,) or (k, d) -> (k, d)
        self._need(directions[0], "a direction", (rows.shape[2],))
        basis = span(directions).to(rows)
        return rows - (rows @ basis.T) @ basis


def span(directions: Float[Tensor, "k d"]) -> Float[Tensor, "rank d"]:
    """An orthonormal basis, in float64, of the span of rows of any length."""
    unit = directions.double() / directions.double().norm(dim=1, keepdim=True).clamp_min(1e-300)
    _, sizes, basis = torch.linalg.svd(unit, full_matrices=False)
    return basis[sizes > sizes[0] * max(unit.shape) * torch.finfo(torch.float32).eps]


@dataclass(frozen=True, eq=False)
class Patch(Intervention):
    """The rows of another run are written, exactly."""

    activations: Float[Tensor, "batch positions ..."]
    """What `toolkit.interventions.record` gives for this hook and as many tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need_finite(self.activations, "activations", axes=(3, 4))

    def change(self, rows: Rows, chosen: Bool[Tensor, "batch positions"]) -> Rows:
        """As in the class."""
        written = self.activations.flatten(2)  # (batch, positions, [heads,] d) -> d last
        self._need(written, "activations", tuple(rows.shape))
        return written.to(rows)


@dataclass(frozen=True, eq=False)
class Replace(Intervention):
    """The rows are what a function makes of them."""

    function: Callable[[Float[Tensor, "rows d"]], Float[Tensor, "rows d"]]
    """Takes the chosen rows of all sequences, gives as many of the same width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(callable(self.function), f"{self}: function must be one of rows, got {type(self.function).__name__}")

    def change(self, rows: Rows, chosen: Bool[Tensor, "batch positions"]) -> Rows:
        """As in the class."""
        taken = rows[chosen]
        made = self.function(taken)
        self._need(made, "what the function returns", tuple(taken.shape))
        changed = rows.clone()
        changed[chosen] = made.to(rows)
        return changed

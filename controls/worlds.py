"""Planted worlds: activations, labels and the rest of a network, where the true verdict of each feature is known.

A world is any object with a `name` and `sample(seed, n)`; six stand under WORLDS, others are opened by
`package.module:ClassName`. What a sample must hold is `WorldSample`, and `check_sample` refuses what breaks it.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.errors import UserError, unknown

TRUTHS = ("model", "dataset", "inherited", "unread", "absent")
"""What a feature can be: the four verdicts, and a label that is not in the activations at all."""
NULL_KINDS = ("init", "spectrum")
"""How weights are drawn anew: Gaussian as at initialisation, or with each matrix's singular values kept."""
WORLDS = {
    "read-and-idle": "controls.world_read_and_idle:ReadAndIdle",
    "bystander": "controls.world_bystander:Bystander",
    "dormant": "controls.world_dormant:Dormant",
    "token-identity": "controls.world_token_identity:TokenIdentity",
    "and-circuit": "controls.world_and_circuit:AndCircuit",
    "spectral": "controls.world_spectral:Spectral",
}
"""The worlds that come with the suite, by name."""

_FIELDS = ("activations", "labels", "groups", "tokens", "outputs", "targets", "truth", "null_sample")


@dataclass(frozen=True)
class WorldSample:
    """Rows of one world, and the network around them."""

    activations: Float[Tensor, "rows d"]
    """What the hook holds, a row a token."""
    labels: Mapping[str, Int[np.ndarray, " rows"]]
    """Each feature's labels, 0 or 1."""
    groups: Int[np.ndarray, " rows"]
    """The document of each row; documents are independent of each other, rows inside one are not."""
    tokens: Int[np.ndarray, " rows"] | None
    """The token type of each row, or None where the world has no tokens."""
    outputs: Callable[[Tensor], Tensor]
    """The rest of the network: activations (rows, d) -> (rows, outputs); deterministic and differentiable."""
    targets: Mapping[str, int | None]
    """The output that each feature is said to move, or None where nobody says."""
    truth: Mapping[str, str]
    """What each feature is, one of TRUTHS."""
    null_sample: Callable[[str, int], Tensor | None]
    """(kind of NULL_KINDS, seed) -> the same inputs through the network with weights drawn anew, (rows, d); None where
    no weights stand behind the activations."""


@runtime_checkable
class World(Protocol):
    """A source of samples with a known answer."""

    @property
    def name(self) -> str:
        """What reports call it; a plain attribute will do."""
        ...

    def sample(self, seed: int, n: int) -> WorldSample:
        """`n` rows; a new seed is a new network as well as new data, the same seed gives the same sample."""
        ...


def open_world(name: str) -> World:
    """The world of that name, or the one that `package.module:ClassName` names, built without arguments.

    Raises:
        UserError: no such world, module or class, it cannot be built, or it has no `name` or `sample`.
    """
    if ":" not in name and name not in WORLDS:
        raise unknown("world", name, [*WORLDS, "package.module:ClassName"])
    module, _, attribute = WORLDS.get(name, name).partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, ValueError) as error:
        raise UserError(f"world {name!r}: the module {module!r} cannot be imported: {_line(error)}") from error
    except AttributeError as error:
        raise UserError(f"world {name!r}: {error}; expected package.module:ClassName") from error
    try:
        world = found()
    except Exception as error:
        raise UserError(
            f"world {name!r}: {attribute}() failed: {_line(error)}; it is built without arguments"
        ) from error
    if not isinstance(getattr(world, "name", None), str) or not callable(getattr(world, "sample", None)):
        raise UserError(f"world {name!r} is no world: expected a text `name` and a method `sample(seed, n)`")
    return world


def check_sample(sample: Any, world: World) -> WorldSample:
    """The sample with its arrays brought to the types that `WorldSample` states, or a line on what is wrong.

    Arrays may come from numpy or torch or be lists, and activations keep their precision. Both kinds of null are
    drawn once; the null_sample returned checks each further draw.

    Raises:
        UserError: a field is missing or breaks the contract (which field, what it holds, what was expected).
    """
    for field in _FIELDS:
        if not hasattr(sample, field):
            raise _broken(world, field, "is missing", f"the fields {', '.join(_FIELDS)}")
    activations = _matrix(world, "activations", sample.activations)
    rows = len(activations)
    labels = _labels(world, sample.labels, rows)
    tokens = None if sample.tokens is None else _integers(world, "tokens", sample.tokens, rows)
    _check_names(world, sample, labels)
    outputs = _check_outputs(world, sample.outputs, activations)
    for feature, target in sample.targets.items():
        if target is not None and (not _whole(target) or not 0 <= target < outputs):
            raise _broken(
                world, f"targets[{feature!r}]", f"is {target!r}", f"None or an output from 0 to {outputs - 1}"
            )
    null_sample = _checked_null(world, sample.null_sample, activations)
    for kind in NULL_KINDS:
        null_sample(kind, 0)
    return WorldSample(
        activations=activations,
        labels=labels,
        groups=_integers(world, "groups", sample.groups, rows),
        tokens=tokens,
        outputs=sample.outputs,
        targets={feature: None if target is None else int(target) for feature, target in sample.targets.items()},
        truth=dict(sample.truth),
        null_sample=null_sample,
    )


def _broken(world: World, field: str, got: str, expected: str) -> UserError:
    return UserError(f"world {world.name!r} breaks its contract: {field} {got}, expected {expected}")


def _line(error: Exception) -> str:
    """The first line of what a stranger's code says, or its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _matrix(world: World, field: str, value: Any) -> Tensor:
    try:
        matrix = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise _broken(world, field, f"is a {type(value).__name__}", "numbers of shape (rows, d)") from error
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise _broken(world, field, f"has shape {tuple(matrix.shape)}", "(rows, d), neither of them 0")
    if not matrix.is_floating_point():
        raise _broken(world, field, f"holds {matrix.dtype}", "floating-point numbers")
    if not torch.isfinite(matrix).all():
        raise _broken(world, field, "holds numbers that are not finite", "finite numbers")
    return matrix


def _integers(world: World, field: str, value: Any, rows: int) -> Int[np.ndarray, " rows"]:
    array = np.asarray(value.cpu() if isinstance(value, Tensor) else value)
    if array.shape != (rows,):
        raise _broken(world, field, f"has shape {array.shape}", f"({rows},), one for each row of activations")
    if array.dtype.kind not in "biu":
        raise _broken(world, field, f"holds {array.dtype}", "integers")
    return array.astype(np.int64)


def _labels(world: World, labels: Any, rows: int) -> dict[str, Int[np.ndarray, " rows"]]:
    if not isinstance(labels, Mapping) or not labels:
        raise _broken(world, "labels", f"is {type(labels).__name__} {labels!r:.40}", "{feature: labels}, one or more")
    checked = {}
    for feature, value in labels.items():
        field = f"labels[{feature!r}]"
        array = np.asarray(value.cpu() if isinstance(value, Tensor) else value)
        if array.dtype.kind == "f" and np.isin(array, (0, 1)).all():
            array = array.astype(np.int64)
        checked[feature] = _integers(world, field, array, rows)
        if not np.isin(checked[feature], (0, 1)).all():
            raise _broken(world, field, f"holds {np.unique(checked[feature])[:4].tolist()}", "0 and 1 only")
    return checked


def _check_names(world: World, sample: Any, labels: Mapping[str, Any]) -> None:
    for field in ("targets", "truth"):
        named = getattr(sample, field)
        if not isinstance(named, Mapping) or set(named) != set(labels):
            got = sorted(map(str, named)) if isinstance(named, Mapping) else named
            raise _broken(world, field, f"names {got!r:.60}", f"the features of labels, {sorted(map(str, labels))}")
    for feature, truth in sample.truth.items():
        if truth not in TRUTHS:
            raise _broken(world, f"truth[{feature!r}]", f"is {truth!r}", f"one of {', '.join(TRUTHS)}")


def _check_outputs(world: World, outputs: Any, activations: Tensor) -> int:
    """The number of outputs, of a function that is deterministic, differentiable and leaves its argument alone."""
    if not callable(outputs):
        raise _broken(world, "outputs", f"is a {type(outputs).__name__}", "a function of activations")
    given = activations.clone().requires_grad_()
    try:
        first, again = outputs(given), outputs(activations.clone())
    except Exception as error:
        raise _broken(
            world, "outputs", f"failed: {_line(error)}", "a torch function of (rows, d) activations"
        ) from error
    if not isinstance(first, Tensor) or first.ndim != 2 or len(first) != len(activations) or first.shape[1] == 0:
        shape = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise _broken(world, "outputs", f"returns {shape}", f"a tensor of shape ({len(activations)}, outputs)")
    if not torch.isfinite(first).all():
        raise _broken(world, "outputs", "returns numbers that are not finite", "finite numbers")
    if not first.requires_grad:
        raise _broken(world, "outputs", "has no gradient", "a function that torch can differentiate by activations")
    if not torch.equal(first, again):
        raise _broken(world, "outputs", "differs between two calls", "a deterministic function")
    if not torch.equal(given, activations):
        raise _broken(world, "outputs", "writes into its argument", "a function that leaves it as it is")
    return int(first.shape[1])


def _checked_null(world: World, null_sample: Any, activations: Tensor) -> Callable[[str, int], Tensor | None]:
    if not callable(null_sample):
        raise _broken(world, "null_sample", f"is a {type(null_sample).__name__}", "a function of (kind, seed)")

    def checked(kind: str, seed: int) -> Tensor | None:
        try:
            drawn = null_sample(kind, seed)
        except UserError:
            raise
        except Exception as error:
            raise _broken(
                world, f"null_sample({kind!r}, {seed})", f"failed: {_line(error)}", "activations or None"
            ) from error
        if drawn is None:
            return None
        matrix = _matrix(world, f"null_sample({kind!r}, {seed})", drawn)
        if matrix.shape != activations.shape:
            got, expected = (f"{tuple(m.shape)}" for m in (matrix, activations))
            raise _broken(world, f"null_sample({kind!r}, {seed})", f"has shape {got}", f"{expected}, as activations")
        return matrix.to(activations.dtype)

    return checked

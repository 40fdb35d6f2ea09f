"""An embedding whose structure is known: sparse combinations of a dictionary, clusters, circles and offsets."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.errors import check_types, require


@dataclass(frozen=True)
class Planting:
    """What is planted, and how much of it."""

    tokens: int = 2048
    """Rows."""
    d: int = 64
    """Columns."""
    atoms: int = 128
    """Unit directions in the dictionary; more than d of them are overcomplete."""
    active: int = 4
    """Atoms in each row's code."""
    signed: bool = False
    """Coefficients of either sign; otherwise all positive."""
    clusters: int = 0
    """Groups of tokens, each with an atom of the group's own in every code."""
    clustered: int = 40
    """Tokens in each group."""
    family: int = 1
    """Own atoms of each group, of which a member has one; they have cosines of about one half with each other."""
    circles: tuple[int, ...] = ()
    """Sizes of sets of tokens in a circle, each in a plane of its own."""
    pairs: tuple[int, ...] = ()
    """Numbers of token pairs (a, b), one for each relation: b is a plus the relation's offset."""
    noise: float = 0.02
    """Standard deviation of the Gaussian noise in each entry; rows have norms of about one."""

    def __post_init__(self) -> None:
        check_types(self)
        used = self.clusters * self.clustered + sum(self.circles) + 2 * sum(self.pairs)
        require(used <= self.tokens, f"{used} tokens in clusters, circles and pairs do not fit into {self.tokens}")
        require(1 <= self.active <= self.atoms, f"active must lie in [1, atoms={self.atoms}], got {self.active}")
        own = self.clusters * self.family
        require(own <= self.atoms, f"the clusters need {own} atoms of their own, and there are {self.atoms}")
        require(min(self.circles, default=3) >= 3, f"a circle needs at least 3 tokens, got {self.circles}")


@dataclass(frozen=True)
class PlantedEmbedding:
    """The rows and the truth about them."""

    rows: Float[Tensor, "tokens d"]
    """float32."""
    dictionary: Float[Tensor, "atoms d"]
    """Unit directions."""
    codes: Float[Tensor, "tokens atoms"]
    """rows = codes @ dictionary + noise; members of circles (whose codes are 0) and second members of pairs (whose
    codes are the first's) have their place on the circle or the offset added."""
    clusters: tuple[Int[Tensor, " _"], ...]
    """Tokens of each cluster; the own atoms of cluster i are i * family to (i + 1) * family - 1."""
    circles: tuple[Int[Tensor, " _"], ...]
    """Tokens of each circle, in their order round it."""
    pairs: tuple[Int[Tensor, "_ 2"], ...]
    """Tokens (a, b) of each relation."""
    offsets: Float[Tensor, "relations d"]
    """The direction b - a of each relation, of norm one."""


def plant(planting: Planting = Planting(), *, seed: int) -> PlantedEmbedding:
    """Draw an embedding; a function of its settings and the seed."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(planting.tokens)
    sizes = [planting.clustered] * planting.clusters + list(planting.circles) + [2 * n for n in planting.pairs]
    parts = np.split(order, np.cumsum(sizes))[:-1]
    c, o = planting.clusters, planting.clusters + len(planting.circles)
    clusters, circles, pairs = parts[:c], parts[c:o], [part.reshape(-1, 2) for part in parts[o:]]  # (2n,) -> (n, 2)
    dictionary, offsets = _dictionary(planting, rng), _units(rng, len(pairs), planting.d)
    codes = _codes(planting, clusters, rng)
    added = np.zeros((planting.tokens, planting.d))
    for members in circles:
        codes[members] = 0
        added[members] = _circle(len(members), planting.d, rng)
    for relation, offset in zip(pairs, offsets, strict=True):
        codes[relation[:, 1]] = codes[relation[:, 0]]
        added[relation[:, 1]] = offset
    rows = codes @ dictionary + added
    rows = rows + planting.noise * rng.standard_normal(rows.shape)
    return PlantedEmbedding(
        rows=torch.from_numpy(rows).float(),
        dictionary=torch.from_numpy(dictionary).float(),
        codes=torch.from_numpy(codes).float(),
        clusters=tuple(map(torch.from_numpy, clusters)),
        circles=tuple(map(torch.from_numpy, circles)),
        pairs=tuple(map(torch.from_numpy, pairs)),
        offsets=torch.from_numpy(offsets).float(),
    )


def _units(rng: np.random.Generator, count: int, d: int) -> np.ndarray:
    draws = rng.standard_normal((count, d))
    return draws / np.linalg.norm(draws, axis=1, keepdims=True)


def _dictionary(planting: Planting, rng: np.random.Generator) -> np.ndarray:
    """Unit directions; those of one family have a common part that is half of their squared length."""
    atoms = _units(rng, planting.atoms, planting.d)
    if planting.family > 1:
        own = planting.clusters * planting.family
        common = _units(rng, planting.clusters, planting.d).repeat(planting.family, axis=0)
        atoms[:own] += common
        atoms[:own] /= np.linalg.norm(atoms[:own], axis=1, keepdims=True)
    return atoms


def _codes(planting: Planting, clusters: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """`active` coefficients a row, in [.5, 1.5] over the root of `active`; a group's own atom has 2 over it."""
    own = np.full(planting.tokens, -1)
    for group, members in enumerate(clusters):
        own[members] = group * planting.family + rng.integers(planting.family, size=len(members))
    order = rng.random((planting.tokens, planting.atoms))
    order[own >= 0, own[own >= 0]] = -1  # first of all
    supports = order.argsort(1)[:, : planting.active]
    values = rng.uniform(0.5, 1.5, supports.shape)
    if planting.signed:
        values *= rng.choice([-1.0, 1.0], supports.shape)
    values[own >= 0, 0] = 2
    codes = np.zeros((planting.tokens, planting.atoms))
    np.put_along_axis(codes, supports, values / np.sqrt(planting.active), axis=1)
    return codes


def _circle(size: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Equally spaced points of the unit circle in a random plane through a random centre of norm one half."""
    plane = np.linalg.qr(rng.standard_normal((d, 2)))[0]  # (d, 2)
    angles = 2 * np.pi * np.arange(size) / size
    return 0.5 * _units(rng, 1, d) + np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T

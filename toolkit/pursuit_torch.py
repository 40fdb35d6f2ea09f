"""Orthogonal matching pursuit of many rows in step, as tensor programs on the Gram matrix.

The rules are those of `toolkit.pursuit_kernels`, to the constant: which atom comes next, when a row ends, when float32
cannot decide. Correlations lose weighted rows of the Gram matrix by an embedding bag, a sum of gathered rows that
writes no copy of them; no matrix product is in float32, so TF32 cannot enter. A row that ends leaves the batch.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from toolkit.atoms_torch import weighted_rows
from toolkit.pursuit_kernels import PIVOT

DEPENDENT = 1e-10
"""Share of an atom's squared norm outside the span of the others at which non-negative least squares ends a row."""


class Found(NamedTuple):
    """Codes of a batch, entry i of a row standing on atom chosen_i; entries with value 0 are no part of it."""

    chosen: Int[Tensor, "rows most"]
    """Atoms."""
    values: Float[Tensor, "rows most"]
    """Coefficients in float64, 0 where there is none."""
    undecided: Int[Tensor, " doubtful"]
    """Rows that need more digits; their values are 0."""


class _Pursuit(NamedTuple):
    """The rows still under way; all have taken the same number of atoms."""

    row: Tensor
    """(B,), their places in the batch."""
    a: Tensor
    """(B, n), correlations with the residual, 0 at chosen atoms."""
    noise: Tensor
    """(B,), what rounding does to them; 0 in float64."""
    floor: Tensor
    """(B,), where they count as zero."""
    chosen: Tensor
    """(B, most)."""
    z: Tensor
    """(B, most), float64."""
    M: Tensor
    """(B, most, most), float64, lower triangular: chosen atoms to orthonormal ones."""


def omp(
    c: Float[Tensor, "rows n"],
    gram: Float[Tensor, "n n"],
    most: int,
    noise: Float[Tensor, " rows"],
    floor: Float[Tensor, " rows"],
    pivot: float,
) -> Found:
    """Orthogonal matching pursuit of every row from its correlations c = D x, which are overwritten.

    A row with k atoms costs k^2 n flops in c's type and 2 k^3 in float64, and 8 k^2 + 3 n times c's item size bytes.
    """
    rows = len(c)
    found = Found(
        torch.zeros(rows, most, dtype=torch.long, device=c.device),
        torch.zeros(rows, most, dtype=torch.float64, device=c.device),
        torch.zeros(rows, dtype=torch.bool, device=c.device),
    )
    M = torch.zeros(rows, most, most, dtype=torch.float64, device=c.device)
    p = _Pursuit(torch.arange(rows, device=c.device), c, noise, floor, found.chosen.clone(), found.values.clone(), M)
    for i in range(most):
        at, ends, doubt, new = _next_atom(p, gram, i, pivot)
        leave = ends | doubt
        if leave.any():
            found.chosen[p.row[ends]], found.values[p.row[ends]] = p.chosen[ends], p.z[ends]
            found.undecided[p.row[doubt]] = True
            p, at, new = _Pursuit(*(t[~leave] for t in p)), at[~leave], new[~leave]
        if len(p.row) == 0:
            break
        _take(p, gram, i, at, new)
    found.chosen[p.row], found.values[p.row] = p.chosen, p.z
    return found._replace(undecided=found.undecided.nonzero()[:, 0])


def _next_atom(p: _Pursuit, gram: Tensor, i: int, pivot: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The atom that follows i others; which rows end instead, which are too close to call; the new row of M."""
    size = p.a.abs()
    best, at = size.max(1)  # the first of equals
    second = size.scatter_(1, at[:, None], -torch.inf).amax(1)
    ends = best <= p.floor
    doubt = ~ends & (best - second < p.noise)
    square = gram[at, at].double()
    g = gram[at[:, None], p.chosen[:, :i]].double()  # (B, i)
    w = (p.M[:, :i, :i] @ g[:, :, None])[:, :, 0]  # (B, i, i) (B, i, 1) -> (B, i)
    distance = square - w.square().sum(1)
    doubt |= ~ends & (p.noise > 0) & (distance < PIVOT * square)
    ends |= ~doubt & (distance < pivot * square)
    back = -(w[:, None] @ p.M[:, :i, :i])[:, 0]  # (B, 1, i) (B, i, i) -> (B, i)
    return at, ends, doubt, pad(back, (0, 1), value=1.0) * distance.clamp(min=1e-300).rsqrt()[:, None]


def _take(p: _Pursuit, gram: Tensor, i: int, at: Tensor, new: Tensor) -> None:
    """Let the atom in: refit the coefficients, bring the correlations up to date, all in place."""
    p.chosen[:, i] = at
    p.M[:, i, : i + 1] = new
    along = p.a.gather(1, at[:, None]).double() * new[:, i:]  # (B, 1)
    change = along * new
    p.z[:, : i + 1] += change
    if i + 1 < p.z.shape[1]:
        p.a.sub_(weighted_rows(gram, p.chosen[:, : i + 1], change)).scatter_(1, p.chosen[:, : i + 1], 0)


def non_negative_omp(
    c: Float[Tensor, "rows n"], gram: Float[Tensor, "n n"], most: int, floor: Float[Tensor, " rows"]
) -> Found:
    """Non-negative orthogonal matching pursuit of every row (Bruckstein, Elad and Zibulevsky 2008, section III).

    A step costs a row 2 k n flops and, in float64, k^3 / 3 for each atom that leaves and one time more; memory is
    24 k^2 bytes and 3 n times c's item size.
    """
    rows, n = c.shape
    found = Found(
        torch.zeros(rows, most, dtype=torch.long, device=c.device),
        torch.zeros(rows, most, dtype=torch.float64, device=c.device),
        torch.empty(0, dtype=torch.long, device=c.device),
    )
    # Atom n stands for an empty place: its correlations are 0.
    gram, c = pad(gram, (0, 1, 0, 1)), pad(c, (0, 1))
    row, chosen, z = torch.arange(rows, device=c.device), torch.full_like(found.chosen, n), found.values.clone()
    for _ in range(3 * most):
        best, at = (c - weighted_rows(gram, chosen, z)).scatter_(1, chosen, 0)[:, :n].max(1)
        goes = (chosen[:, -1] == n) & (best > floor)
        tried = chosen.scatter(1, (chosen < n).sum(1)[:, None].clamp(max=most - 1), at[:, None])
        tried, refitted, dependent = _stay_positive(gram, c, tried, z)
        goes &= ~dependent
        if not goes.all():
            found.chosen[row[~goes]], found.values[row[~goes]] = chosen[~goes], z[~goes]
        row, c, floor, chosen, z = row[goes], c[goes], floor[goes], tried[goes], refitted[goes]
        if len(row) == 0:
            break
    found.chosen[row], found.values[row] = chosen, z
    return found


def _stay_positive(gram: Tensor, c: Tensor, chosen: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Non-negative least squares on the chosen atoms from the feasible z (Lawson and Hanson 1974, chapter 23).

    Returns the atoms left, moved to the front, their coefficients, and which rows have dependent atoms.
    """
    n = len(gram) - 1
    dependent = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    while True:
        A = gram[chosen[:, :, None], chosen[:, None, :]].double()  # (B, k, k)
        A.diagonal(dim1=1, dim2=2).add_((chosen == n).double())
        L, info = torch.linalg.cholesky_ex(A)
        pivots = L.diagonal(dim1=1, dim2=2).square()
        dependent |= (info > 0) | (pivots <= DEPENDENT * A.diagonal(dim1=1, dim2=2)).any(1)
        target = torch.cholesky_solve(c.gather(1, chosen).double()[:, :, None], L)[:, :, 0]  # (B, k)
        blocked = (chosen < n) & (target <= 0) & ~dependent[:, None]
        share, at = torch.where(blocked, z / (z - target).clamp(min=1e-300), torch.inf).min(1)
        z = torch.where(dependent[:, None], z, z + share.clamp(max=1)[:, None] * (target - z))
        drops = share <= 1
        if not drops.any():
            return chosen, z, dependent
        gone = drops[:, None] & (torch.arange(z.shape[1], device=z.device) == at[:, None])
        chosen, z = chosen.masked_fill(gone, n), z.masked_fill(gone, 0.0)
        order = (chosen == n).byte().argsort(dim=1, stable=True)
        chosen, z = chosen.gather(1, order), z.gather(1, order)

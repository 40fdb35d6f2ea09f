"""The lasso's path in lam, followed by many rows at once as one tensor program, in float64.

The rules are those of `toolkit.homotopy`. An event, an atom that joins or leaves, changes the inverse of the active
atoms' Gram matrix by one outer product, so rows with different events take the same instructions. A row needs about as
many events as it ends with atoms, to three times as many. With room for m active atoms, doubled as rows need it up to
min(n, d), an event costs a row 2 m n flops, or 2 d (m + n) once 4 m >= d, to see how fast correlations fall, and 6 m^2
for the inverse. Memory is 24 m^2 + 100 n bytes a row at its peak.

Why not proximal gradients first and an exact finish: one such step on all atoms costs what an event does, and coherent
atoms take thousands of them.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from toolkit.atoms_torch import Atoms
from toolkit.homotopy import DEPENDENT, ROUNDING

FIRST = 32
"""Places for active atoms at first; doubled when a row needs more."""
EVENTS = 8
"""Events allowed, times the number of coordinates, before the rows left are given up."""
CHECK = 8
"""Events between two looks, from the host, at which rows have arrived."""


class Arrived(NamedTuple):
    """Rows at the end of their path."""

    row: Int[Tensor, " rows"]
    """Their places in the batch."""
    active: Int[Tensor, "rows places"]
    """Active atoms, n where a place is empty."""
    z: Float[Tensor, "rows places"]
    """Coefficients, 0 at empty places."""
    nu: Float[Tensor, "rows d"]
    """D_A^T (G_AA)^-1 sign; for basis pursuit the dual point."""


class _Path(NamedTuple):
    """Where rows are on their paths; every field has them first, and is changed in place."""

    row: Tensor
    """(B,), their places in the batch."""
    done: Tensor
    """(B,), whether they have arrived."""
    lam: Tensor
    """(B,)."""
    near: Tensor
    """(B,), lam at which they count as having arrived."""
    a: Tensor
    """(B, n), correlations with the residual."""
    barred: Tensor
    """(B, n), active or dependent on active atoms."""
    left: Tensor
    """(B,), the atom that left last, n for none."""
    left_sign: Tensor
    """(B,), on which side it was."""
    active: Tensor
    """(B, m), n where a place is empty."""
    sign: Tensor
    """(B, m), 0 at empty places, as are z and rows and columns of the inverse."""
    z: Tensor
    """(B, m)."""
    inverse: Tensor
    """(B, m, m), (G_AA)^-1."""


def follow(
    atoms: Atoms, X: Float[Tensor, "rows d"], target: float, *, positive: bool, start: Tensor | None = None
) -> tuple[list[Arrived], Int[Tensor, " given_up"]]:
    """The path of every row of X (float64) down to lam = target; the rows arrived, and those given up.

    `start` holds codes (rows, n) to begin with. Where they are a solution for some lam above target the path begins
    there, elsewhere at its top.
    """
    path, arrived = _begin(atoms, X, target, positive), []
    if start is not None:
        path = _resume(path, atoms, start, target, positive)
    for _ in range(0, EVENTS * X.shape[1] + 100, CHECK):
        done = int(path.done.sum())
        if 4 * done >= len(path.row):
            arrived.append(_arrived(path, atoms, X, target))
            path = _Path(*(t[~path.done] for t in path))
        if len(path.row) == 0:
            break
        if int((path.active < atoms.n).sum(1).max()) + CHECK > path.z.shape[1]:
            path = _with_places(path, atoms.n, min(2 * path.z.shape[1], atoms.most))
        for _ in range(CHECK):
            _event(path, atoms, target, positive)
    return [*arrived, _arrived(path, atoms, X, target)], path.row[~path.done]


def _begin(atoms: Atoms, X: Tensor, target: float, positive: bool) -> _Path:
    """The path's top: the atom of the largest correlation is about to join."""
    rows, m, on = len(X), min(FIRST, atoms.most), X.device
    a = atoms.products(X)
    lam = (a if positive else a.abs()).amax(1).clamp(min=0)
    zeros = torch.zeros(rows, m, dtype=torch.float64, device=on)
    return _Path(
        row=torch.arange(rows, device=on),
        done=lam <= target,
        lam=lam,
        near=target + ROUNDING * lam,
        a=a,
        barred=torch.zeros_like(a, dtype=torch.bool),
        left=torch.full((rows,), atoms.n, device=on),
        left_sign=zeros[:, 0].clone(),
        active=torch.full((rows, m), atoms.n, device=on),
        sign=zeros.clone(),
        z=zeros,
        inverse=torch.zeros(rows, m, m, dtype=torch.float64, device=on),
    )


def _event(p: _Path, atoms: Atoms, target: float, positive: bool) -> None:
    """One event of every row that has not arrived, in place."""
    way = (p.inverse @ p.sign[:, :, None])[:, :, 0]  # (B, m, m) (B, m, 1) -> (B, m)
    rate = atoms.images(p.active, way)  # (B, n), how fast correlations fall
    until_join, joins, join_sign = _next_joins(p, rate, atoms.most, positive)
    until_leave, leaves = torch.where(p.z * way < 0, -p.z / way, torch.inf).min(1)
    step = torch.minimum(until_join, until_leave)
    ends = p.lam - step <= p.near
    step = torch.where(ends, p.lam - target, step).masked_fill(p.done, 0)
    p.z.addcmul_(way, step[:, None])
    p.a.addcmul_(rate, step[:, None], value=-1)
    p.lam.sub_(step)
    p.done.logical_or_(ends)
    leaving = ~p.done & (until_leave < until_join)
    _change(p, atoms, leaving, torch.where(leaving, atoms.n, joins), torch.where(leaving, 0.0, join_sign), leaves)


def _next_joins(p: _Path, rate: Tensor, most: int, positive: bool) -> tuple[Tensor, Tensor, Tensor]:
    """How far lam may fall until an atom outside reaches it, at most to 0; which and with what sign.

    The one that just left may come back on the other side only.
    """
    n = p.a.shape[1]
    closed = p.barred | (p.active < n).sum(1, keepdim=True).ge(most)
    back = p.left[:, None].clamp(max=n - 1)
    came = (p.left < n)[:, None]
    best = (p.lam, torch.zeros_like(p.left), torch.zeros_like(p.lam))
    for sign in (1.0,) if positive else (1.0, -1.0):
        fall = 1 - sign * rate
        far = (p.lam[:, None] - sign * p.a).clamp(min=0) / fall
        far.masked_fill_(closed | (fall <= 0), torch.inf)
        barred = came & (p.left_sign * sign > 0)[:, None]
        far.scatter_(1, back, torch.where(barred, torch.inf, far.gather(1, back)))
        step, which = far.min(1)
        better = step < best[0]
        new = (step, which, torch.full_like(step, sign))
        best = tuple(torch.where(better, ours, theirs) for ours, theirs in zip(new, best, strict=True))
    return best


def _change(p: _Path, atoms: Atoms, leaving: Tensor, joins: Tensor, join_sign: Tensor, leaves: Tensor) -> None:
    """Let one atom a row in or out, in place: the inverse gains or loses one outer product."""
    each, last = torch.arange(len(p.row), device=p.row.device), atoms.n - 1
    place = torch.where(leaving, leaves, (p.active == atoms.n).byte().argmax(1))
    gone = p.inverse[each, place]  # (B, m)
    g = atoms.gram[joins[:, None], p.active]  # (B, m), 0 for rows that let one out
    w = (p.inverse @ g[:, :, None])[:, :, 0]  # (B, m, m) (B, m, 1) -> (B, m)
    square = atoms.gram[joins, joins]
    distance = square - (w * g).sum(1)
    joining = ~p.done & ~leaving
    p.barred[each, joins.clamp(max=last)] |= joining
    joining &= distance > DEPENDENT * square
    out = torch.where(leaving[:, None], gone, w)
    out[each, place] -= joining.double()
    weight = torch.where(leaving, -1 / gone[each, place], torch.where(joining, 1 / distance, 0.0))
    weight = weight.masked_fill(~(leaving | joining), 0)
    p.inverse.baddbmm_(out[:, :, None], (weight[:, None] * out)[:, None, :])  # (B, m, 1) (B, 1, m)
    kept = (~leaving).double()[:, None]
    p.inverse[each, place] *= kept
    p.inverse[each, :, place] *= kept
    p.left.copy_(torch.where(leaving, p.active[each, place], atoms.n))
    p.left_sign.copy_(p.sign[each, place])
    changed = leaving | joining
    p.active[each, place] = torch.where(changed, joins, p.active[each, place])
    p.sign[each, place] = torch.where(changed, join_sign, p.sign[each, place])
    p.z[each, place] = torch.where(changed, 0.0, p.z[each, place])
    p.barred.copy_(torch.where(leaving[:, None], atoms.inside(p.active), p.barred))


def _arrived(p: _Path, atoms: Atoms, X: Tensor, target: float) -> Arrived:
    """The rows that have arrived, without the rounding of their events."""
    row, active, sign, inverse = p.row[p.done], p.active[p.done], p.sign[p.done], p.inverse[p.done]
    c = pad(atoms.products(X[row]), (0, 1)).gather(1, active)  # (rows, m)
    z = _refined(atoms, inverse, active, c - target * sign, p.z[p.done])
    way = _refined(atoms, inverse, active, sign, torch.zeros_like(z))
    way = _refined(atoms, inverse, active, sign, way)
    return Arrived(row, active, torch.where(z * sign > 0, z, p.z[p.done]), atoms.sums(active, way))


def _refined(atoms: Atoms, inverse: Tensor, active: Tensor, b: Tensor, z: Tensor) -> Tensor:
    """One step of iterative refinement of G_AA z = b, (rows, m)."""
    error = b - pad(atoms.images(active, z), (0, 1)).gather(1, active)
    return z + (inverse @ error[:, :, None])[:, :, 0]  # (rows, m, m) (rows, m, 1) -> (rows, m)


def _with_places(p: _Path, n: int, places: int) -> _Path:
    """Room for that many active atoms, or for as many as there was."""
    more = max(places - p.z.shape[1], 0)
    return p._replace(
        active=pad(p.active, (0, more), value=n),
        sign=pad(p.sign, (0, more)),
        z=pad(p.z, (0, more)),
        inverse=pad(p.inverse, (0, more, 0, more)),
    )


def _resume(p: _Path, atoms: Atoms, start: Tensor, target: float, positive: bool) -> _Path:
    """Rows moved down their path to where the support and signs of `start` are a solution, if they are at some lam.

    That lam is the mean of |d_j . r| on the support, r being what `start` leaves of x. What the optimality conditions
    confirm is on the path, wherever it came from; rows they do not confirm stay at the top.
    """
    n, counts = atoms.n, (start != 0).sum(1)
    fits = (counts > 0) & (counts <= min(atoms.D.shape[1], n))
    places = int(counts[fits].max()) if fits.any() else 1
    active = (start == 0).byte().argsort(dim=1, stable=True)[:, :places]
    active = active.masked_fill(torch.arange(places, device=active.device) >= counts[:, None], n)
    codes = pad(start.double(), (0, 1)).gather(1, active)  # (rows, places)
    sign, used = codes.sign(), (active < n).double()
    gram = atoms.gram[active[:, :, None], active[:, None, :]]  # (rows, places, places)
    L, info = torch.linalg.cholesky_ex(gram + torch.diag_embed(1 - used))
    inverse = torch.cholesky_inverse(L) * used[:, :, None] * used[:, None, :]
    c = pad(p.a, (0, 1)).gather(1, active)
    lam = (sign * (c - (gram @ codes[:, :, None])[:, :, 0])).sum(1) / counts.clamp(min=1)
    z = (inverse @ (c - lam[:, None] * sign)[:, :, None])[:, :, 0]  # (rows, places, places) (rows, places, 1)
    a = p.a - atoms.images(active, z)
    inside = atoms.inside(active)
    outside = (a if positive else a.abs()).masked_fill(inside, 0).amax(1)
    on = fits & (info == 0) & (lam >= target) & (outside <= lam) & ((z * sign > 0) | (used == 0)).all(1)
    if positive:
        on &= (sign >= 0).all(1)
    p = _with_places(p, n, places)
    here = p._replace(done=lam <= target, lam=lam, a=a, barred=inside, active=active, sign=sign, z=z, inverse=inverse)
    here = _with_places(here, n, p.z.shape[1])
    # (rows, 1, ...) against (rows, ...): each row is here or at the top.
    return _Path(*(torch.where(on.view(-1, *[1] * (t.ndim - 1)), t, top) for t, top in zip(here, p, strict=True)))

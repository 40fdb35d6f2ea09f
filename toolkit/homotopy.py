"""The lasso's whole path in lam, down to zero, by homotopy in float64 (Osborne, Presnell and Turlach 2000; Donoho and
Tsaig 2008, "Fast solution of l1-norm minimization problems when the solution may be sparse").

The solution is piecewise linear in lam: between two events, an atom joining or leaving the active set, coefficients
move along (G_AA)^-1 sign. At lam = 0 it solves basis pursuit. Exact up to rounding, and slower than the working-set
solver: it serves basis pursuit and rows on which that one gives up.
"""

from typing import Any, NamedTuple

import numba
import numpy as np

from toolkit.pursuit_kernels import FAST, subtract

DEPENDENT = 1e-9
"""Share of an atom's squared norm outside the span of the active ones at which it counts as a combination of them.
Its correlation then stays within lam by itself, so it never has to join."""
ROUNDING = 1e-12
"""Share of the largest correlation below which lam counts as having arrived: what joins there is rounding."""
REFINEMENTS = 2
"""Passes of iterative refinement at the end."""
TURNED = 1e-9
"""Share of the largest coefficient up to which one of the wrong sign counts as zero."""
EVENTS = 30
"""Events allowed, times the number of coordinates, before a row is given up."""


class Path(NamedTuple):
    """Where one row is on its path; the first `count` entries of the active lists are in use."""

    inverse: Any
    """(d, d), (G_AA)^-1 in its corner."""
    a: Any
    """(n,), correlations with the residual."""
    slope: Any
    """(n,), minus their derivative along the path, negated again by `subtract`."""
    barred: Any
    """(n,), active or dependent on active atoms."""
    active: Any
    """(d,), atoms."""
    sign: Any
    """(d,), their signs."""
    z: Any
    """(d,), their coefficients."""
    way: Any
    """(d,), what z moves along as lam falls."""
    w: Any
    """(d,), scratch."""


@numba.njit(cache=True)
def _start(n, d):
    return Path(
        np.empty((d, d)),
        np.empty(n),
        np.empty(n),
        np.empty(n, np.bool_),
        np.empty(d, np.int64),
        np.empty(d),
        np.empty(d),
        np.empty(d),
        np.empty(d),
    )


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _join(p, G, count, j, sign):
    """Let atom j in; returns False where it depends on those that are in."""
    row = G[j]
    w = p.w[:count]
    w[:] = 0.0
    for i in range(count):
        value = row[p.active[i]]
        inverse = p.inverse[i, :count]
        for t in range(count):
            w[t] += value * inverse[t]
    distance = row[j]
    for i in range(count):
        distance -= w[i] * row[p.active[i]]
    p.barred[j] = True
    if distance <= DEPENDENT * row[j]:
        return False
    for i in range(count):
        inverse, scaled = p.inverse[i, :count], w[i] / distance
        for t in range(count):
            inverse[t] += scaled * w[t]
        p.inverse[i, count] = p.inverse[count, i] = -scaled
    p.inverse[count, count] = 1.0 / distance
    p.active[count], p.sign[count], p.z[count] = j, sign, 0.0
    return True


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _leave(p, G, count, at):
    """Let the active atom at place `at` go: swap it to the end and take it out of the inverse."""
    last = count - 1
    p.barred[:] = False
    if at != last:
        for t in range(count):
            p.inverse[at, t], p.inverse[last, t] = p.inverse[last, t], p.inverse[at, t]
        for t in range(count):
            p.inverse[t, at], p.inverse[t, last] = p.inverse[t, last], p.inverse[t, at]
        p.active[at], p.sign[at], p.z[at] = p.active[last], p.sign[last], p.z[last]
    for i in range(last):
        scaled = p.inverse[i, last] / p.inverse[last, last]
        row = p.inverse[i, :last]
        gone = p.inverse[last, :last]
        for t in range(last):
            row[t] -= scaled * gone[t]
    for i in range(last):
        p.barred[p.active[i]] = True


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _head(p, G, count):
    """Directions of the coefficients and of all correlations as lam falls by one."""
    way = p.way[:count]
    way[:] = 0.0
    for i in range(count):
        inverse, sign = p.inverse[i, :count], p.sign[i]
        for t in range(count):
            way[t] += sign * inverse[t]
    p.slope[:] = 0.0
    subtract(p.slope, G, p.active, way, count)


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _next_joins(p, lam, left, left_sign, positive):
    """How far lam may fall until an atom outside reaches it, which and with what sign; the one that just left may
    come back on the other side only."""
    step, which, sign = lam, -1, 0.0
    for j in range(p.a.size):
        if p.barred[j]:
            continue
        rate = -p.slope[j]
        if rate < 1.0 and not (j == left and left_sign > 0):
            far = max(lam - p.a[j], 0.0) / (1.0 - rate)
            if far < step:
                step, which, sign = far, j, 1.0
        if rate > -1.0 and not positive and not (j == left and left_sign < 0):
            far = max(lam + p.a[j], 0.0) / (1.0 + rate)
            if far < step:
                step, which, sign = far, j, -1.0
    return step, which, sign


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _first(p, positive):
    """The largest correlation, whose it is and with what sign."""
    at, lam = 0, 0.0
    for j in range(p.a.size):
        value = p.a[j] if positive else abs(p.a[j])
        if value > lam:
            at, lam = j, value
    return lam, at, 1.0 if p.a[at] > 0 else -1.0


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _refine(p, G, right, x, error, count):
    """Bring x closer to the solution of G_AA x = right, by iterative refinement with the inverse."""
    for _ in range(REFINEMENTS):
        for i in range(count):
            row = G[p.active[i]]
            error[i] = right[i]
            for t in range(count):
                error[i] -= row[p.active[t]] * x[t]
        for i in range(count):
            for t in range(count):
                x[i] += p.inverse[i, t] * error[t]


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _polish(p, c, G, lam, count):
    """Solve for z and its direction afresh on the final support, without the lengthening and the rounding of the path.

    Left as it is where that turns a sign, which means that the inverse is too far off to refine with. A coefficient
    that rounding alone turned is zero.
    """
    right, z, largest = p.w[:count], p.slope[:count], 0.0
    for i in range(count):
        right[i], z[i] = c[p.active[i]] - lam * p.sign[i], p.z[i]
    _refine(p, G, right, z, p.a, count)
    for i in range(count):
        largest = max(largest, abs(z[i]))
    sound = True
    for i in range(count):
        sound = sound and z[i] * p.sign[i] >= -TURNED * largest
    if sound:
        p.z[:count] = z
        _refine(p, G, p.sign, p.way, p.a, count)
    for i in range(count):
        if p.z[i] * p.sign[i] < 0:
            p.z[i] = 0.0


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _follow(p, c, G, scale, uneven, target, positive, most):
    """Follow one row's path down to lam = target; returns the number of active atoms, negative where given up."""
    for t in range(c.size):
        p.a[t] = scale[t] * c[t]
    p.barred[:] = False
    lam, j, sign = _first(p, positive)
    count, left, left_sign = 0, -1, 0.0
    if lam <= target:
        return 0
    near = target + ROUNDING * lam
    if _join(p, uneven, 0, j, sign):
        count = 1
    for _ in range(most):
        _head(p, uneven, count)
        step, joins, sign = lam, -1, 0.0
        if count < p.active.size:
            step, joins, sign = _next_joins(p, lam, left, left_sign, positive)
        leaves = -1
        for i in range(count):
            if p.z[i] * p.way[i] < 0 and -p.z[i] / p.way[i] < step:
                step, leaves = -p.z[i] / p.way[i], i
        ends = lam - step <= near
        step = lam - target if ends else step
        for i in range(count):
            p.z[i] += step * p.way[i]
        for t in range(p.a.size):
            p.a[t] += step * p.slope[t]
        lam -= step
        left = -1
        if ends:
            _polish(p, c, G, target, count)
            return count
        if leaves >= 0:
            left, left_sign = p.active[leaves], p.sign[leaves]
            _leave(p, uneven, count, leaves)
            count -= 1
        elif _join(p, uneven, count, joins, sign):
            count += 1
    return -1


@numba.njit(cache=True, parallel=True, fastmath=FAST, error_model="numpy")
def follow(C, G, scale, uneven, D, target, positive, chosen, z, counts, dual):
    """The path of every row down to lam = target, all in float64.

    The path is that of atoms lengthened by `scale`, the solution at its end that of the atoms themselves.

    Shapes: C (rows, n), the correlations D x; G (n, n); scale (n,); uneven (n, n), G of the lengthened atoms; D (n, d);
    chosen and z (rows, d), the atoms and their
    coefficients; counts (rows,), -1 where a row was given up; dual (rows, d), the point nu = D_A^T (G_AA)^-1 sign of
    the last stretch, for which |D nu| <= 1.
    """
    rows, n = C.shape
    d = D.shape[1]
    for r in numba.prange(rows):
        p = _start(n, min(n, d))
        counts[r] = _follow(p, C[r], G, scale, uneven, target, positive, EVENTS * d + 100)
        dual[r] = 0.0
        for i in range(max(counts[r], 0)):
            chosen[r, i], z[r, i] = p.active[i], p.z[i]
            for t in range(d):
                dual[r, t] += p.way[i] * D[p.active[i], t]

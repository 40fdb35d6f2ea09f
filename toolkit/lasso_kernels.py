"""The compiled lasso, min 1/2 |x - D^T z|^2 + lam |z|_1, one row at a time on every core.

Working sets as in celer (Massias, Gramfort and Salmon 2018): solve on a few atoms, look at all of them once, take in
those that violate optimality, repeat until the duality gap of the whole problem is small. On the working set a sweep
of coordinate descent finds the support and conjugate gradients on it finish the coefficients, stopping where one
changes sign (the two phases of FPC_AS, Wen, Yin, Goldfarb and Zhang 2010). Atoms are seen through the Gram matrix
alone. Gaps here are in the rows' type and decide when to stop; the certificate is computed apart, from the data.
"""

from typing import Any, NamedTuple

import numba
import numpy as np

from toolkit.pursuit_kernels import CHUNK, FAST, PEAK, find_peaks, subtract

FIRST = 16
"""Atoms taken in at first; later as many as are active."""
ROUNDS = 40
"""Looks at all atoms before a row is given up and handed to the homotopy."""
CYCLES = 200
"""Pairs of coordinate descent and conjugate gradients on one working set, likewise."""
HALVINGS = 8
"""Of the range in which the bar for violators lies."""
SWEEPS = 2
"""Of coordinate descent in a cycle."""
CONJUGATE = 10
"""Steps of conjugate gradients in a cycle."""
SLACK = 0.7
"""Share of the tolerance at which the solver stops, so that rounding leaves the certified gap below it."""


class Scratch(NamedTuple):
    """What one thread works on; w atoms are in the working set."""

    gram: Any
    """(most, most), the working set's Gram matrix in its corner."""
    residual: Any
    """(n,), correlations of every atom with the residual."""
    bits: Any
    """The same memory as integers."""
    peaks: Any
    """The largest of every PEAK of them, read as integers."""
    heights: Any
    """And as numbers."""
    inside: Any
    """(n,), whether an atom is in the working set."""
    place: Any
    """(n,), violators."""
    c: Any
    """(most,), the working set's correlations with the row."""
    a: Any
    """(most,), with the residual."""
    active: Any
    """(most,), places of the active atoms."""
    step: Any
    """(most,), a direction on them."""
    image: Any
    """(most,), minus the Gram matrix times that direction."""


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _scratch(n, most, like, mask):
    bits, peaks = np.empty(n, mask.dtype), np.empty((n + PEAK - 1) // PEAK, mask.dtype)
    return Scratch(
        np.empty((most, most), like.dtype),
        bits.view(like.dtype),
        bits,
        peaks,
        peaks.view(like.dtype),
        np.empty(n, np.bool_),
        np.empty(n, np.int32),
        np.empty(most, like.dtype),
        np.empty(most, like.dtype),
        np.empty(most, np.int32),
        np.empty(most, like.dtype),
        np.empty(most, like.dtype),
    )


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _sweep(gram, a, z, w, lam, positive):
    """Coordinate descent over the working set; `a` follows."""
    for j in range(w):
        row = gram[j, :w]
        u = z[j] * row[j] + a[j]
        size = (u if positive else abs(u)) - lam
        new = z[j] * 0
        if size > 0:
            new = size / row[j] if u > 0 else -size / row[j]
        change = new - z[j]
        if change != 0:
            z[j] = new
            o = a[:w]
            for t in range(o.size):
                o[t] -= change * row[t]


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _finish(s, z, w, lam):
    """Conjugate gradients on the active atoms with their signs held; stops where a coefficient reaches zero."""
    count = 0
    for j in range(w):
        if z[j] != 0:
            s.active[count] = j
            count += 1
    squared = 0.0
    for i in range(count):
        j = s.active[i]
        s.step[i] = s.a[j] - (lam if z[j] > 0 else -lam)
        squared += s.step[i] * s.step[i]
    enough = 1e-6 * squared
    a, image = s.a[:w], s.image[:w]
    for _ in range(CONJUGATE):
        image[:] = 0
        subtract(image, s.gram, s.active, s.step, count)
        curvature = 0.0
        for i in range(count):
            curvature -= s.step[i] * image[s.active[i]]
        if curvature <= 1e-12 * squared:
            return
        length, hit = squared / curvature, -1
        for i in range(count):
            here = z[s.active[i]]
            if (here > 0) != (here + length * s.step[i] > 0):
                length, hit = -here / s.step[i], i
        for i in range(count):
            z[s.active[i]] += length * s.step[i]
        for t in range(a.size):
            a[t] += length * image[t]
        if hit >= 0:
            z[s.active[hit]] = 0
            return
        before, squared = squared, 0.0
        for i in range(count):
            j = s.active[i]
            slope = s.a[j] - (lam if z[j] > 0 else -lam)
            squared += slope * slope
        if squared <= enough:
            return
        for i in range(count):
            j = s.active[i]
            s.step[i] = s.a[j] - (lam if z[j] > 0 else -lam) + squared / before * s.step[i]


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _relative_gap(square, c, a, z, w, lam, top):
    """(P - D) / P from products with the atoms: |r|^2 = |x|^2 - z.(c + a) and x.r = |x|^2 - z.c.

    theta = r / max(lam, top), `top` being the largest of the correlations that the dual bounds.
    """
    zc, za, l1 = 0.0, 0.0, 0.0
    for j in range(w):
        zc += z[j] * c[j]
        za += z[j] * a[j]
        l1 += abs(z[j])
    error = max(square - zc - za, 0.0)
    primal = 0.5 * error + lam * l1
    share = min(1.0, lam / max(top, 1e-300))
    dual = share * (square - zc) - 0.5 * share * share * error
    return (primal - dual) / max(primal, 1e-300)


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _largest(a, positive):
    top = 0.0
    for j in range(a.size):
        value = a[j] if positive else abs(a[j])
        top = value if value > top else top
    return top


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _bar(a, lam, top, room, positive):
    """A height from lam on that about `room` correlations pass: at most so many and at least half, or more if alike."""
    low, high, bar = lam, top, lam
    for _ in range(HALVINGS):
        passing = 0
        for j in range(a.size):
            passing += (a[j] if positive else abs(a[j])) > bar
        if passing > room:
            low = bar
        elif bar > lam and 2 * passing < room:
            high = bar
        else:
            return bar
        bar = (low + high) / 2
    return low


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _violators(s, lam, top, room, positive):
    """Put into `place` atoms outside the working set that violate optimality most; returns how many."""
    bar = _bar(s.residual, lam, top, room, positive)
    found = 0
    for b in range(s.heights.size):
        home = b * PEAK if s.heights[b] > bar else s.residual.size
        for j in range(home, min(home + PEAK, s.residual.size)):
            value = s.residual[j] if positive else abs(s.residual[j])
            if value > bar and not s.inside[j] and found < room:
                s.place[found] = j
                found += 1
    return found


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _take_in(s, C, G, chosen, z, w, new):
    """Append `new` atoms from `place` to the working set."""
    for i in range(new):
        j = s.place[i]
        s.inside[j] = True
        chosen[w + i], z[w + i] = j, 0
        s.c[w + i], s.a[w + i] = C[j], s.residual[j]
    for i in range(w, w + new):
        row = G[chosen[i]]
        for t in range(w + new):
            s.gram[i, t] = row[chosen[t]]
        for t in range(w):
            s.gram[t, i] = s.gram[i, t]


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _look_round(s, C, G, chosen, z, w, mask):
    """Correlations of all atoms with the residual, from scratch, and their peaks; returns how many atoms are active."""
    count = 0
    for j in range(w):
        if z[j] != 0:
            s.active[count], s.step[count] = chosen[j], z[j]
            count += 1
    s.residual[:] = C
    subtract(s.residual, G, s.active, s.step, count)
    find_peaks(s.bits, mask[0], s.peaks)
    for j in range(w):
        s.a[j] = s.residual[chosen[j]]
    return count


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _solve(s, C, square, G, lam, tolerance, positive, mask, chosen, z, w):
    """One row, from the w atoms in `chosen` with coefficients z; returns the size of the working set.

    Negative where it was given up: the set no longer fits, or too many rounds.
    """
    s.inside[:] = False
    _take_in_warm(s, C, G, chosen, w)
    for _ in range(ROUNDS):
        count = _look_round(s, C, G, chosen, z, w, mask)
        top = _largest(s.heights, positive)
        gap = _relative_gap(square, s.c, s.a, z, w, lam, top)
        if gap <= SLACK * tolerance:
            return w
        new = _violators(s, lam, top, max(FIRST, count), positive)
        if w + new > s.c.size:
            return -1
        _take_in(s, C, G, chosen, z, w, new)
        w += new
        target = max(0.1 * gap, 0.3 * tolerance) if new > 0 else 0.3 * tolerance
        for _cycle in range(CYCLES):
            for _ in range(SWEEPS):
                _sweep(s.gram, s.a, z, w, lam, positive)
            if _relative_gap(square, s.c, s.a, z, w, lam, _largest(s.a[:w], positive)) <= target:
                break
            _finish(s, z, w, lam)
    return -1


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _take_in_warm(s, C, G, chosen, w):
    """The working set that a row starts from."""
    for i in range(w):
        s.inside[chosen[i]] = True
        s.c[i] = C[chosen[i]]
        row = G[chosen[i]]
        for t in range(w):
            s.gram[i, t] = row[chosen[t]]


@numba.njit(cache=True, parallel=True, fastmath=FAST, error_model="numpy")
def lasso(C, squares, G, lam, tolerance, positive, mask, chosen, z, sizes):
    """Solve every row, from the codes it is given.

    Shapes: C (rows, n), the correlations D x; squares (rows,), |x|^2; G (n, n); mask (1,), an integer as wide as C's
    numbers for `find_peaks`; chosen and z (rows, most), the first sizes[r] entries of row r being its start and,
    afterwards, its working set. -1 in `sizes` marks a row given up.
    """
    rows, n = C.shape
    for chunk in numba.prange((rows + CHUNK - 1) // CHUNK):
        s = _scratch(n, chosen.shape[1], C, mask)
        for r in range(chunk * CHUNK, min((chunk + 1) * CHUNK, rows)):
            row = (C[r], squares[r], G, lam, tolerance, positive, mask, chosen[r], z[r])
            sizes[r] = _solve(s, *row, sizes[r])

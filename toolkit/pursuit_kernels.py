"""Compiled matching pursuit on the Gram matrix, one row at a time on every core.

The correlations of all atoms with a row's residual are kept up to date by subtracting Gram rows, so a step with i
atoms costs i * n multiply-adds and never touches the d coordinates. Correlations are in the rows' type; the small
triangular factor is in float64. A choice that rounding could turn is not made: the row is handed back to be solved in
float64.
"""

import numba
import numpy as np

# NaN cannot occur, rows and dictionaries being checked before: without it the compiler may reorder maxima too.
FAST = {"nsz", "arcp", "contract", "afn", "reassoc", "nnan"}
CHUNK = 32
"""Rows a thread takes at a time, so that scratch memory is allocated once for many."""
COLUMNS = 512
"""Correlations updated at a time: they stay in the first-level cache while Gram rows stream past."""
PEAK = 64
"""Correlations whose largest is remembered."""
PIVOT = 1e-3
"""Share of an atom's squared norm outside the span of the others below which float32 entries of the Gram matrix no
longer decide."""


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def subtract(a, G, which, weights, count):
    """a -= sum_i weights_i G[which_i, :len(a)], eight rows in one pass."""
    for start in range(0, a.shape[0], COLUMNS):
        stop = min(start + COLUMNS, a.shape[0])
        o = a[start:stop]
        i = 0
        while i + 8 <= count:
            w0, w1, w2, w3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
            w4, w5, w6, w7 = weights[i + 4], weights[i + 5], weights[i + 6], weights[i + 7]
            r0, r1 = G[which[i], start:stop], G[which[i + 1], start:stop]
            r2, r3 = G[which[i + 2], start:stop], G[which[i + 3], start:stop]
            r4, r5 = G[which[i + 4], start:stop], G[which[i + 5], start:stop]
            r6, r7 = G[which[i + 6], start:stop], G[which[i + 7], start:stop]
            for t in range(o.size):
                first = w0 * r0[t] + w1 * r1[t] + w2 * r2[t] + w3 * r3[t]
                o[t] -= first + (w4 * r4[t] + w5 * r5[t] + w6 * r6[t] + w7 * r7[t])
            i += 8
        while i + 2 <= count:
            w0, w1 = weights[i], weights[i + 1]
            r0, r1 = G[which[i], start:stop], G[which[i + 1], start:stop]
            for t in range(o.size):
                o[t] -= w0 * r0[t] + w1 * r1[t]
            i += 2
        if i < count:
            w0, r0 = weights[i], G[which[i], start:stop]
            for t in range(o.size):
                o[t] -= w0 * r0[t]


@numba.njit(cache=True, error_model="numpy")
def find_peaks(bits, mask, peaks):
    """The largest of every PEAK correlations, `bits` being the correlations read as integers.

    Without its sign bit, which `mask` takes away, a float orders as its bits do, and maxima of integers are compiled to
    vector code where those of floats are not. With a mask of all bits negative ones are passed over.
    """
    for b in range(peaks.shape[0]):
        o = bits[b * PEAK : min(bits.size, (b + 1) * PEAK)]
        largest = o[0] & mask
        for t in range(o.size):
            largest = max(largest, o[t] & mask)
        peaks[b] = largest


@numba.njit(cache=True, error_model="numpy")
def _two_largest(bits, mask, peaks):
    """Places of the largest and second largest magnitude; -1 for a second that is not there."""
    find_peaks(bits, mask, peaks)
    home = np.argmax(peaks)
    at, second, ahead = -1, -1, -1
    for t in range(home * PEAK, min(bits.size, (home + 1) * PEAK)):
        value = bits[t] & mask
        if value == peaks[home] and at < 0:
            at = t
        elif value > second:
            second, ahead = value, t
    for b in range(peaks.size):
        if b != home and peaks[b] > second:
            second, ahead = peaks[b], -2 - b
    if ahead <= -2:
        for t in range((-2 - ahead) * PEAK, min(bits.size, (-1 - ahead) * PEAK)):
            if bits[t] & mask == second:
                ahead = t
    return at, ahead


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _orthogonalise(G, chosen, count, order, M, columns, h, w):
    """Append to the rows of M, which turn chosen atoms into orthonormal ones, the row that takes one atom more.

    The new atom stands at chosen[count]; its products are read from the rows of the others, which are cached.
    `columns` is M transposed, so that both products run along memory; `order` counts up from 0; h and w are scratch.
    Returns the atom's squared distance from the span of the others.
    """
    new = M[count]
    for j in range(count):
        h[j] = G[chosen[j], chosen[count]]
        w[j] = new[j] = 0.0
    subtract(w[:count], columns, order, h, count)
    distance = np.float64(G[chosen[count], chosen[count]])
    for i in range(count):
        distance -= w[i] * w[i]
        h[i] = -w[i]
    subtract(new[:count], M, order, h, count)
    scale = 1.0 / np.sqrt(max(distance, 1e-300))
    for j in range(count):
        new[j] *= scale
        columns[j, count] = new[j]
        columns[count, j] = 0.0
        M[j, count] = 0.0
    M[count, count] = columns[count, count] = scale
    return distance


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _pursue(a, bits, mask, G, most, noise, floor, pivot, chosen, values, order, M, columns, h, w, step, peaks):
    """One row: atoms into `chosen`, coefficients into `values`; returns how many, or -1 where it is too close to call.

    `a` holds the correlations and is overwritten. `noise` is what rounding does to them, `floor` where they count as
    zero.
    """
    count = 0
    while count < most:
        at, ahead = _two_largest(bits, mask, peaks)
        best = abs(a[at])
        if best <= floor:
            break
        if ahead >= 0 and best - abs(a[ahead]) < noise:
            return -1
        chosen[count] = at
        distance = _orthogonalise(G, chosen, count, order, M, columns, h, w)
        if distance < PIVOT * G[at, at] and noise > 0:
            return -1
        if distance < pivot * G[at, at]:
            break
        along = a[at] * M[count, count]
        values[count] = 0.0
        count += 1
        for j in range(count):
            change = along * M[count - 1, j]
            values[j] += change
            step[j] = change
        if count < most:
            subtract(a, G, chosen, step, count)
            for j in range(count):
                a[chosen[j]] = 0
    return count


@numba.njit(cache=True, parallel=True, fastmath=FAST, error_model="numpy")
def omp(C, bits, mask, G, most, noise, floor, pivot, chosen, values, counts):
    """Orthogonal matching pursuit of every row; -1 in `counts` marks a row that needs more digits.

    Shapes: C (rows, n), the correlations D x, overwritten; `bits` the same memory as integers; G (n, n);
    noise and floor (rows,); chosen and values (rows, most).
    """
    rows, n = C.shape
    for chunk in numba.prange((rows + CHUNK - 1) // CHUNK):
        M, columns = np.zeros((most, most)), np.zeros((most, most))
        h, w, coefficients = np.empty(most), np.empty(most), np.empty(most)
        order = np.arange(most)
        step = np.empty(most, C.dtype)
        peaks = np.empty((n + PEAK - 1) // PEAK, bits.dtype)
        for r in range(chunk * CHUNK, min((chunk + 1) * CHUNK, rows)):
            counts[r] = _pursue(
                C[r],
                bits[r],
                mask,
                G,
                most,
                noise[r],
                floor[r],
                pivot,
                chosen[r],
                coefficients,
                order,
                M,
                columns,
                h,
                w,
                step,
                peaks,
            )
            for i in range(counts[r]):
                values[r, i] = coefficients[i]


@numba.njit(cache=True, error_model="numpy")
def _least_squares(G, c, chosen, count, L, z):
    """Solve G_AA z = c_A by Cholesky; False where the chosen atoms are dependent."""
    for i in range(count):
        for j in range(i + 1):
            value = np.float64(G[chosen[i], chosen[j]])
            for t in range(j):
                value -= L[i, t] * L[j, t]
            if i != j:
                L[i, j] = value / L[j, j]
            elif value <= 1e-10 * G[chosen[i], chosen[i]]:
                return False
            else:
                L[i, i] = np.sqrt(value)
    for i in range(count):
        z[i] = np.float64(c[chosen[i]])
        for t in range(i):
            z[i] -= L[i, t] * z[t]
        z[i] /= L[i, i]
    for i in range(count - 1, -1, -1):
        for t in range(i + 1, count):
            z[i] -= L[t, i] * z[t]
        z[i] /= L[i, i]
    return True


@numba.njit(cache=True, error_model="numpy")
def _stay_positive(G, c, chosen, count, z, target, L):
    """Non-negative least squares on the chosen atoms from the feasible z (Lawson and Hanson 1974, chapter 23).

    Goes towards the unconstrained solution, drops the atom that reaches zero first, and repeats. Returns how many
    atoms are left, or -1 where they are dependent.
    """
    while count > 0:
        if not _least_squares(G, c, chosen, count, L, target):
            return -1
        stop, share = -1, 1.0
        for i in range(count):
            if target[i] <= 0 and z[i] <= share * (z[i] - target[i]):
                stop, share = i, z[i] / max(z[i] - target[i], 1e-300)
        for i in range(count):
            z[i] += share * (target[i] - z[i])
        if stop < 0:
            return count
        for i in range(stop, count - 1):
            chosen[i], z[i] = chosen[i + 1], z[i + 1]
        count -= 1
    return 0


@numba.njit(cache=True, parallel=True, fastmath=FAST, error_model="numpy")
def non_negative_omp(C, G, most, floor, chosen, values, counts):
    """Non-negative orthogonal matching pursuit (Bruckstein, Elad and Zibulevsky 2008, section III).

    Takes the atom of the largest positive correlation and solves non-negative least squares on all it has. Shapes as
    in `omp`; C is kept.
    """
    rows, n = C.shape
    for r in numba.prange(rows):
        L, z, target = np.empty((most, most)), np.empty(most), np.empty(most)
        a, weights = np.empty(n, C.dtype), np.empty(most, C.dtype)
        count = 0
        for _ in range(3 * most):
            a[:] = C[r]
            for i in range(count):
                weights[i] = z[i]
            subtract(a, G, chosen[r], weights, count)
            for i in range(count):
                a[chosen[r, i]] = 0
            at = np.argmax(a)
            if count == most or a[at] <= floor[r]:
                break
            chosen[r, count], z[count] = at, 0.0
            left = _stay_positive(G, C[r], chosen[r], count + 1, z, target, L)
            if left < 0:
                break
            count = left
        counts[r] = count
        for i in range(count):
            values[r, i] = z[i]

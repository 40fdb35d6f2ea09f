"""Compiled pieces of the CPU's SAE step. A code is sparse: k latents a row of thousands, so after the encoder's
forward product every other product touches only the active entries.

Rows of all instances are flattened, row r belongs to instance r // batch. The code of row r is the entries
starts[r]:ends[r] of `latents` (local index) and `values`.
"""

import numba
import numpy as np

from toolkit.samplers import FAST

# Bits a pass of the radix selection; three passes cover the 31 bits of a positive float, highest first.
RADIX = 11
# Rows a thread takes at a time, so that scratch memory is allocated once for many.
_CHUNK = 64
# Latents a thread sums over rows at a time: one thread owns a column's sum, and a single instance still has work
# for every core.
_COLUMNS = 256


@numba.njit(cache=True, parallel=True, fastmath=FAST, error_model="numpy")
def select_in_rows(pre, norms, batch, k, starts, ends, latents, values):
    """Keep the positive ones among the k largest pre * norm of each row; pre is (rows, w), norms (I, w)."""
    rows = pre.shape[0]
    for chunk in numba.prange((rows + _CHUNK - 1) // _CHUNK):
        best = np.empty(k, np.float32)
        which = np.empty(k, np.int32)
        for r in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, rows)):
            _largest(pre[r], norms[r // batch], best, which)
            starts[r] = r * k
            count = r * k
            for j in range(k):
                if best[j] > 0:
                    latents[count] = which[j]
                    values[count] = pre[r, which[j]]
                    count += 1
            ends[r] = count


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _largest(pre, norm, best, which):
    """Fill `best` and `which` with the largest pre * norm and their places, in no order."""
    k = best.shape[0]
    for j in range(k):
        best[j] = pre[j] * norm[j]
        which[j] = j
    worst = np.argmin(best)
    for j in range(k, pre.shape[0]):
        score = pre[j] * norm[j]
        if score > best[worst]:
            best[worst] = score
            which[worst] = j
            worst = np.argmin(best)


@numba.njit(cache=True, parallel=True)
def _histogram(bits, instance_rows, prefix, shift, counts):
    """Count, for each instance, the scores that share `prefix` above `shift` + radix bits, by their next bits.

    counts is (I, chunks, 2**radix): chunks of rows are counted side by side.
    """
    instances, chunks, bins = counts.shape
    for task in numba.prange(instances * chunks):
        i, c = task // chunks, task % chunks
        mine = counts[i, c]
        mine[:] = 0
        first = i * instance_rows + instance_rows * c // chunks
        last = i * instance_rows + instance_rows * (c + 1) // chunks
        for r in range(first, last):
            for j in range(bits.shape[1]):
                value = np.int64(bits[r, j])
                if value > 0 and (value >> (shift + RADIX)) == prefix[i]:
                    mine[(value >> shift) & (bins - 1)] += 1


@numba.njit(cache=True)
def _batch_cut(bits, batch, keep, counts):
    """The float bits of the keep-th largest positive score of each instance, and how many of its ties to keep.

    Positive floats order as their bits do, so three passes of a radix selection find it exactly. Where fewer
    than `keep` are positive the cut is 0: everything positive stays.
    """
    instances = counts.shape[0]
    prefix = np.zeros(instances, np.int64)
    left = np.full(instances, keep, np.int64)
    found = np.ones(instances, np.bool_)
    for shift in (2 * RADIX, RADIX, 0):
        _histogram(bits, batch, prefix, shift, counts)
        for i in range(instances):
            total = counts[i].sum(axis=0)
            value = total.shape[0] - 1
            while value >= 0 and total[value] < left[i]:
                left[i] -= total[value]
                value -= 1
            found[i] = found[i] and value >= 0
            prefix[i] = (prefix[i] << RADIX) + max(value, 0)
    for i in range(instances):
        if not found[i]:
            prefix[i] = 0
            left[i] = 0
    return prefix, left


@numba.njit(cache=True, parallel=True)
def select_in_batch(pre, bits, batch, keep, counts, starts, ends, latents, values):
    """Keep the `keep` largest positive scores of each instance; `bits` (rows, w) views pre * norm as int32."""
    rows, width = pre.shape
    cut, ties = _batch_cut(bits, batch, keep, counts)
    tied = np.zeros(rows, np.int64)
    for r in numba.prange(rows):
        above = 0
        for j in range(width):
            value = bits[r, j]
            above += value > cut[r // batch]
            tied[r] += value == cut[r // batch] and value > 0
        ends[r] = above
    end = np.int64(0)
    for r in range(rows):
        if r % batch == 0:
            spare = ties[r // batch]
        tied[r] = min(tied[r], spare)
        spare -= tied[r]
        starts[r] = end
        end += ends[r] + tied[r]
        ends[r] = end
    for r in numba.prange(rows):
        entry = starts[r]
        allowed = tied[r]
        for j in range(width):
            value = bits[r, j]
            at_cut = value == cut[r // batch] and value > 0 and allowed > 0
            if value > cut[r // batch] or at_cut:
                allowed -= at_cut
                latents[entry] = j
                values[entry] = pre[r, j]
                entry += 1


@numba.njit(cache=True, parallel=True, fastmath=FAST, error_model="numpy")
def decode_rows(x, batch, starts, ends, latents, values, W_dec, b_dec, level, errors, d_values, losses):
    """Errors of every nested reconstruction and d loss / d value of every entry.

    Args:
        W_dec: (I * w, d). level: (w,) which of the L nested dictionaries a latent joins first.
        errors: (rows, L, d), filled with 2 / batch * sum of the errors of this and all wider dictionaries:
            the gradient that reaches the latents of this level.
        losses: (rows, 2), filled with the summed squared error of all dictionaries, and of the widest.
    """
    rows, count, d = errors.shape
    width = level.shape[0]
    scale = np.float32(2.0 / batch)
    for r in numba.prange(rows):
        first = (r // batch) * width
        total = np.float32(0.0)
        widest = np.float32(0.0)
        for at in range(count):
            for c in range(d):
                errors[r, at, c] = errors[r, at - 1, c] if at else b_dec[r // batch, c] - x[r, c]
            for e in range(starts[r], ends[r]):
                if level[latents[e]] == at:
                    row = W_dec[first + latents[e]]
                    for c in range(d):
                        errors[r, at, c] += values[e] * row[c]
            widest = np.float32(0.0)
            for c in range(d):
                widest += errors[r, at, c] * errors[r, at, c]
            total += widest
        losses[r, 0] = total
        losses[r, 1] = widest
        for at in range(count - 1, -1, -1):
            for c in range(d):
                wider = errors[r, at + 1, c] if at + 1 < count else np.float32(0.0)
                errors[r, at, c] = scale * errors[r, at, c] + wider
        for e in range(starts[r], ends[r]):
            row = W_dec[first + latents[e]]
            gradient = errors[r, level[latents[e]]]
            product = np.float32(0.0)
            for c in range(d):
                product += gradient[c] * row[c]
            d_values[e] = product


@numba.njit(cache=True, parallel=True)
def group_by_latent(batch, width, starts, ends, latents, latent_starts, entries, entry_rows):
    """Counting sort of the entries by (instance, latent): entries[latent_starts[q]:latent_starts[q + 1]]."""
    instances = starts.shape[0] // batch
    latent_starts[:] = 0
    for i in numba.prange(instances):
        for r in range(i * batch, (i + 1) * batch):
            for e in range(starts[r], ends[r]):
                latent_starts[i * width + latents[e] + 1] += 1
    for q in range(latent_starts.shape[0] - 1):
        latent_starts[q + 1] += latent_starts[q]
    for i in numba.prange(instances):
        cursor = latent_starts[i * width : (i + 1) * width].copy()
        for r in range(i * batch, (i + 1) * batch):
            for e in range(starts[r], ends[r]):
                at = cursor[latents[e]]
                entries[at] = e
                entry_rows[at] = r
                cursor[latents[e]] = at + 1


@numba.njit(cache=True, parallel=True, fastmath=FAST, error_model="numpy")
def accumulate(centred, values, d_values, errors, level, latent_starts, entries, entry_rows, dW_enc, db_enc, dW_dec):
    """Gradients of the latents' rows, (I * w, d) and (I * w,): each latent sums over the rows it is active on."""
    width = level.shape[0]
    d = centred.shape[1]
    for q in numba.prange(dW_enc.shape[0]):
        encoder, decoder = dW_enc[q], dW_dec[q]
        encoder[:] = 0.0
        decoder[:] = 0.0
        bias = np.float32(0.0)
        for p in range(latent_starts[q], latent_starts[q + 1]):
            r, e = entry_rows[p], entries[p]
            gradient, value = d_values[e], values[e]
            x, error = centred[r], errors[r, level[q % width]]
            bias += gradient
            for c in range(d):
                encoder[c] += gradient * x[c]
                decoder[c] += value * error[c]
        db_enc[q] = bias


@numba.njit(cache=True, parallel=True)
def mask_by_positive(gradient, latents):
    """Zero the gradient where the latent is off, both (rows, w)."""
    for r in numba.prange(gradient.shape[0]):
        for j in range(gradient.shape[1]):
            gradient[r, j] = gradient[r, j] if latents[r, j] > 0 else np.float32(0.0)


@numba.njit(cache=True, parallel=True)
def jump(pre, threshold, batch, latents, counts):
    """latents = pre * 1[pre > threshold], (rows, w); counts (I, w) how often each latent is on."""
    instances, width = threshold.shape
    blocks = (width + _COLUMNS - 1) // _COLUMNS
    for task in numba.prange(instances * blocks):
        i, first = task // blocks, (task % blocks) * _COLUMNS
        for r in range(i * batch, (i + 1) * batch):
            for j in range(first, min(first + _COLUMNS, width)):
                on = pre[r, j] > threshold[i, j]
                latents[r, j] = pre[r, j] if on else np.float32(0.0)
                counts[i, j] += on


@numba.njit(cache=True, parallel=True)
def jump_backward(pre, threshold, batch, bandwidth, sparsity, gradient, d_threshold):
    """Mask the gradient (rows, w) and sum the straight-through gradient of the threshold, (I, w)."""
    instances, width = threshold.shape
    blocks = (width + _COLUMNS - 1) // _COLUMNS
    price = np.float32(sparsity / batch)
    half = np.float32(bandwidth / 2)
    d_threshold[:] = 0.0
    for task in numba.prange(instances * blocks):
        i, first = task // blocks, (task % blocks) * _COLUMNS
        for r in range(i * batch, (i + 1) * batch):
            for j in range(first, min(first + _COLUMNS, width)):
                distance = pre[r, j] - threshold[i, j]
                if abs(distance) < half:
                    d_threshold[i, j] -= (threshold[i, j] * gradient[r, j] + price) / np.float32(bandwidth)
                if distance <= 0:
                    gradient[r, j] = 0.0


@numba.njit(cache=True, parallel=True, fastmath=FAST, error_model="numpy")
def gate(pre, scale, b_gate, b_mag, batch, latents):
    """latents = 1[pre > 0] relu(magnitude), and pre = relu(pre) in place; both (rows, w), the rest (I, w).

    The magnitude shares the gate's product: (pre - b_gate) * scale + b_mag.
    """
    for r in numba.prange(pre.shape[0]):
        i = r // batch
        for j in range(pre.shape[1]):
            value = pre[r, j]
            magnitude = (value - b_gate[i, j]) * scale[i, j] + b_mag[i, j]
            is_open = value > 0
            latents[r, j] = max(magnitude, np.float32(0.0)) if is_open else np.float32(0.0)
            pre[r, j] = value if is_open else np.float32(0.0)


@numba.njit(cache=True, parallel=True, fastmath=FAST, error_model="numpy")
def gate_backward(open_gate, latents, scale, b_mag, batch, d_gate, d_latents, sums):
    """Turn d_gate (rows, w) into the gradient at the encoder's product, in place.

    sums is (4, I, w): the gradients of b_gate, b_mag and r_mag, and how often each latent is on.
    """
    instances, width = scale.shape
    blocks = (width + _COLUMNS - 1) // _COLUMNS
    sums[:] = 0.0
    for task in numba.prange(instances * blocks):
        i, first = task // blocks, (task % blocks) * _COLUMNS
        for r in range(i * batch, (i + 1) * batch):
            for j in range(first, min(first + _COLUMNS, width)):
                through_gate = d_gate[r, j] if open_gate[r, j] > 0 else np.float32(0.0)
                on = latents[r, j] > 0
                through_magnitude = d_latents[r, j] if on else np.float32(0.0)
                sums[0, i, j] += through_gate
                sums[1, i, j] += through_magnitude
                # Where a latent is on, product * scale = latent - b_mag.
                sums[2, i, j] += through_magnitude * (latents[r, j] - b_mag[i, j])
                sums[3, i, j] += on
                d_gate[r, j] = through_gate + scale[i, j] * through_magnitude

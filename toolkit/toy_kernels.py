"""The compiled training loop of the toy models: many steps of many instances in one call.

Inputs are sparse and, once trained, so are the outputs behind the ReLU. Of the six products in a step only the
decoder's forward one is dense; rows with no feature on are counted, not computed (their output is ReLU(b)).
"""

import numba
import numpy as np

from toolkit.samplers import FAST, row_buffers, sample_rows

# Rows handled together: inner loops run over them, so they are long enough to fill vector registers and
# short enough that a block of n=400 outputs stays in the second-level cache.
BLOCK = 128
# From this hidden size on, a BLAS call on a block beats a plain loop (measured: 8 to 50 multiply-adds a ns).
BLAS_FROM = 8
# Above this share of non-zero residuals in a block, dense products beat a pass over the non-zeros.
DENSE_FROM = 0.1


@numba.njit(cache=True, fastmath=FAST, error_model="numpy", inline="always")
def add_scaled(total, factor, row):
    """total += factor * row; the factor is a value and not an array's entry, so it stays in a register."""
    for k in range(total.shape[0]):
        total[k] += factor * row[k]


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _encode(batch, start, width, W, work):
    """hidden (m, BLOCK) and its transpose for `width` non-empty rows; W is (n, m)."""
    starts, features, values, order, dense_inputs = batch
    inputs, hidden, hidden_by_row = work[0], work[1], work[2]
    if dense_inputs:
        inputs[:] = 0.0
        for r in range(width):
            for e in range(starts[order[start + r]], starts[order[start + r] + 1]):
                inputs[features[e], r] = values[e]
        np.dot(W.T, inputs, hidden)
        hidden_by_row[:] = hidden.T
        return
    hidden[:] = 0.0
    hidden_by_row[:] = 0.0
    for r in range(width):
        for e in range(starts[order[start + r]], starts[order[start + r] + 1]):
            add_scaled(hidden_by_row[r], values[e], W[features[e]])
        for k in range(W.shape[1]):
            hidden[k, r] = hidden_by_row[r, k]


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _decode(hidden, W, b, relu, outputs):
    """outputs (n, BLOCK) = `[ReLU](W h + b)`, the one dense product."""
    n, m = W.shape
    if m >= BLAS_FROM:
        np.dot(W, hidden, outputs)
    else:
        outputs[:] = 0.0
        for j in range(n):
            for k in range(m):
                weight = W[j, k]
                for r in range(BLOCK):
                    outputs[j, r] += weight * hidden[k, r]
    for j in range(n):
        bias = b[j]
        for r in range(BLOCK):
            value = outputs[j, r] + bias
            outputs[j, r] = max(value, np.float32(0.0)) if relu else value


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _residuals(batch, start, width, importance, relu, outputs, active):
    """Turn outputs into d loss / d pre-activation in place; returns the summed loss of the block.

    `active[j]` is 0 where no row of the block has a gradient at output j, else their number; rows with j on may count
    twice.
    """
    starts, features, values, order, _ = batch
    loss = 0.0
    for j in range(outputs.shape[0]):
        total = np.float32(0.0)
        count = 0
        scale = np.float32(2.0) * importance[j]
        for r in range(width):
            output = outputs[j, r]
            total += output * output
            count += output != 0.0
            outputs[j, r] = scale * output
        active[j] = count
        loss += importance[j] * total
    for r in range(width):
        for e in range(starts[order[start + r]], starts[order[start + r] + 1]):
            j = features[e]
            scale = np.float32(2.0) * importance[j]
            output = outputs[j, r] / scale if scale > 0.0 else np.float32(0.0)
            error = output - values[e]
            loss += importance[j] * (error * error - output * output)
            passes = (not relu) or output > 0.0
            outputs[j, r] = scale * error if passes else np.float32(0.0)
            active[j] += passes
    return loss


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _dense_backward(outputs, W, hidden_by_row, d_hidden, products, dW):
    """d_hidden (BLOCK, m) and the decoder's share of dW (n, m) by two dense products."""
    np.dot(outputs, hidden_by_row, products)
    dW += products
    np.dot(outputs.T, W, d_hidden)


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _small_backward(width, outputs, W, hidden, d_hidden, dW):
    """The same for few hidden dimensions: every inner loop runs over the rows."""
    n, m = W.shape
    gradient = np.empty(BLOCK, np.float32)
    for k in range(m):
        gradient[:] = 0.0
        for j in range(n):
            total = np.float32(0.0)
            weight = W[j, k]
            for r in range(width):
                total += outputs[j, r] * hidden[k, r]
                gradient[r] += outputs[j, r] * weight
            dW[j, k] += total
        for r in range(width):
            d_hidden[r, k] = gradient[r]


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _sparse_backward(width, outputs, active, W, hidden_by_row, d_hidden, dW):
    """The same, by one pass over the non-zero residuals."""
    d_hidden[:] = 0.0
    for j in range(W.shape[0]):
        if active[j] == 0:
            continue
        for r in range(width):
            g = outputs[j, r]
            if g != 0.0:
                add_scaled(dW[j], g, hidden_by_row[r])
                add_scaled(d_hidden[r], g, W[j])


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _backward(batch, start, width, W, work, dW, db):
    """Add the block's gradients to dW (n, m) and db (n,)."""
    starts, features, values, order, dense_inputs = batch
    inputs, hidden, hidden_by_row, d_hidden, outputs, active, products = work
    n, m = W.shape
    for j in range(n):
        total = np.float32(0.0)
        for r in range(width):
            total += outputs[j, r]
        db[j] += total
    if m < BLAS_FROM:
        _small_backward(width, outputs, W, hidden, d_hidden, dW)
    elif active.sum() > DENSE_FROM * n * BLOCK:
        outputs[:, width:] = 0.0
        _dense_backward(outputs, W, hidden_by_row, d_hidden, products, dW)
    else:
        _sparse_backward(width, outputs, active, W, hidden_by_row, d_hidden, dW)
    if dense_inputs:
        np.dot(inputs, d_hidden, products)
        dW += products
        return
    for r in range(width):
        for e in range(starts[order[start + r]], starts[order[start + r] + 1]):
            add_scaled(dW[features[e]], values[e], d_hidden[r])


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _gradients(starts, features, values, W, b, importance, relu, work, dW, db):
    """Mean loss of one sparse batch and its gradients, written to dW (n, m) and db (n,)."""
    rows = starts.shape[0] - 1
    n, m = W.shape
    dW[:] = 0.0
    db[:] = 0.0
    order = np.empty(rows, np.int64)
    filled = 0
    for r in range(rows):
        if starts[r + 1] > starts[r]:
            order[filled] = r
            filled += 1
    dense_inputs = m >= BLAS_FROM and starts[rows] > DENSE_FROM * n * rows
    batch = (starts, features, values, order, dense_inputs)
    loss = 0.0
    for start in range(0, filled, BLOCK):
        width = min(BLOCK, filled - start)
        _encode(batch, start, width, W, work)
        _decode(work[1], W, b, relu, work[4])
        loss += _residuals(batch, start, width, importance, relu, work[4], work[5])
        _backward(batch, start, width, W, work, dW, db)
    empty = rows - filled
    for j in range(n):
        output = max(b[j], np.float32(0.0)) if relu else b[j]
        loss += empty * importance[j] * output * output
        db[j] += np.float32(2.0) * empty * importance[j] * output
    dW /= np.float32(rows)
    db /= np.float32(rows)
    return loss / rows


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def adam_step(parameter, gradient, first, second, rate, step, decay):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) with its default decay rates, in place."""
    beta_1, beta_2 = np.float32(0.9), np.float32(0.999)
    size = np.float32(rate / (1.0 - 0.9**step))
    correction = np.float32(1.0 / np.sqrt(1.0 - 0.999**step))
    kept = np.float32(1.0 - rate * decay)
    for i in range(parameter.size):
        g = gradient[i]
        first[i] = beta_1 * first[i] + (np.float32(1.0) - beta_1) * g
        second[i] = beta_2 * second[i] + (np.float32(1.0) - beta_2) * g * g
        parameter[i] = kept * parameter[i] - size * first[i] / (np.sqrt(second[i]) * correction + np.float32(1e-8))


@numba.njit(cache=True)
def _workspace(n, m):
    """Buffers of one instance: inputs, hidden, hidden by row, its gradient, outputs, active counts, products."""
    return (
        np.zeros((n, BLOCK), np.float32),
        np.zeros((m, BLOCK), np.float32),
        np.zeros((BLOCK, m), np.float32),
        np.zeros((BLOCK, m), np.float32),
        np.zeros((n, BLOCK), np.float32),
        np.zeros(n, np.int64),
        np.zeros((n, m), np.float32),
    )


@numba.njit(cache=True)
def _descend(i, W, b, moments_W, moments_b, dW, db, rate, step, decay):
    """One step of instance i; W is decayed, b is not."""
    first, second = moments_W[0, i].reshape(-1), moments_W[1, i].reshape(-1)
    adam_step(W[i].reshape(-1), dW.reshape(-1), first, second, rate, step, decay)
    adam_step(b[i], db, moments_b[0, i], moments_b[1, i], rate, step, 0.0)


@numba.njit(cache=True, parallel=True)
def train_steps(W, b, moments_W, moments_b, density, seed, rows, importance, relu, first_step, rates, decay, losses):
    """Train every instance for len(rates) steps in place, on fresh samples.

    Args:
        W: (instances, n, m) float32, feature-major. b: (instances, n).
        moments_W, moments_b: (2, instances, n, m) and (2, instances, n), Adam's two moments.
        density, importance: (instances, n).
        rates: (steps,) learning rate of each step; the first is step `first_step` of the whole run.
        losses: (steps, instances), filled with the batch loss of each step.
    """
    instances, n, m = W.shape
    for i in numba.prange(instances):
        starts, features, values = row_buffers(rows, n)
        work = _workspace(n, m)
        dW = np.empty((n, m), np.float32)
        db = np.empty(n, np.float32)
        for t in range(rates.shape[0]):
            step = first_step + t
            sample_rows(seed, i, step, rows, density[i], starts, features, values)
            losses[t, i] = _gradients(starts, features, values, W[i], b[i], importance[i], relu, work, dW, db)
            _descend(i, W, b, moments_W, moments_b, dW, db, rates[t], step + 1, decay)


@numba.njit(cache=True, parallel=True)
def train_rows(
    W, b, moments_W, moments_b, starts, features, values, importance, relu, first_step, rates, decay, losses
):
    """The same on a fixed set of compressed rows: starts (instances, rows + 1), features and values (instances, most).

    Every step sees every row.
    """
    instances, n, m = W.shape
    for i in numba.prange(instances):
        work = _workspace(n, m)
        dW = np.empty((n, m), np.float32)
        db = np.empty(n, np.float32)
        for t in range(rates.shape[0]):
            losses[t, i] = _gradients(starts[i], features[i], values[i], W[i], b[i], importance[i], relu, work, dW, db)
            _descend(i, W, b, moments_W, moments_b, dW, db, rates[t], first_step + t + 1, decay)


@numba.njit(cache=True)
def batch_gradients(starts, features, values, W, b, importance, relu, dW, db):
    """Loss and gradients of one instance on one given sparse batch: what `train_steps` does at each step."""
    return _gradients(starts, features, values, W, b, importance, relu, _workspace(*W.shape), dW, db)

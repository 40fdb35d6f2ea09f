"""Sparse feature samplers: each feature is off with probability 1 - p, else uniform on [0, 1].

Draws are a pure function of (seed, instance, step), so a run that resumes at step 700 sees the batch it
would have seen unkilled, and an instance sees the same batches alone as among many.
"""

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# Every liberty of fast arithmetic but those that assume there is no NaN or infinity: divergence has to be seen.
FAST = {"nsz", "arcp", "contract", "afn", "reassoc"}

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@numba.njit(cache=True, inline="always")
def _mix(state):
    """SplitMix64's output function (Steele, Lea and Flood 2014)."""
    z = state
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True, inline="always")
def stream(seed, instance, step):
    """The start of the SplitMix64 stream that belongs to one instance at one step."""
    state = _mix(np.uint64(seed) + _GOLDEN)
    state = _mix(state + np.uint64(instance) * _GOLDEN + _GOLDEN)
    return _mix(state + np.uint64(step) * _GOLDEN + _GOLDEN)


@numba.njit(cache=True, inline="always")
def uniform(bits):
    """A float32 uniform on (0, 1): 23 random bits, shifted by half a step so that neither end occurs."""
    return (np.float32(bits >> np.uint64(41)) + np.float32(0.5)) * np.float32(2.0**-23)


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def sample_rows(seed, instance, step, rows, density, starts, features, values):
    """Draw one sparse batch as compressed rows, touching only the entries that are on.

    Runs of zeros are skipped with geometric jumps at the largest density, then thinned to each feature's
    own, so the cost follows rows x features x max(density) and not rows x features.

    Args:
        density: (features,) probability that a feature is on, in (0, 1].
        starts: (rows + 1,) int64, filled with the row pointers.
        features, values: at least rows x features long, filled with column index and value.
    """
    n = density.shape[0]
    peak = np.float32(density.max())
    jump = np.float32(0.0)
    if peak < 1.0:
        jump = np.float32(1.0) / np.float32(np.log1p(-peak))
    state = stream(seed, instance, step)
    total = np.int64(rows) * n
    position = np.int64(-1)
    count = 0
    row = 0
    row_end = np.int64(0)
    starts[0] = 0
    while True:
        position += 1
        if peak < 1.0:
            state += _GOLDEN
            position += np.int64(min(np.log(uniform(_mix(state))) * jump, np.float32(total)))
        if position >= total:
            break
        while position >= row_end + n:
            row += 1
            row_end += n
            starts[row] = count
        state += _GOLDEN
        bits = _mix(state)
        feature = position - row_end
        # The low 24 bits decide the thinning, the high 24 the value: independent halves of one word.
        keep = np.float32(bits & np.uint64(0xFFFFFF)) * np.float32(2.0**-24) * peak < density[feature]
        if keep:
            features[count] = feature
            values[count] = uniform(bits)
            count += 1
    while row < rows:
        row += 1
        starts[row] = count
    return count


@numba.njit(cache=True)
def row_buffers(rows, n):
    """Row pointers, columns and values large enough for any batch of `sample_rows`."""
    return np.empty(rows + 1, np.int64), np.empty(rows * n, np.int32), np.empty(rows * n, np.float32)


@numba.njit(cache=True, parallel=True)
def _dense_batches(seed, step, density, out):
    instances, rows, n = out.shape
    for i in numba.prange(instances):
        starts, features, values = row_buffers(rows, n)
        sample_rows(seed, i, step, rows, density[i], starts, features, values)
        for r in range(rows):
            for e in range(starts[r], starts[r + 1]):
                out[i, r, features[e]] = values[e]


def sample(
    density: Float[Tensor, "instances features"], rows: int, *, seed: int, step: int = 0
) -> Float[Tensor, "instances rows features"]:
    """One batch of sparse features for every instance, on the device of `density`.

    Each entry is 0 with probability 1 - density and else uniform on (0, 1) (Elhage et al. 2022, "Toy Models
    of Superposition", section 2): mean p/2, second moment p/3. The same (seed, step) gives the same batch;
    CPU and CUDA use different generators, so their batches differ.
    """
    shape = (density.shape[0], rows, density.shape[1])
    if density.device.type == "cpu":
        out = torch.zeros(shape)
        _dense_batches(seed, step, density.float().numpy(), out.numpy())
        return out
    generator = torch.Generator(density.device).manual_seed(seed * 1_000_003 + step)
    on = torch.rand(shape, generator=generator, device=density.device) < density[:, None]
    return on * torch.rand(shape, generator=generator, device=density.device)


def compressed(
    rows: Float[Tensor, "instances samples features"],
) -> tuple[
    Int[np.ndarray, "instances starts"], Int[np.ndarray, "instances entries"], Float[np.ndarray, "instances entries"]
]:
    """Each instance's rows as compressed rows: row pointers, columns and values, padded to the fullest instance."""
    kept = [torch.nonzero(x, as_tuple=True) for x in rows]
    longest = max(1, *(len(columns) for _, columns in kept))
    starts = np.zeros((len(rows), rows.shape[1] + 1), np.int64)
    features = np.zeros((len(rows), longest), np.int32)
    values = np.zeros((len(rows), longest), np.float32)
    for i, (row, column) in enumerate(kept):
        starts[i, 1:] = np.cumsum(np.bincount(row.numpy(), minlength=rows.shape[1]))
        features[i, : len(column)] = column.numpy()
        values[i, : len(column)] = rows[i][row, column].numpy()
    return starts, features, values


@numba.njit(cache=True, parallel=True)
def fill_uniforms(seed, step, draw, out):
    """Fill out (instances, rows, columns) with uniforms on (0, 1), instance by instance."""
    for i in numba.prange(out.shape[0]):
        state = stream(seed, i, step) + _mix(np.uint64(draw + 1) * _GOLDEN)
        flat = out[i].reshape(-1)
        for e in range(flat.size):
            flat[e] = uniform(_mix(state + np.uint64(e) * _GOLDEN))

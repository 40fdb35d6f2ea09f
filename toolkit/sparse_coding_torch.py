"""Rows to sparse codes on a GPU: the functions of `toolkit.sparse_coding`, with the same rules and results.

Rows are taken in batches sized to the device's memory. Matrix products are in float64, in which TF32 has no part;
there are few of them. What a batch finds is certified from the data, and rows that fail are solved on the CPU.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit import homotopy_torch, pursuit_torch, sparse_coding
from toolkit.atoms_torch import Atoms, as_atoms
from toolkit.coding_inputs import check_count, check_lasso, checked
from toolkit.devices import resolve
from toolkit.homotopy_torch import Arrived
from toolkit.sparse_coding import CLOSE, Codes, Solved, as_csr, stacked, with_rows

MEMORY = 2**29
"""Bytes of a batch on the CPU; on a GPU it is half of what is free."""
EXACT = 1e-9
"""Relative error in the optimality conditions above which a code of basis pursuit is solved again on the CPU."""
_TYPE = {np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}


def omp_codes(X: Any, D: Any, n_nonzero: int, *, positive: bool = False, device: str = "cuda") -> Solved:
    """Codes of at most `n_nonzero` atoms by orthogonal matching pursuit, as `sparse_coding.omp_codes`.

    Flops and memory of a row: `pursuit_torch.omp` and `non_negative_omp`, and 2 d n flops for its correlations.

    Raises:
        UserError: as there; no such device.
    """
    on = resolve(device)
    X, D = checked(X, D)
    check_count(n_nonzero, len(D))
    n_nonzero = min(n_nonzero, D.shape[1])  # more cannot be independent
    atoms = torch.tensor(D, dtype=torch.float64, device=on)
    gram, parts, doubtful = atoms @ atoms.T, [], []
    for rows in _batches(len(X), 32 * n_nonzero**2 + 40 * len(D), on):
        x = torch.tensor(X[rows], dtype=torch.float64, device=on)
        found = _omp_batch(x @ atoms.T, x.norm(dim=1), gram, n_nonzero, positive, X.dtype)
        parts.append(_csr(found.chosen, found.values.to(_TYPE[X.dtype]), len(D)))
        doubtful.append(found.undecided.numpy(force=True) + rows.start)
    codes, index = stacked(parts), np.concatenate(doubtful)
    if len(index):
        fine = omp_codes(X[index].astype(np.float64), D.astype(np.float64), n_nonzero, device=device)
        codes = with_rows(codes, index, fine.codes)
    return Solved(codes, np.empty(0, int))


def _omp_batch(
    c: Tensor, norms: Tensor, gram: Tensor, most: int, positive: bool, dtype: np.dtype
) -> pursuit_torch.Found:
    """Codes of a batch from its correlations (B, n) and norms (B,), computed in `dtype`."""
    single, eps = dtype == np.float32, float(np.finfo(dtype).eps)
    scale = norms * gram.diagonal().max().sqrt()  # (B,)
    c, gram = c.to(_TYPE[dtype]), gram.to(_TYPE[dtype])
    if positive:
        return pursuit_torch.non_negative_omp(c, gram, most, 64 * eps * scale)
    noise, floor = (CLOSE * eps * scale, 0 * scale) if single else (0 * scale, 1e-10 * scale)
    return pursuit_torch.omp(c, gram, most, noise, floor, 1e-12)


def lasso_codes(
    X: Any,
    D: Any,
    alpha: float,
    *,
    tolerance: float = 1e-4,
    positive: bool = False,
    start: Codes | None = None,
    device: str = "cuda",
) -> Solved:
    """Codes that minimise 1/2 |x - D^T z|^2 + alpha |z|_1, each to a relative duality gap of `tolerance`.

    The lasso's path is followed to alpha, so that the gap is rounding; a row whose gap, computed from its code as
    returned, is above tolerance is solved by `sparse_coding.lasso_codes`. `start`, codes of a larger alpha, saves the
    way to there if they solve it. Flops and memory of a row: `homotopy_torch`.

    Raises:
        UserError: as `sparse_coding.lasso_codes`; no such device.
    """
    on = resolve(device)
    X, D = checked(X, D)
    check_lasso(alpha, tolerance)

    def settled(x: Tensor, atoms: Atoms, f: Arrived) -> Tensor:
        return _lasso_gap(x, atoms, f, alpha, positive) <= tolerance

    codes, index, _ = _paths(X, D, alpha, positive, on, settled, start)
    if len(index) == 0:
        return Solved(codes, index)
    rest = sparse_coding.lasso_codes(X[index], D, alpha, tolerance=tolerance, positive=positive)
    return Solved(with_rows(codes, index, rest.codes), index[rest.given_up])


def basis_pursuit_codes(X: Any, D: Any, *, positive: bool = False, device: str = "cuda") -> Solved:
    """Codes of least |z|_1 among those with D^T z = x, by following the lasso's path to its end, in float64.

    Where no code reaches x, as `sparse_coding.basis_pursuit_codes`, by which rows are solved whose code or dual is off
    by more than `EXACT`. Flops and memory of a row: `homotopy_torch`.

    Raises:
        UserError: as there; no such device.
    """
    on = resolve(device)
    X, D = checked(X, D)

    def settled(x: Tensor, atoms: Atoms, f: Arrived) -> Tensor:
        return _pursuit_error(x, atoms, f, positive) <= EXACT

    codes, index, dual = _paths(X, D, 0.0, positive, on, settled)
    if len(index) == 0:
        return Solved(codes, index, dual)
    rest = sparse_coding.basis_pursuit_codes(X[index], D, positive=positive)
    dual[index] = rest.dual
    return Solved(with_rows(codes, index, rest.codes), index[rest.given_up], dual)


def _paths(
    X: np.ndarray,
    D: np.ndarray,
    target: float,
    positive: bool,
    on: str,
    settled: Callable[[Tensor, Atoms, Arrived], Tensor],
    start: Codes | None = None,
) -> tuple[Codes, np.ndarray, np.ndarray]:
    """Codes and dual points of every row at lam = target; the rows given up or not settled, whose codes are empty."""
    atoms = as_atoms(torch.tensor(D, device=on))
    parts, again, dual = [], [], np.zeros(X.shape)
    for rows in _batches(len(X), 48 * min(D.shape) ** 2 + 200 * len(D), on):
        x = torch.tensor(X[rows], dtype=torch.float64, device=on)
        begin = None if start is None else torch.tensor(start[rows].toarray(), device=on)
        arrived, left = homotopy_torch.follow(atoms, x, target, positive=positive, start=begin)
        chosen = torch.zeros(len(x), max(f.z.shape[1] for f in arrived), dtype=torch.long, device=on)
        values = torch.zeros(chosen.shape, dtype=_TYPE[X.dtype], device=on)
        for f in arrived:
            rounded = f.z.to(values.dtype)
            good = settled(x[f.row], atoms, f._replace(z=rounded.double()) if target else f)
            values[f.row, : f.z.shape[1]] = rounded.masked_fill(~good[:, None], 0)
            chosen[f.row, : f.z.shape[1]] = f.active
            left = torch.cat([left, f.row[~good]])
            dual[rows][f.row.numpy(force=True)] = f.nu.numpy(force=True)
        parts.append(_csr(chosen, values, len(D)))
        again.append(left.sort().values.numpy(force=True) + rows.start)
    return stacked(parts), np.concatenate(again), dual


def _lasso_gap(x: Tensor, atoms: Atoms, f: Arrived, alpha: float, positive: bool) -> Tensor:
    """Relative duality gap of each row, (rows,); the formula of `certificates.lasso_gaps`."""
    residual = x - atoms.sums(f.active, f.z)
    correlation = residual @ atoms.D.T  # (rows, n + 1)
    top = (correlation if positive else correlation.abs()).amax(1)
    scale = alpha / top.clamp(min=alpha)
    energy, l1 = residual.square().sum(1) / 2, f.z.abs().sum(1)
    slack = alpha * f.z.abs() - scale[:, None] * f.z * correlation.gather(1, f.active)
    gap = (1 - scale) ** 2 * energy + slack.clamp(min=0).sum(1)
    return gap / (energy + alpha * l1).clamp(min=1e-300)


def _pursuit_error(x: Tensor, atoms: Atoms, f: Arrived, positive: bool) -> Tensor:
    """Largest relative error in what makes a code optimal for basis pursuit, (rows,).

    The residual is orthogonal to the atoms, so that none comes nearer to x; |D nu| <= 1; z . D nu = |z|_1. With
    `positive` the residual's correlations are at most 0, they are 0 on the support, and D nu <= 1 is needed only
    where they are 0, for the other atoms are in no nearest code.
    """
    residual = x - atoms.sums(f.active, f.z)
    size = (x @ atoms.D.T).abs().amax(1, keepdim=True).clamp(min=1e-300)
    off = residual @ atoms.D.T / size  # (rows, n + 1)
    bound = f.nu @ atoms.D.T  # (rows, n + 1)
    l1 = f.z.abs().sum(1)
    slack = (l1 - (f.z * bound.gather(1, f.active)).sum(1)).abs() / l1.clamp(min=1e-300)
    if not positive:
        return torch.stack([off.abs().amax(1), bound.abs().amax(1) - 1, slack]).amax(0)
    on_support = (off.gather(1, f.active).abs() * (f.z > 0)).amax(1)
    needed = bound.masked_fill(off < -EXACT, 0)
    return torch.stack([off.amax(1), on_support, needed.amax(1) - 1, slack]).amax(0)


def _batches(rows: int, bytes_a_row: int, on: str) -> list[slice]:
    """Slices of rows that fit the device."""
    memory = MEMORY
    if on == "cuda":
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        memory = (torch.cuda.mem_get_info()[0] + kept) // 2
    size = max(1, memory // bytes_a_row)
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def _csr(chosen: Tensor, values: Tensor, n: int) -> Codes:
    """CSR from atoms and coefficients (rows, k), zeros left out."""
    places = np.full(len(values), values.shape[1])
    return as_csr(chosen.to(torch.int32).numpy(force=True), values.numpy(force=True), places, n)

"""Probes that no convex program finds: low-rank linear ones and one hidden layer, many problems on the same rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.heads import LinearHeads, NetworkHeads, cross_entropies, network_logits
from toolkit.lbfgs import minimise
from toolkit.logistic import Design, fit_logistic

# Hidden activations held at a time, (rows, problems * hidden).
_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class _Sizes:
    """How one problem's parameters lie in a row."""

    parts: tuple[tuple[int, ...], ...]
    """Shapes of the tensors, in order."""

    @property
    def total(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.parts)

    def cut(self, parameters: Tensor) -> list[Tensor]:
        """(problems, total) -> one tensor a part, (problems, *shape)."""
        lengths = [torch.Size(shape).numel() for shape in self.parts]
        pieces = parameters.split(lengths, 1)
        return [piece.view(-1, *shape) for piece, shape in zip(pieces, self.parts, strict=True)]


def fit_low_rank(
    data: Design,
    labels: Int[Tensor, "rows problems"],
    *,
    classes: int,
    rank: int,
    l2: Float[Tensor, " problems"],
    shares: Float[Tensor, "problems classes"] | None = None,
    tolerance: float,
    most: int,
) -> LinearHeads:
    """`fit_logistic` among coefficient matrices (classes, d) of a rank, started at the best such part of its solution.

    Hewitt and Liang 2019, section 3.2 (rank constraint). Two classes need one output, whose rank is one.
    """
    full = fit_logistic(
        data, labels, classes=classes, l2=l2, shares=shares, tolerance=max(tolerance, 1e-4), most=most
    ).heads
    d = data.Z.shape[1]
    scale = (0.5 * data.variances + l2[:, None]).clamp(min=1e-12).rsqrt()[:, None]  # (problems, 1, d)
    U, S, V = torch.linalg.svd((full.coefficients @ data.basis) / scale, full_matrices=False)
    root = S[:, :rank].sqrt()
    left, right = U[..., :rank] * root[:, None], root[..., None] * V[:, :rank]  # (P, C, r), (P, r, d)
    offsets = full.intercepts + full.coefficients @ data.mean
    sizes = _Sizes(((classes, rank), (rank, d), (classes,)))
    start = torch.cat([part.flatten(1) for part in (left, right, offsets)], 1)

    def logits(parts: list[Tensor], which: Tensor, Z: Tensor) -> Tensor:
        b = (parts[0] @ parts[1]) * scale[which]  # (P, C, d)
        return torch.addmm(parts[2].flatten(), Z, b.flatten(0, 1).mT).view(len(Z), *parts[2].shape)

    def penalty(parts: list[Tensor], which: Tensor) -> Tensor:
        return ((parts[0] @ parts[1]) * scale[which]).square().sum((1, 2))

    objective = _objective(data, labels, l2, shares, sizes, logits, penalty, width=classes)
    found = minimise(objective, start, tolerance=tolerance, most=most)
    parts = sizes.cut(found.parameters)
    heads = LinearHeads.rotated(data, (parts[0] @ parts[1]) * scale, parts[2])
    return replace(heads, iterations=found.iterations, exhausted=bool(found.exhausted.any()))


def fit_networks(
    data: Design,
    labels: Int[Tensor, "rows problems"],
    *,
    classes: int,
    hidden: int,
    l2: Float[Tensor, " problems"],
    shares: Float[Tensor, "problems classes"] | None = None,
    seed: int,
    tolerance: float,
    most: int,
) -> NetworkHeads:
    """One hidden layer of ReLUs by full-batch L-BFGS, l2 / 2 times the squared weights (no biases) added.

    Every problem starts from the same draw: He's initialisation for rows of variance one in every direction.
    """
    d, outputs = data.Z.shape[1], 1 if classes == 2 else classes
    scale = (data.variances + l2[:, None]).clamp(min=1e-12).rsqrt()[:, None]  # (problems, 1, d)
    sizes = _Sizes(((hidden, d), (hidden,), (outputs, hidden), (outputs,)))
    draw = torch.Generator().manual_seed(seed)
    into = torch.randn(hidden, d, generator=draw) * (2 / d) ** 0.5
    out = torch.randn(outputs, hidden, generator=draw) * hidden**-0.5
    one = torch.cat([into.flatten(), torch.zeros(hidden), out.flatten(), torch.zeros(outputs)])
    start = one.to(data.Z).expand(labels.shape[1], -1).clone()

    def logits(parts: list[Tensor], which: Tensor, Z: Tensor) -> Tensor:
        return network_logits(Z, parts[0] * scale[which], *parts[1:])

    def penalty(parts: list[Tensor], which: Tensor) -> Tensor:
        return (parts[0] * scale[which]).square().sum((1, 2)) + parts[2].square().sum((1, 2))

    objective = _objective(data, labels, l2, shares, sizes, logits, penalty, width=hidden)
    found = minimise(objective, start, tolerance=tolerance, most=most)
    into, bias, out, offset = sizes.cut(found.parameters)
    raw = (into * scale) @ data.basis.mT
    exhausted = bool(found.exhausted.any())
    return NetworkHeads(raw, bias - raw @ data.mean, out, offset, found.iterations, exhausted)


def _objective(
    data: Design,
    labels: Tensor,
    l2: Tensor,
    shares: Tensor | None,
    sizes: _Sizes,
    logits: Callable[[list[Tensor], Tensor, Tensor], Tensor],
    penalty: Callable[[list[Tensor], Tensor], Tensor],
    *,
    width: int,
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Weighted cross-entropy plus penalty, and its gradient by autograd, over blocks of rows."""

    def objective(parameters: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        leaf = parameters.detach().requires_grad_(True)
        with torch.enable_grad():
            value = l2[which] / 2 * penalty(sizes.cut(leaf), which)
            slope = torch.autograd.grad(value.sum(), leaf)[0]
        value = value.detach()
        block = max(1, _ELEMENTS // (len(which) * width))
        for start in range(0, len(data.Z), block):
            rows = slice(start, start + block)
            with torch.enable_grad():
                of = labels[rows][:, which]
                losses = cross_entropies(logits(sizes.cut(leaf), which, data.Z[rows]), of)
                if shares is not None:
                    losses = losses * shares[which].T.gather(0, of)
                part = data.weights[rows] @ losses
                slope += torch.autograd.grad(part.sum(), leaf)[0]
            value = value + part.detach()
        return value, slope

    return objective

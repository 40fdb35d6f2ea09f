"""Toy models of up to three features trained on the expectation itself, without sampling.

With few features the expected loss is a sum over which features are on, each an integral over a small cube. One
variable of it is integrated exactly (the ReLU's kink splits it into pieces of degree two), the others by
Gauss-Legendre, so gradients carry no noise and thousands of models cost what a few hundred cost by sampling.
"""

from functools import partial

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.configs import ToyModel, ToyTraining
from toolkit.descent import Checkpoint, Progress, State, descend, learning_rates
from toolkit.errors import require
from toolkit.samplers import FAST
from toolkit.toy import TrainedToy, start
from toolkit.toy_kernels import adam_step

MOST_FEATURES = 3
NODES = 8
"""Of the outer rule; from 8 on the loss of trained models changes by less than 1e-6."""

_ABSCISSAE, _WEIGHTS = (np.ascontiguousarray(a) for a in np.polynomial.legendre.leggauss(NODES))
_OUTER = (_ABSCISSAE + 1) / 2
_OUTER_WEIGHTS = _WEIGHTS / 2
# Two-point Gauss-Legendre on (0, 1): exact up to degree three.
_INNER = np.array([0.5 - 0.5 / np.sqrt(3), 0.5 + 0.5 / np.sqrt(3)])


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _inner(i, on, inner, x, row, bias, relu, weight, dG, db):
    """Integrate output i over variable `inner` at fixed others; adds to dG (n,) and db; returns the loss's share."""
    n = row.shape[0]
    offset = bias
    for j in range(n):
        if on[j] and j != inner:
            offset += row[j] * x[j]
    low, high, slope = 0.0, 1.0, row[inner]
    if relu:
        if slope == 0.0:
            high = 1.0 if offset > 0.0 else 0.0
        else:
            kink = min(max(-offset / slope, 0.0), 1.0)
            low = kink if slope > 0.0 else 0.0
            high = 1.0 if slope > 0.0 else kink
    length = high - low
    if length <= 0.0:
        return 0.0
    loss = 0.0
    for node in range(2):
        x[inner] = low + length * _INNER[node]
        share = 0.5 * length * weight
        output = offset + slope * x[inner]
        target = x[i] if on[i] else 0.0
        loss += share * (output * output - 2.0 * target * output)
        slope_of_loss = 2.0 * share * (output - target)
        db[i] += slope_of_loss
        for j in range(n):
            if on[j]:
                dG[j] += slope_of_loss * x[j]
    return loss


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _subset(i, on, row, bias, relu, weight, x, dG, db):
    """The same over the whole cube of the features that are on; the steepest variable is the inner one."""
    n = row.shape[0]
    inner = -1
    for j in range(n):
        if on[j] and (inner < 0 or abs(row[j]) > abs(row[inner])):
            inner = j
    if inner < 0:
        if relu and bias <= 0.0:
            return 0.0
        db[i] += 2.0 * weight * bias
        return weight * bias * bias
    first, second = -1, -1
    for j in range(n):
        if on[j] and j != inner:
            first, second = j, first
    loss = 0.0
    for one in range(NODES if first >= 0 else 1):
        share = weight
        if first >= 0:
            x[first] = _OUTER[one]
            share *= _OUTER_WEIGHTS[one]
        for two in range(NODES if second >= 0 else 1):
            part = share
            if second >= 0:
                x[second] = _OUTER[two]
                part *= _OUTER_WEIGHTS[two]
            loss += _inner(i, on, inner, x, row, bias, relu, part, dG, db)
    return loss


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _gradients(W, b, density, importance, relu, dW, db):
    """Expected loss of one instance and its gradients; W is (n, m)."""
    n = len(b)
    G = np.dot(W, W.T)
    dG = np.zeros((n, n))
    db[:] = 0.0
    on = np.zeros(n, np.bool_)
    x = np.zeros(n)
    loss = 0.0
    for subset in range(2**n):
        chance = 1.0
        for j in range(n):
            on[j] = (subset >> j) & 1
            chance *= density[j] if on[j] else 1.0 - density[j]
        if chance > 0.0:
            for i in range(n):
                loss += _subset(i, on, G[i], b[i], relu, chance * importance[i], x, dG[i], db)
    for i in range(n):
        loss += importance[i] * density[i] / 3.0
    dW[:] = np.dot(dG + dG.T, W)
    return loss


@numba.njit(cache=True, parallel=True)
def _train(W, b, moments_W, moments_b, density, importance, relu, first_step, rates, losses):
    instances, n, m = W.shape
    for i in numba.prange(instances):
        dW, db = np.empty((n, m)), np.empty(n)
        for t in range(rates.shape[0]):
            losses[t, i] = _gradients(W[i], b[i], density[i], importance[i], relu, dW, db)
            step = first_step + t + 1
            first, second = moments_W[0, i].reshape(-1), moments_W[1, i].reshape(-1)
            adam_step(W[i].reshape(-1), dW.reshape(-1), first, second, rates[t], step, 0.0)
            adam_step(b[i], db, moments_b[0, i], moments_b[1, i], rates[t], step, 0.0)


@numba.njit(cache=True)
def _losses(W, b, density, importance, relu, out):
    for i in range(len(W)):
        out[i] = _gradients(W[i], b[i], density[i], importance[i], relu, np.empty_like(W[i]), np.empty_like(b[i]))


def expected_loss(
    model: ToyModel,
    W: Float[Tensor, "instances hidden features"],
    b: Float[Tensor, "instances features"],
    *,
    densities: Float[Tensor, "instances features"],
    importances: Float[Tensor, "instances features"],
) -> Float[Tensor, " instances"]:
    """E sum_i I_i (x_i - x'_i)^2 over sparse uniform inputs, to about 1e-6 (one integral exact, the rest Gauss).

    Raises:
        UserError: more than MOST_FEATURES features, or a hidden ReLU.
    """
    _require_small(model)
    out = np.empty(len(W))
    arrays = [value.double().contiguous().numpy() for value in (W.mT, b, densities, importances)]
    _losses(*arrays, model.output == "relu", out)
    return torch.from_numpy(out)


def train_exactly(
    model: ToyModel,
    training: ToyTraining,
    *,
    seed: int = 0,
    densities: Float[Tensor, "instances features"],
    importances: Float[Tensor, "instances features"],
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainedToy:
    """As `toy.train`, on the expected loss; `training.toy_batch` has no part in it. Parameters are float64.

    Raises:
        UserError: more than MOST_FEATURES features, or a hidden ReLU.
        DivergenceError: the loss of an instance stopped being finite (the step is named).
    """
    _require_small(model)
    chances, weights = densities.double().contiguous(), importances.double().contiguous()
    state = descend(
        lambda: {name: value.double() for name, value in start(model, seed).items()},
        partial(_steps, model, chances, weights),
        learning_rates(training.toy_steps, training.toy_lr),
        what="the toy models",
        device="cpu",
        progress=progress,
        checkpoint=checkpoint,
    )
    W = state["W"].mT.contiguous()
    final = expected_loss(model, W, state["b"], densities=chances, importances=weights)
    return TrainedToy(model, W, state["b"], final, state["history"], chances, weights)


def _require_small(model: ToyModel) -> None:
    small = model.features <= MOST_FEATURES and model.hidden_activation == "linear"
    given = f"{model.features} features and a {model.hidden_activation} hidden layer"
    require(small, f"quadrature takes up to {MOST_FEATURES} features and a linear hidden layer, got {given}")


def _steps(
    model: ToyModel, densities: Tensor, importances: Tensor, state: State, first: int, rates: np.ndarray
) -> Tensor:
    losses = np.empty((len(rates), model.instances))
    arrays = [state[name].numpy() for name in ("W", "b", "moments_W", "moments_b")]
    _train(*arrays, densities.numpy(), importances.numpy(), model.output == "relu", first, rates, losses)
    return torch.from_numpy(losses)

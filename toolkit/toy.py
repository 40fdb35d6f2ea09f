"""Toy models of superposition, many instances in one program, and their training.

from toolkit.toy import ToyModel, train
toy = train(ToyModel(features=5, hidden=2, density=0.05), seed=0)
toy.feature_dimensionality        # (instances, features)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from threadpoolctl import threadpool_limits
from torch import Tensor

from toolkit import metrics
from toolkit.configs import ToyModel, ToyTraining
from toolkit.errors import DivergenceError
from toolkit.samplers import sample

__all__ = [
    "Checkpoint",
    "DivergenceError",
    "ToyModel",
    "ToyTraining",
    "TrainedToy",
    "importance",
    "loss",
    "output",
    "train",
]

EVALUATION = 2**40
"""Step numbers from here on are never trained on: batches that measure."""
WELL_TRAINED = 1.1
"""An instance is well trained when its loss is within this factor of the best with the same settings."""

_CHUNK = 100


@runtime_checkable
class Checkpoint(Protocol):
    """Where a training keeps its state, so that a killed run goes on to the same numbers."""

    def load(self) -> dict[str, Tensor] | None:
        """The last state saved, or None."""
        ...

    def save(self, state: Callable[[], dict[str, Tensor]]) -> None:
        """Keep a state, if it is time to; `state` is called only then."""
        ...


Progress = Callable[[int], None]
"""Called with the number of steps just finished."""


@dataclass(frozen=True)
class TrainedToy:
    """Toy models after training."""

    model: ToyModel
    """What was trained."""
    W: Float[Tensor, "instances hidden features"]
    """Weights; column i is feature i's direction."""
    b: Float[Tensor, "instances features"]
    """Output bias."""
    loss: Float[Tensor, " instances"]
    """Importance-weighted squared error, summed over features, on samples not trained on."""
    history: Float[Tensor, "steps instances"]
    """Loss of every training batch."""

    def hidden(self, x: Float[Tensor, "instances rows features"]) -> Float[Tensor, "instances rows hidden"]:
        """Hidden activations of features."""
        h = torch.bmm(x, self.W.mT)  # (I, B, n) @ (I, n, m) -> (I, B, m)
        return h.relu() if self.model.hidden_activation == "relu" else h

    def __call__(self, x: Float[Tensor, "instances rows features"]) -> Float[Tensor, "instances rows features"]:
        """The model's reconstruction of x."""
        return output(self.model, self.W, self.b, x)

    @property
    def feature_dimensionality(self) -> Float[Tensor, "instances features"]:
        """D_i, see `metrics.feature_dimensionality`."""
        return metrics.feature_dimensionality(self.W)

    @property
    def represented(self) -> Float[Tensor, " instances"]:
        """Number of features with squared norm above one half."""
        return metrics.represented(self.W).sum(-1).float()

    @property
    def well_trained(self) -> list[bool]:
        """Which instances reached a loss within WELL_TRAINED of the best with the same density."""
        groups = len(self.model.density)
        best = [self.loss[g::groups].min().item() for g in range(groups)]
        return [value.item() <= WELL_TRAINED * best[i % groups] for i, value in enumerate(self.loss)]


def density(model: ToyModel) -> Float[Tensor, "instances features"]:
    """Probability that each feature is on, for each instance: the densities dealt out in turn."""
    dealt = torch.tensor([model.density[i % len(model.density)] for i in range(model.instances)])
    return dealt[:, None].expand(-1, model.features).contiguous()


def importance(model: ToyModel) -> Float[Tensor, " features"]:
    """Weight of each feature in the loss, importance**i."""
    return model.importance ** torch.arange(model.features, dtype=torch.float32)


def output(
    model: ToyModel,
    W: Float[Tensor, "instances hidden features"],
    b: Float[Tensor, "instances features"],
    x: Float[Tensor, "instances rows features"],
) -> Float[Tensor, "instances rows features"]:
    """x' = act(W^T h + b) with h = W x, or ReLU(W x) (Elhage et al. 2022, sections 2 and 6)."""
    h = torch.bmm(x, W.mT)  # (I, B, n) @ (I, n, m) -> (I, B, m)
    if model.hidden_activation == "relu":
        h = h.relu()
    out = torch.baddbmm(b[:, None], h, W)  # (I, B, m) @ (I, m, n) -> (I, B, n)
    return out.relu() if model.output == "relu" else out


def loss(
    model: ToyModel,
    W: Float[Tensor, "instances hidden features"],
    b: Float[Tensor, "instances features"],
    x: Float[Tensor, "instances rows features"],
) -> Float[Tensor, " instances"]:
    """Mean over rows of sum_i importance_i (x_i - x'_i)^2."""
    return ((output(model, W, b, x) - x).square() @ importance(model).to(x.device)).mean(-1)


def train(
    model: ToyModel,
    training: ToyTraining = ToyTraining(),
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainedToy:
    """Train every instance with Adam and return the result; instance i is the same alone or among many.

    On the CPU the compiled kernels do the work; a hidden ReLU or CUDA goes through torch's autograd.

    Raises:
        DivergenceError: the loss of an instance stopped being finite (the step is named).
    """
    start = _initial(model, seed) if checkpoint is None else checkpoint.load() or _initial(model, seed)
    state = {name: value.to(device if name != "history" else "cpu") for name, value in start.items()}
    advance = _compiled_steps if device == "cpu" and model.hidden_activation == "linear" else _autograd_steps
    done = len(state["history"])
    rates = _rates(training)
    with threadpool_limits(1, user_api="blas"):
        while done < training.toy_steps:
            todo = rates[done : done + _CHUNK]
            losses = advance(model, training, state, seed, done, todo)
            _check_finite(losses, state, done)
            state["history"] = torch.cat([state["history"], losses])
            done += len(todo)
            if progress:
                progress(len(todo))
            if checkpoint:
                checkpoint.save(lambda: state)
    W = state["W"].mT.contiguous()
    return TrainedToy(model, W, state["b"], _evaluate(model, W, state["b"], seed), state["history"])


def _initial(model: ToyModel, seed: int) -> dict[str, Tensor]:
    """Xavier-normal weights, feature-major (I, n, m), each instance from its own generator; Adam's moments zero."""
    shape = (model.features, model.hidden)
    scale = (2 / sum(shape)) ** 0.5
    draws = [np.random.default_rng([seed, i]).standard_normal(shape) for i in range(model.instances)]
    W = torch.from_numpy(np.stack(draws) * scale).float()
    b = torch.zeros(model.instances, model.features)
    moments = {"moments_W": torch.zeros(2, *W.shape), "moments_b": torch.zeros(2, *b.shape)}
    return {"W": W, "b": b, **moments, "history": torch.zeros(0, model.instances)}


def _rates(training: ToyTraining) -> np.ndarray:
    """Constant for the first half, then a cosine to zero, so that the final loss is not optimiser noise."""
    progress = np.arange(training.toy_steps) / training.toy_steps
    return training.toy_lr * np.where(progress < 0.5, 1.0, 0.5 * (1 + np.cos(np.pi * (2 * progress - 1))))


def _check_finite(losses: Tensor, state: dict[str, Tensor], first: int) -> None:
    bad = (~losses.isfinite()).any(1).nonzero()
    if len(bad) or not bool(state["W"].isfinite().all()):
        raise DivergenceError("the toy models", first + (int(bad[0]) if len(bad) else len(losses) - 1))


def _compiled_steps(
    model: ToyModel, training: ToyTraining, state: dict[str, Tensor], seed: int, first: int, rates: np.ndarray
) -> Tensor:
    from toolkit.toy_kernels import train_steps

    losses = np.empty((len(rates), model.instances), np.float32)
    weights = importance(model).expand(model.instances, -1).contiguous().numpy()
    arrays = [state[name].numpy() for name in ("W", "b", "moments_W", "moments_b")]
    relu = model.output == "relu"
    train_steps(*arrays, density(model).numpy(), weights, relu, seed, first, rates, training.toy_batch, losses)
    return torch.from_numpy(losses)


def _autograd_steps(
    model: ToyModel, training: ToyTraining, state: dict[str, Tensor], seed: int, first: int, rates: np.ndarray
) -> Tensor:
    """The same steps through torch's autograd: any variant of the model, any device."""
    chances = density(model).to(state["W"].device)
    losses = []
    for t, rate in enumerate(rates):
        x = sample(chances, training.toy_batch, seed=seed, step=first + t)
        leaves = {name: state[name].detach().requires_grad_() for name in ("W", "b")}
        value = loss(model, leaves["W"].mT, leaves["b"], x)
        value.sum().backward()
        for name, leaf in leaves.items():
            _adam(state[name], leaf.grad, state[f"moments_{name}"], float(rate), first + t + 1)
        losses.append(value.detach())
    return torch.stack(losses).cpu()


def _adam(parameter: Tensor, gradient: Tensor | None, moments: Tensor, rate: float, step: int) -> None:
    assert gradient is not None
    moments[0].lerp_(gradient, 0.1)
    moments[1].lerp_(gradient.square(), 0.001)
    size = (moments[1] / (1 - 0.999**step)).sqrt_().add_(1e-8)
    parameter.sub_(rate / (1 - 0.9**step) * moments[0] / size)


@torch.no_grad()
def _evaluate(model: ToyModel, W: Tensor, b: Tensor, seed: int) -> Tensor:
    """Mean loss over 16 fresh batches of 8,192 rows, small enough for n=400 to stay in memory."""
    chances = density(model).to(W.device)
    batches = (sample(chances, 8192, seed=seed, step=EVALUATION + s) for s in range(16))
    return torch.stack([loss(model, W, b, x) for x in batches]).mean(0).cpu()

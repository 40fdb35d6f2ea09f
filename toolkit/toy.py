"""Toy models of superposition, many instances in one program, and their training.

```python
from toolkit.toy import ToyModel, train
toy = train(ToyModel(features=5, hidden=2, density=0.05), seed=0)
toy.feature_dimensionality        # (instances, features)
```
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit import metrics
from toolkit.configs import ToyModel, ToyTraining
from toolkit.descent import EVALUATION, Checkpoint, Progress, State, adam, descend, learning_rates
from toolkit.errors import DivergenceError, require
from toolkit.samplers import compressed, sample

__all__ = ["DivergenceError", "ToyModel", "ToyTraining", "TrainedToy", "importance", "loss", "output", "train"]

WELL_TRAINED = 1.1
"""An instance is well trained when its loss is within this factor of the best with the same settings."""


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
    densities: Float[Tensor, "instances features"]
    """Probability that each feature is on."""
    importances: Float[Tensor, "instances features"]
    """Weight of each feature in the loss."""

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
    importances: Float[Tensor, "instances features"] | None = None,
) -> Float[Tensor, " instances"]:
    """Mean over rows of sum_i importance_i (x_i - x'_i)^2; the importances are the model's unless given."""
    weights = importance(model).expand_as(b) if importances is None else importances
    error = (output(model, W, b, x) - x).square()
    return torch.bmm(error, weights.to(x.device)[:, :, None])[..., 0].mean(-1)  # (I, B, n) @ (I, n, 1) -> (I, B)


@dataclass(frozen=True)
class _Problem:
    """What is trained on, for either engine."""

    model: ToyModel
    batch: int
    seed: int
    densities: Tensor
    importances: Tensor
    rows: Tensor | None
    weight_decay: float


def train(
    model: ToyModel,
    training: ToyTraining = ToyTraining(),
    *,
    seed: int = 0,
    densities: Float[Tensor, "instances features"] | None = None,
    importances: Float[Tensor, "instances features"] | None = None,
    rows: Float[Tensor, "instances samples features"] | None = None,
    weight_decay: float = 0.0,
    device: str = "cpu",
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainedToy:
    """Train every instance with Adam and return the result; instance i is the same alone or among many.

    On the CPU the compiled kernels do the work; a hidden ReLU or CUDA goes through torch's autograd.

    Args:
        densities, importances: one for each feature of each instance, in place of the model's.
        rows: a finite data set for each instance, all of it in every step, in place of fresh samples.
        weight_decay: AdamW's, on W alone.

    Raises:
        DivergenceError: the loss of an instance stopped being finite (the step is named).
        UserError: a tensor's shape does not fit the model.
    """
    problem = _problem(model, training, seed, densities, importances, rows, weight_decay)
    compiled = device == "cpu" and model.hidden_activation == "linear"
    state = descend(
        partial(start, model, seed),
        partial(_compiled_steps if compiled else _autograd_steps, problem),
        learning_rates(training.toy_steps, training.toy_lr),
        what="the toy models",
        device=device,
        progress=progress,
        checkpoint=checkpoint,
    )
    W = state["W"].mT.contiguous()
    final = _evaluate(problem, W, state["b"])
    return TrainedToy(model, W, state["b"], final, state["history"], problem.densities, problem.importances)


def _problem(
    model: ToyModel,
    training: ToyTraining,
    seed: int,
    densities: Tensor | None = None,
    importances: Tensor | None = None,
    rows: Tensor | None = None,
    weight_decay: float = 0.0,
) -> _Problem:
    densities = density(model) if densities is None else densities.float().contiguous()
    importances = importance(model).repeat(model.instances, 1) if importances is None else importances.float()
    wanted = (model.instances, model.features)
    for name, given in (("densities", densities), ("importances", importances)):
        shape = tuple(given.shape)
        require(shape == wanted, f"{name} must have shape (instances, features) = {wanted}, got {shape}")
    if rows is not None:
        fits = rows.ndim == 3 and (len(rows), rows.shape[2]) == wanted
        require(fits, f"rows must be (instances, samples, features) = {wanted[0], '...', wanted[1]}, got {rows.shape}")
    return _Problem(model, training.toy_batch, seed, densities, importances.contiguous(), rows, weight_decay)


def start(model: ToyModel, seed: int) -> State:
    """Xavier-normal weights, feature-major (I, n, m), each instance from its own generator; Adam's moments zero."""
    shape = (model.features, model.hidden)
    scale = (2 / sum(shape)) ** 0.5
    draws = [np.random.default_rng([seed, i]).standard_normal(shape) for i in range(model.instances)]
    W = torch.from_numpy(np.stack(draws) * scale).float()
    b = torch.zeros(model.instances, model.features)
    moments = {"moments_W": torch.zeros(2, *W.shape), "moments_b": torch.zeros(2, *b.shape)}
    return {"W": W, "b": b, **moments, "history": torch.zeros(0, model.instances)}


def _compiled_steps(problem: _Problem, state: State, first: int, rates: np.ndarray) -> Tensor:
    from toolkit.toy_kernels import train_rows, train_steps

    model = problem.model
    losses = np.empty((len(rates), model.instances), np.float32)
    arrays = [state[name].numpy() for name in ("W", "b", "moments_W", "moments_b")]
    weights, relu = problem.importances.numpy(), model.output == "relu"
    tail = (weights, relu, first, rates, problem.weight_decay, losses)
    if problem.rows is None:
        train_steps(*arrays, problem.densities.numpy(), problem.seed, problem.batch, *tail)
    else:
        train_rows(*arrays, *compressed(problem.rows), *tail)
    return torch.from_numpy(losses)


def _autograd_steps(problem: _Problem, state: State, first: int, rates: np.ndarray) -> Tensor:
    """The same steps through torch's autograd: any variant of the model, any device."""
    device = state["W"].device
    chances, fixed = problem.densities.to(device), problem.rows
    losses = []
    for t, rate in enumerate(rates):
        x = sample(chances, problem.batch, seed=problem.seed, step=first + t) if fixed is None else fixed.to(device)
        leaves = {name: state[name].detach().requires_grad_() for name in ("W", "b")}
        value = loss(problem.model, leaves["W"].mT, leaves["b"], x, problem.importances)
        value.sum().backward()
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            decay = problem.weight_decay if name == "W" else 0.0
            adam(state[name], leaf.grad, state[f"moments_{name}"], float(rate), first + t + 1, decay)
        losses.append(value.detach())
    return torch.stack(losses).cpu()


@torch.no_grad()
def _evaluate(problem: _Problem, W: Tensor, b: Tensor) -> Tensor:
    """Mean loss over 16 fresh batches of 8,192 rows; of fewer where n > 400, to stay in memory and time."""
    chances = problem.densities.to(W.device)
    rows = min(8192, 8192 * 400 // problem.model.features)
    batches = (sample(chances, rows, seed=problem.seed, step=EVALUATION + s) for s in range(16))
    return torch.stack([loss(problem.model, W, b, x, problem.importances) for x in batches]).mean(0).cpu()

"""Small networks of any depth, many instances in one program, and their training: what `toy` does not compile.

```python
from toolkit.networks import Layer, Network, autoencoder, train_network
from toolkit.sources import sparse
trained = train_network(autoencoder(20, 10), sparse(densities, importances, seed=0), ToyTraining(), seed=0)
trained.W                         # (instances, hidden, features), as in TrainedToy
```
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.configs import ToyTraining
from toolkit.descent import EVALUATION, Checkpoint, Progress, State, adam, descend, learning_rates
from toolkit.errors import check_types, require, unknown
from toolkit.sources import Batch, Source

F = torch.nn.functional
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "abs": torch.abs,
}
"""Element-wise non-linearities by name; `topk-K` besides keeps the K largest entries of a row where positive."""


@dataclass(frozen=True)
class Layer:
    """h = activation(W h_before + b)."""

    size: int
    """Neurons."""
    activation: str = "relu"
    """A name of ACTIVATIONS, or topk-K."""
    bias: bool = True
    """Whether there is a b; it starts at zero."""
    tied: bool = False
    """W is the transpose of the layer's before."""
    frozen: bool = False
    """W stays as drawn; a frozen layer's bias, if any, is drawn too and stays."""
    mirrored: bool = False
    """W starts as |W^T| of the layer before, and is trained apart: no output begins deaf to what its input reaches."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.size > 0, f"a layer's size must be positive, got {self.size}")
        require(not (self.tied and self.frozen), "a tied layer follows the one before it: it cannot be frozen itself")
        activation(self.activation)


@dataclass(frozen=True)
class Network:
    """A stack of layers."""

    inputs: int
    """Entries of an input row."""
    layers: tuple[Layer, ...]
    """From the input up; the last one's size is the number of outputs."""

    def __post_init__(self) -> None:
        check_types(self)
        require(len(self.layers) > 0, "a network needs at least one layer")
        sizes = [self.inputs, *(layer.size for layer in self.layers)]
        for at, layer in enumerate(self.layers):
            require(
                not (layer.tied or layer.mirrored)
                or (at > 0 and layer.size == sizes[at - 1] and not self.layers[at - 1].tied),
                f"layer {at + 1} of sizes {sizes} is tied: it must return to the size before the layer it mirrors, "
                "and that layer must have a W of its own",
            )

    def shape(self, at: int) -> tuple[int, int]:
        """(inputs, neurons) of layer `at`, counted from 1."""
        return (self.inputs if at == 1 else self.layers[at - 2].size), self.layers[at - 1].size


def autoencoder(
    features: int, hidden: int, *, output: str = "relu", hidden_activation: str = "linear", tied: bool = True
) -> Network:
    """x' = output(W2 hidden_activation(W1 x) + b), with W2 = W1^T where tied (Elhage et al. 2022, section 2)."""
    return Network(features, (Layer(hidden, hidden_activation, bias=False), Layer(features, output, tied=tied)))


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The non-linearity of that name.

    Raises:
        UserError: there is none (the nearest name is suggested).
    """
    if name.startswith("topk-") and re.fullmatch(r"\d{1,9}", name[5:]) and int(name[5:]) > 0:
        return partial(_topk, int(name[5:]))
    if name not in ACTIVATIONS:
        raise unknown("activation", name, [*ACTIVATIONS, "topk-K"])
    return ACTIVATIONS[name]


def _topk(k: int, x: Tensor) -> Tensor:
    values, places = x.topk(min(k, x.shape[-1]), dim=-1)
    return torch.zeros_like(x).scatter(-1, places, values.relu())


@dataclass(frozen=True)
class TrainedNetwork:
    """Networks after training."""

    network: Network
    """What was trained."""
    parameters: dict[str, Tensor]
    """W_1 (instances, inputs, neurons), b_1 (instances, neurons), and so on up; tied layers have a b only."""
    loss: Float[Tensor, " instances"]
    """Weighted error, summed over outputs, on samples not trained on."""
    history: Float[Tensor, "steps instances"]
    """Loss of every training batch."""
    snapshots: dict[str, Tensor]
    """The parameters before each step asked for, (snapshots, instances, ...), by the same names."""

    @property
    def W(self) -> Float[Tensor, "instances hidden inputs"]:
        """First layer's weights; column i is input i's direction."""
        return self.parameters["W_1"].mT

    def layer(self, x: Float[Tensor, "instances rows inputs"], at: int) -> Float[Tensor, "instances rows neurons"]:
        """Activations of layer `at`, counted from 1."""
        return forward(self.network, self.parameters, x)[at - 1]

    def __call__(self, x: Float[Tensor, "instances rows inputs"]) -> Float[Tensor, "instances rows outputs"]:
        """The network's answer."""
        return forward(self.network, self.parameters, x)[-1]


def forward(network: Network, parameters: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Activations of every layer, (instances, rows, neurons) each."""
    reached = []
    for at, layer in enumerate(network.layers, start=1):
        W = parameters[f"W_{at - 1}"].mT if layer.tied else parameters[f"W_{at}"]  # (I, before, neurons)
        bias = parameters.get(f"b_{at}")
        x = torch.bmm(x, W) if bias is None else torch.baddbmm(bias[:, None], x, W)  # (I, B, before) -> (I, B, neurons)
        x = activation(layer.activation)(x)
        reached.append(x)
    return reached


def error(answer: Tensor, batch: Batch, power: float = 2.0) -> Float[Tensor, " instances"]:
    """Mean over rows of sum_i weight_i |y_i - answer_i|^power."""
    difference = answer - batch.y
    size = difference.square() if power == 2 else difference.abs().pow(power)
    return (size * batch.weight).sum(-1).mean(-1)


def train_network(
    network: Network,
    source: Source,
    training: ToyTraining = ToyTraining(),
    *,
    seed: int = 0,
    power: float = 2.0,
    weight_decay: float = 0.0,
    snapshots: Sequence[int] = (),
    device: str = "cpu",
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainedNetwork:
    """Train every instance with Adam (torch's autograd) and return the result.

    Args:
        power: exponent of the error.
        weight_decay: AdamW's, on every W that is trained.
        snapshots: steps before which the parameters are kept; `training.toy_steps` is the end.

    Raises:
        DivergenceError: the loss of an instance stopped being finite (the step is named).
        UserError: the source does not fit the network, a snapshot of a step that does not come.
    """
    fits = (source.inputs, source.outputs) == (network.inputs, network.layers[-1].size)
    given = f"the source has {source.inputs} and {source.outputs}"
    require(fits, f"the network maps {network.inputs} inputs to {network.layers[-1].size} outputs, {given}")
    wrong = [step for step in snapshots if not 0 <= step <= training.toy_steps]
    require(not wrong, f"snapshots must lie in 0 to toy_steps={training.toy_steps}, got {wrong}")
    state = descend(
        partial(_initial, network, source.instances, seed, snapshots),
        partial(_steps, network, source, training.toy_batch, power, weight_decay, sorted(snapshots)),
        learning_rates(training.toy_steps, training.toy_lr),
        what="the networks",
        device=device,
        progress=progress,
        checkpoint=checkpoint,
    )
    names = [name for name in state if name[:2] in ("W_", "b_")]
    _keep(state, names, training.toy_steps, sorted(snapshots))
    parameters = {name: state[name] for name in names}
    kept = {name: state[f"kept_{name}"] for name in names}
    return TrainedNetwork(network, parameters, _evaluate(network, parameters, source, power), state["history"], kept)


def _initial(network: Network, instances: int, seed: int, snapshots: Sequence[int]) -> State:
    """Xavier-normal weights, each instance and layer from its own generator; zero biases, unless frozen."""
    state: State = {"history": torch.zeros(0, instances)}
    for at, layer in enumerate(network.layers, start=1):
        shape = network.shape(at)
        generators = [np.random.default_rng([seed, i, at]) for i in range(instances)]
        scale = (2 / sum(shape)) ** 0.5
        draws = np.stack([g.standard_normal(shape) * scale for g in generators])
        biases = np.stack([g.standard_normal(shape[1]) * scale * layer.frozen for g in generators])
        W = state[f"W_{at - 1}"].mT.abs().contiguous() if layer.mirrored else torch.from_numpy(draws).float()
        state |= {} if layer.tied else {f"W_{at}": W}
        state |= {f"b_{at}": torch.from_numpy(biases).float()} if layer.bias else {}
    for name in [name for name in state if name != "history"]:
        state[f"moments_{name}"] = torch.zeros(2, *state[name].shape)
        state[f"kept_{name}"] = torch.zeros(len(snapshots), *state[name].shape)
    return state


def _steps(
    network: Network,
    source: Source,
    rows: int,
    power: float,
    weight_decay: float,
    snapshots: list[int],
    state: State,
    first: int,
    rates: np.ndarray,
) -> Tensor:
    names = [name for name in state if name[:2] in ("W_", "b_")]
    trained = [name for name in names if not network.layers[int(name[2:]) - 1].frozen]
    losses = []
    for step, rate in enumerate(rates, start=first):
        _keep(state, names, step, snapshots)
        batch = Batch(*(value.to(state[names[0]].device) for value in source.batch(step, rows)))
        leaves = {name: state[name].detach().requires_grad_(name in trained) for name in names}
        value = error(forward(network, leaves, batch.x)[-1], batch, power)
        for name, gradient in zip(
            trained, torch.autograd.grad(value.sum(), [leaves[name] for name in trained]), strict=True
        ):
            decay = weight_decay if name.startswith("W") else 0.0
            adam(state[name], gradient, state[f"moments_{name}"], float(rate), step + 1, decay)
        losses.append(value.detach())
    return torch.stack(losses).cpu()


def _keep(state: State, names: list[str], step: int, snapshots: list[int]) -> None:
    for at, wanted in enumerate(snapshots):
        if wanted == step:
            for name in names:
                state[f"kept_{name}"][at] = state[name].detach()


@torch.no_grad()
def _evaluate(network: Network, parameters: State, source: Source, power: float) -> Tensor:
    """Mean error over 16 fresh batches of 4,096 rows."""
    device = next(iter(parameters.values())).device
    total = torch.zeros(source.instances)
    for s in range(16):
        batch = Batch(*(value.to(device) for value in source.batch(EVALUATION + s, 4096)))
        total += error(forward(network, parameters, batch.x)[-1], batch, power).cpu() / 16
    return total

"""A large network trained end to end on the task of `superposed_circuits`: what a construction is measured against."""

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.configs import ToyTraining
from toolkit.networks import Layer, Network, TrainedNetwork, train_network
from toolkit.sources import Batch, Source
from toolkit.superposed_circuits import Calls, Circuits, draw_calls
from toolkit.superposition_error import answer_variance


def circuits_source(circuits: Circuits, k: int, *, seed: int) -> Source:
    """Inputs and answers of all T circuits side by side, T m each, k of them called in a row.

    Only the answers of circuits called weigh, so that a network may answer anything for the others, as the embedding
    does; weights make the error the squared error over the variance of an answer.
    """
    instances, T, m, _ = circuits.W1.shape

    def batch(step: int, rows: int) -> Batch:
        calls = draw_calls(instances, rows, T, m, k=k, seed=seed, step=step)
        weight = torch.full_like(calls.x, 1 / (k * m * answer_variance(m)))
        return Batch(*(_spread(calls, value, T) for value in (calls.x, circuits(calls), weight)))

    return Source(instances, T * m, T * m, batch)


def train_circuits(
    circuits: Circuits, k: int, *, large: int, training: ToyTraining, seed: int, frozen: bool = False
) -> TrainedNetwork:
    """T m inputs -> `large`, linear -> `large` ReLUs -> T m answers: the embedding's shape, every weight learned.

    Args:
        frozen: inputs keep the random directions that they are drawn with, as in the embedding; the rest is learned.
    """
    size = circuits.W1.shape[1] * circuits.W1.shape[2]
    layers = (Layer(large, "linear", bias=False, frozen=frozen), Layer(large), Layer(size, "linear"))
    return train_network(Network(size, layers), circuits_source(circuits, k, seed=seed), training, seed=seed)


def answers(trained: TrainedNetwork, calls: Calls, width: int) -> Float[Tensor, "instances rows k m"]:
    """What a trained network answers for the circuits called."""
    circuits = trained.network.inputs // width
    wide = trained(_spread(calls, calls.x, circuits))
    return wide.gather(2, _places(calls, width)).view(calls.x.shape)  # (I, B, k m) -> (I, B, k, m)


def _places(calls: Calls, width: int) -> Tensor:
    """Columns of the circuits called among all T m, (instances, rows, k m)."""
    return (calls.which[..., None] * width + torch.arange(width)).flatten(2)


def _spread(calls: Calls, values: Tensor, circuits: int) -> Tensor:
    """(instances, rows, k, m) to their columns among T m zeros."""
    instances, rows, _, width = values.shape
    wide = torch.zeros(instances, rows, circuits * width)
    return wide.scatter_(2, _places(calls, width), values.flatten(2))

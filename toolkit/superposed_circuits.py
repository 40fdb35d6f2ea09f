"""Many small two-layer networks in one large layer: random codes, k of the small ones called at once, read-outs.

Circuit t answers y = W2_t ReLU(W1_t x), with x, y and the hidden layer of width m. It is no residual block: the
identity would only add the error of storing x, and what is asked here is what sharing ReLUs costs. A circuit that is
called gets x = (1, Gaussian values): the one carries the bias b_t, which is W1_t's first column, so that a circuit
that is not called has x = 0 and answers 0 without superposition.

The large network reads X = sum over called circuits of E_t x_t, D numbers; its D neurons are H = ReLU(W X) with
W = sum_t C_t W1_t E_t^T / S; the answer of t is read as W2_t C_t^T H / S. The codes E_t (of signs) and C_t (of ones)
give each entry of a small layer S of the D large ones. Small circuits outnumber what fits side by side, T m S > D, so
large neurons are shared, and every circuit that is not called still writes what it hears from those that are.
Answers so read take T m numbers. `Embedded.stored` writes them into a shared stream of D numbers instead, all T of them
by codes F_t of their own, Y = M H with M = sum_t F_t W2_t C_t^T / S, and reads F_t^T Y / S: answers of circuits that
are not called, rectified noise, then leak into those that are.

Construction after Bushnaq and Mendel 2024, "Circuits in Superposition", and Linsefors and Bushnaq 2025, "Circuits in
Superposition 2"; read-outs from shared neurons after Haenni et al. 2024, "Mathematical Models of Computation in
Superposition". Predicted error: `superposition_error`; the same task learned from examples: `trained_circuits`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import norm
from torch import Tensor

from toolkit.errors import require
from toolkit.sources import uniforms


@dataclass(frozen=True)
class Calls:
    """Which circuits are called in each row, and with what; the others get zero."""

    which: Int[Tensor, "instances rows k"]
    """k different circuits."""
    x: Float[Tensor, "instances rows k m"]
    """Their inputs: a one, then standard Gaussians."""


@dataclass(frozen=True)
class Circuits:
    """T small networks of width m, for every instance."""

    W1: Float[Tensor, "instances circuits m m"]
    """(neuron, input); column 0 is the bias."""
    W2: Float[Tensor, "instances circuits m m"]
    """(output, neuron)."""

    def __call__(self, calls: Calls) -> Float[Tensor, "instances rows k m"]:
        """What the circuits called answer, alone and without error."""
        return self.read(calls.which, torch.einsum("ibkhm,ibkm->ibkh", _of(self.W1, calls.which), calls.x).relu())

    def read(
        self, which: Int[Tensor, "instances rows k"], hidden: Float[Tensor, "instances rows k m"]
    ) -> Float[Tensor, "instances rows k m"]:
        """The second layer of the circuits named."""
        return torch.einsum("ibkoh,ibkh->ibko", _of(self.W2, which), hidden)

    @property
    def means(self) -> Float[Tensor, "instances circuits m"]:
        """Mean answer of each circuit when called: a neuron is ReLU of a Gaussian with mean w_0 and variance |w|^2."""
        bias, deviation = self.W1[..., 0].double().numpy(), self.W1[..., 1:].double().norm(dim=-1).numpy()
        hidden = bias * norm.cdf(bias / deviation) + deviation * norm.pdf(bias / deviation)
        return torch.einsum("itoh,ith->ito", self.W2, torch.from_numpy(hidden).float())


@dataclass(frozen=True)
class Codes:
    """Which of the D large entries stand for an entry of a circuit."""

    inputs: Int[Tensor, "instances circuits m copies"]
    """Entries of X that an input is written to and read from."""
    signs: Float[Tensor, "instances circuits m copies"]
    """With which sign: interference of inputs then has mean zero."""
    neurons: Int[Tensor, "instances circuits m copies"]
    """Large neurons of a small one."""
    outputs: Int[Tensor, "instances circuits m copies"]
    """Entries of Y that an answer is written to and read from."""
    output_signs: Float[Tensor, "instances circuits m copies"]
    """With which sign."""
    large: int
    """D."""


@dataclass(frozen=True)
class Embedded:
    """The large network."""

    circuits: Circuits
    """What it embeds; its W2 reads out."""
    codes: Codes
    """Where."""
    W: Float[Tensor, "instances large large"]
    """(neuron, input)."""

    def __call__(self, calls: Calls) -> Float[Tensor, "instances rows k m"]:
        """The answers read for the circuits called; one pass through the large network a row."""
        places = _of(self.codes.neurons, calls.which)  # (I, B, k, m, S)
        read = self.hidden(calls).gather(2, places.flatten(2)).view(places.shape).mean(-1)  # (I, B, k m S) -> means
        return self.circuits.read(calls.which, read)

    def hidden(self, calls: Calls) -> Float[Tensor, "instances rows large"]:
        """H, the large neurons."""
        return torch.bmm(self.stream(calls), self.W.mT).relu()  # (I, B, D) @ (I, D, D)

    def stored(self, calls: Calls) -> Float[Tensor, "instances rows k m"]:
        """The answers of the circuits called, read from Y, to which all circuits have written theirs."""
        codes, ones = self.codes, torch.ones(self.codes.neurons.shape)
        M = _joined(self.circuits.W2, codes.neurons, ones, codes.outputs, codes.output_signs, codes.large)
        Y = torch.bmm(self.hidden(calls), M.mT)  # (I, B, D) @ (I, D, D)
        return _read(Y, _of(codes.outputs, calls.which), _of(codes.output_signs, calls.which))

    def stream(self, calls: Calls) -> Float[Tensor, "instances rows large"]:
        """X, the inputs in superposition."""
        places, signs = (_of(value, calls.which) for value in (self.codes.inputs, self.codes.signs))
        X = torch.zeros(*calls.which.shape[:2], self.codes.large)
        return X.scatter_add_(2, places.flatten(2), (signs * calls.x[..., None]).flatten(2))  # (I, B, k m S)

    def heard(self, calls: Calls) -> Float[Tensor, "instances rows k m"]:
        """The inputs of the circuits called as they are read back from X."""
        places, signs = (_of(value, calls.which) for value in (self.codes.inputs, self.codes.signs))
        return _read(self.stream(calls), places, signs)


def _read(stream: Tensor, places: Tensor, signs: Tensor) -> Tensor:
    """Entries (I, B, k, m) from a stream (I, B, D), the means of their copies."""
    return (stream.gather(2, places.flatten(2)).view(places.shape) * signs).mean(-1)


def _of(values: Tensor, which: Tensor) -> Tensor:
    """values (instances, circuits, ...) of the circuits named, (instances, rows, k, ...)."""
    return values[torch.arange(len(values))[:, None, None], which]


def draw_circuits(instances: int, circuits: int, width: int, *, seed: int) -> Circuits:
    """Independent Gaussian weights of variance 1/m: a neuron of a called circuit has second moment 1 before its ReLU.

    Raises:
        UserError: the width is below 2 (the first input is the bias) or there is no circuit.
    """
    require(width >= 2, f"a circuit's width must be at least 2, its first input being its bias, got {width}")
    require(circuits >= 1, f"there must be at least one circuit, got {circuits}")
    draws = [np.random.default_rng([seed, i]).standard_normal((2, circuits, width, width)) for i in range(instances)]
    W = torch.from_numpy(np.stack(draws, 1)).float() / width**0.5
    return Circuits(W[0], W[1])


def draw_codes(
    instances: int, circuits: int, width: int, *, large: int, copies: int, seed: int, shared: bool = False
) -> Codes:
    """Random codes of `copies` large entries each, balanced: no entry serves two circuits before every one serves one.

    Circuits are dealt, in an order drawn for each layer, from random permutations of the D entries, D // (m S) from
    each: those of one permutation share nothing, two others on average (m S)^2 / D entries. So up to D // (m S)
    circuits lie apart, and S = D // m makes codes dense: every circuit uses every entry.

    Args:
        shared: every circuit has the code of the first: full overlap, nothing tells circuits apart.

    Raises:
        UserError: one circuit alone does not fit.
    """
    size = width * copies
    require(copies >= 1, f"an entry needs at least one copy, got {copies}")
    require(size <= large, f"a circuit takes {width} x {copies} = {size} of the large network's entries, got {large}")
    generators = [np.random.default_rng([seed, i, 1]) for i in range(instances)]
    dealt = [[_deal(circuits, size, large, generator) for _ in range(2)] for generator in generators]
    places = torch.from_numpy(np.array(dealt)).view(instances, 2, circuits, width, copies)
    signs = _signs(generators, (circuits, width, copies))
    outputs = np.array([_deal(circuits, size, large, generator) for generator in generators])
    written = torch.from_numpy(outputs).view(signs.shape)
    if shared:
        places, signs = places[:, :, :1].expand_as(places), signs[:, :1].expand_as(signs)
    return Codes(places[:, 0], signs, places[:, 1], written, _signs(generators, (circuits, width, copies)), large)


def _signs(generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> Tensor:
    drawn = np.stack([generator.integers(0, 2, shape) for generator in generators])
    return torch.from_numpy(2.0 * drawn - 1).float()


def _deal(circuits: int, size: int, large: int, generator: np.random.Generator) -> np.ndarray:
    each = large // size
    rounds = -(-circuits // each)
    cards = np.argsort(generator.random((rounds, large)), 1)[:, : each * size].reshape(rounds * each, size)
    return cards[generator.permutation(circuits)]


def embed(circuits: Circuits, codes: Codes) -> Embedded:
    """W = sum_t C_t W1_t E_t^T / S.

    Raises:
        UserError: circuits and codes differ in instances, number or width.
    """
    wanted, given = tuple(circuits.W1.shape[:3]), tuple(codes.inputs.shape[:3])
    require(given == wanted, f"codes must be for (instances, circuits, width) = {wanted}, got {given}")
    ones = torch.ones(codes.neurons.shape)
    W = _joined(circuits.W1, codes.inputs, codes.signs, codes.neurons, ones, codes.large)
    return Embedded(circuits, codes, W)


def _joined(weights: Tensor, read: Tensor, read_as: Tensor, write: Tensor, write_as: Tensor, large: int) -> Tensor:
    """sum_t (codes that write) weights_t (codes that read)^T / S, (instances, large, large).

    Args:
        weights: (instances, circuits, m, m).
        read: places (instances, circuits, m, copies), and `read_as` the sign of each; the same of those written to.
    """
    found = torch.zeros(len(weights), large, large)
    T, m = weights.shape[1:3]
    for i, joined in enumerate(found):  # one instance at a time: the rows below are T m D numbers
        flat = read[i].flatten(0, 1)  # (T m, S)
        readers = torch.zeros(T * m, large).scatter_(1, flat, read_as[i].flatten(0, 1) / flat.shape[1])
        rows = torch.bmm(weights[i], readers.view(T, m, -1)).flatten(0, 1)  # (T, m, m) @ (T, m, D) -> (T m, D)
        for places, signs in zip(write[i].flatten(0, 1).mT, write_as[i].flatten(0, 1).mT, strict=True):  # S of (T m)
            joined.index_add_(0, places, signs[:, None] * rows)
    return found


def draw_calls(instances: int, rows: int, circuits: int, width: int, *, k: int, seed: int, step: int) -> Calls:
    """k different circuits a row, uniformly (Floyd's algorithm: Bentley and Floyd 1987), and their inputs.

    Raises:
        UserError: more circuits would be called than there are.
    """
    require(1 <= k <= circuits, f"of {circuits} circuits 1 to {circuits} can be called at once, got {k}")
    u = uniforms(instances, rows, k, seed=seed, step=step).double()
    which = torch.full((instances, rows, k), -1)
    for at in range(k):
        last = circuits - k + at
        drawn = (u[..., at] * (last + 1)).long().clamp(max=last)
        taken = (which[..., :at] == drawn[..., None]).any(-1)
        which[..., at] = torch.where(taken, last, drawn)
    values = uniforms(instances, rows, k * width, seed=seed, step=step, draw=1).view(instances, rows, k, width)
    x = torch.special.ndtri(values.double().clamp(1e-9, 1 - 1e-9)).float()
    x[..., 0] = 1
    return Calls(which, x)


def relative_error(
    answer: Float[Tensor, "instances rows k m"], circuits: Circuits, calls: Calls
) -> Float[Tensor, " instances"]:
    """Squared error of the circuits called over that of answering each one's mean: 1 is break-down, 0 exact."""
    truth = circuits(calls)
    spread = (truth - _of(circuits.means, calls.which)).square().sum((1, 2, 3))
    return (answer - truth).square().sum((1, 2, 3)) / spread

"""What fitted probes compute: linear read-outs of activations, and shallow networks on them, many at once."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from toolkit.logistic import Design

# Hidden activations held at a time, (rows, problems * hidden).
_ELEMENTS = 1 << 24


class Heads(Protocol):
    """Fitted classifiers, one a problem."""

    @property
    def iterations(self) -> int:
        """Steps of the slowest problem; 1 in closed form."""
        ...

    @property
    def exhausted(self) -> bool:
        """Whether some problem's steps ran out before its tolerance was reached."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows they read."""
        ...

    def logits(self, X: Float[Tensor, "rows d"]) -> Float[Tensor, "rows problems outputs"]:
        """Scores of raw rows; one output for two classes."""
        ...

    def gradients(self, X: Float[Tensor, "rows d"]) -> Float[Tensor, "problems outputs d"]:
        """Mean derivative of each output by the row, over rows."""
        ...

    def unscaled(self, scale: Float[Tensor, " d"]) -> "Heads":
        """From heads for rows / scale, heads for the rows."""
        ...


@dataclass(frozen=True)
class LinearHeads:
    """Linear read-outs of raw rows."""

    coefficients: Float[Tensor, "problems outputs d"]
    """One output for two classes, else one a class."""
    intercepts: Float[Tensor, "problems outputs"]
    """Likewise."""
    iterations: int = 1
    """Steps of the slowest problem."""
    exhausted: bool = False
    """Whether some problem's steps ran out before its tolerance was reached."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows they read."""
        return self.intercepts.dtype

    def logits(self, X: Float[Tensor, "rows d"]) -> Float[Tensor, "rows problems outputs"]:
        """Scores of raw rows."""
        X = X.to(self.dtype)
        flat = torch.addmm(self.intercepts.flatten(), X, self.coefficients.flatten(0, 1).mT)  # (rows, P * outputs)
        return flat.view(len(X), *self.intercepts.shape)

    def gradients(self, X: Float[Tensor, "rows d"]) -> Float[Tensor, "problems outputs d"]:
        """Derivative of each output by the row, the same at every row."""
        return self.coefficients

    def unscaled(self, scale: Float[Tensor, " d"]) -> "LinearHeads":
        """From heads for rows / scale, heads for the rows."""
        return replace(self, coefficients=self.coefficients / scale)

    @classmethod
    def rotated(
        cls,
        data: "Design",
        coefficients: Float[Tensor, "problems outputs d"],
        offsets: Float[Tensor, "problems outputs"],
    ) -> "LinearHeads":
        """From coefficients for a design's centred, rotated rows."""
        raw = coefficients @ data.basis.mT
        return cls(raw, offsets - raw @ data.mean)


@dataclass(frozen=True)
class NetworkHeads:
    """Networks of one hidden layer of ReLUs, on raw rows."""

    into: Float[Tensor, "problems hidden d"]
    """Weights of the hidden layer."""
    bias: Float[Tensor, "problems hidden"]
    """Its biases."""
    out: Float[Tensor, "problems outputs hidden"]
    """Weights of the outputs."""
    offset: Float[Tensor, "problems outputs"]
    """Their biases."""
    iterations: int = 1
    """Steps of the slowest problem."""
    exhausted: bool = False
    """Whether some problem's steps ran out before its tolerance was reached."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows they read."""
        return self.offset.dtype

    def logits(self, X: Float[Tensor, "rows d"]) -> Float[Tensor, "rows problems outputs"]:
        """Scores of raw rows."""
        block = max(1, _ELEMENTS // self.bias.numel())
        return torch.cat([network_logits(rows, self.into, self.bias, self.out, self.offset) for rows in X.split(block)])

    def gradients(self, X: Float[Tensor, "rows d"]) -> Float[Tensor, "problems outputs d"]:
        """Mean derivative of each output by the row, over rows."""
        on = (torch.einsum("rd,phd->rph", X, self.into) + self.bias > 0).to(X.dtype).mean(0)  # (problems, hidden)
        return (self.out * on[:, None]) @ self.into

    def unscaled(self, scale: Float[Tensor, " d"]) -> "NetworkHeads":
        """From heads for rows / scale, heads for the rows."""
        return replace(self, into=self.into / scale)


def network_logits(X: Tensor, into: Tensor, bias: Tensor, out: Tensor, offset: Tensor) -> Tensor:
    """Outputs (rows, problems, outputs) of one hidden layer of ReLUs."""
    problems, hidden, _ = into.shape
    active = torch.addmm(bias.flatten(), X, into.flatten(0, 1).mT).view(-1, problems, hidden).relu()  # (rows, P, h)
    return torch.baddbmm(offset[:, None], active.transpose(0, 1), out.mT).transpose(0, 1)  # (rows, P, outputs)


def log_probabilities(logits: Float[Tensor, "*rows outputs"]) -> Float[Tensor, "*rows classes"]:
    """Log-probabilities of the classes in nats; a single output is the log-odds of the second."""
    if logits.shape[-1] == 1:
        return torch.nn.functional.logsigmoid(torch.cat([-logits, logits], -1))
    return logits.log_softmax(-1)


def cross_entropies(
    logits: Float[Tensor, "rows problems outputs"], labels: Int[Tensor, "rows problems"]
) -> Float[Tensor, "rows problems"]:
    """Minus the log-probability of each label, nats."""
    return -log_probabilities(logits).gather(-1, labels[..., None])[..., 0]

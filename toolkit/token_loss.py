"""Mean cross-entropy of next tokens from hidden states, in blocks: logits of a whole batch are never held at once."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Elements of a block of logits: on a CPU 16 MB, which its caches hold; a GPU wants large products.
_BLOCK = {"cpu": 2**22, "cuda": 2**28}


def token_loss(
    hidden: Float[Tensor, "tokens d"], rows: Float[Tensor, "vocabulary d"], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, ""]:
    """Mean of -log softmax(hidden rows^T)[target], in nats.

    Equal to `torch.nn.functional.cross_entropy(hidden @ rows.T, targets)`, gradients included, up to rounding. The
    gradient is made in the forward pass, block by block, while a block's probabilities are at hand.
    """
    if not torch.is_grad_enabled():
        total = sum(_log_probabilities(hidden[at], rows, targets[at])[1] for at in _blocks(hidden, rows))
        return -total / len(targets)
    loss: Tensor = _TokenLoss.apply(hidden, rows, targets)
    return loss


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        to_hidden, to_rows = torch.empty_like(hidden), torch.zeros_like(rows) if ctx.needs_input_grad[1] else None
        total = hidden.new_zeros(())
        for at in _blocks(hidden, rows):
            logs, picked = _log_probabilities(hidden[at], rows, targets[at])
            total += picked
            # d loss / d logits = probabilities - one-hot(target)
            slopes = logs.exp_().scatter_add_(1, targets[at, None], logs.new_full((len(logs), 1), -1.0))
            to_hidden[at] = slopes @ rows
            if to_rows is not None:
                to_rows += slopes.T @ hidden[at]
        ctx.save_for_backward(to_hidden.div_(len(targets)), None if to_rows is None else to_rows.div_(len(targets)))
        return -total / len(targets)

    @staticmethod
    def backward(ctx: Any, *slope: Tensor) -> tuple[Tensor, Tensor | None, None]:
        to_hidden, to_rows = ctx.saved_tensors
        return to_hidden * slope[0], None if to_rows is None else to_rows * slope[0], None


def _blocks(hidden: Tensor, rows: Tensor) -> list[slice]:
    size = max(1, _BLOCK[hidden.device.type] // len(rows))
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


def _log_probabilities(hidden: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (tokens, vocabulary) in float32 or wider, and the sum of the targets'."""
    logits = hidden @ rows.T
    logs = torch.log_softmax(logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits, dim=1)
    return logs, logs.gather(1, targets[:, None]).sum()

"""How a pretraining moves its weights: the rate of each step, AdamW, and single rows of the embedding alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from toolkit.errors import require
from toolkit.pretrain_config import PretrainConfig

LEAST_RATE = 0.1
"""The cosine ends at this share of the peak, as in GPT-3 (Brown et al. 2020, appendix B)."""
BETAS = (0.9, 0.95)
"""AdamW's, as in GPT-3."""
CLIP = 1.0
"""Largest norm of the gradient."""


def learning_rate(step: int, steps: int, config: PretrainConfig) -> float:
    """Rate of a step, counted from 0: linear to the peak in the warm-up, then a cosine to a tenth of it."""
    warm = round(config.warmup * steps)
    if step < warm:
        return config.lr * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return config.lr * (LEAST_RATE + (1 - LEAST_RATE) * 0.5 * (1 + float(np.cos(np.pi * progress))))


def optimiser_of(named: dict[str, nn.Parameter], config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW in one fused call a step; matrices decay, gains and biases do not."""
    matrices = [parameter for parameter in named.values() if parameter.dim() >= 2]
    others = [parameter for parameter in named.values() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, fused=True)


class Rows:
    """Some rows of the embedding as a parameter of their own, so that no optimiser reaches another row."""

    def __init__(self, model: Any, rows: Sequence[int]) -> None:
        self.table = model.get_input_embeddings().weight
        self.ids = row_ids(rows, len(self.table)).to(self.table.device)
        model.requires_grad_(False)
        self.table.requires_grad_(True)
        self.part = nn.Parameter(self.table.detach()[self.ids].clone())
        self.named = [("rows", self.part)]

    def take_gradient(self) -> None:
        """Hand the table's gradient to the rows."""
        self.part.grad = self.table.grad[self.ids]
        self.table.grad = None

    def put_back(self) -> None:
        """Write the rows into the table."""
        self.table.data[self.ids] = self.part.data


def row_ids(rows: Sequence[int], vocabulary: int) -> Int[Tensor, " rows"]:
    """Token ids as a tensor.

    Raises:
        UserError: one is outside the vocabulary or given twice, or there is none.
    """
    ids = [int(row) for row in rows]
    outside = [row for row in ids if not 0 <= row < vocabulary]
    require(not outside, f"token ids {outside} are outside the vocabulary: they run from 0 to {vocabulary - 1}")
    require(len(set(ids)) == len(ids), f"token ids are given twice: {sorted({r for r in ids if ids.count(r) > 1})}")
    require(bool(ids), "no token ids: name at least one row")
    return torch.tensor(ids)

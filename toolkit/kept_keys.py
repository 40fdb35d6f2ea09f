"""Keys and values that earlier positions left in each block, for rows that stand in for one position each."""

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


class KeptKeys:
    """They are gathered as a block asks for them, without gradients into room that all blocks share.

    Memory taken anew for each block costs as much time as what is then done with it.
    """

    def __init__(self, kept: list[tuple[Tensor, Tensor]]):
        """Keep keys and values of each block, (sequences, heads, positions, d_head)."""
        self._kept = kept
        self._room = [torch.empty(0), torch.empty(0)]

    def cache(self, sequence: Int[Tensor, " rows"], before: Int[Tensor, "rows longest"], blocks: int | None) -> Any:
        """What each block attends to beside a row's own position, as transformers takes it.

        Args:
            sequence: of each row.
            before: positions in it, padded on the left.
            blocks: the first so many; None: all.
        """
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        cache = DynamicCache()
        for keys, values in self._kept[:blocks]:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            shape = (len(before), keys.shape[1], before.shape[1], keys.shape[3])  # all that is asked of them before
            layer.keys = layer.values = keys.new_zeros(1).expand(shape)
            layer.update = partial(self._attended, (keys, values), sequence, before)
            cache.layers.append(layer)
        return cache

    def _attended(
        self, kept: tuple[Tensor, Tensor], sequence: Tensor, before: Tensor, *own: Tensor, **_: Any
    ) -> tuple[Tensor, ...]:
        """Keys and values (rows, heads, longest + 1, d_head): those before each row, its own last."""
        if torch.is_grad_enabled():
            pairs = zip(kept, own[:2], strict=True)
            return tuple(torch.cat([_gathered(each, sequence, before), new], 2) for each, new in pairs)
        behind = torch.cat([before, before[:, :1]], 1)  # (rows, longest + 1): the last is overwritten
        found = []
        for number, (each, new) in enumerate(zip(kept, own[:2], strict=True)):
            shape = (*new.shape[:2], behind.shape[1], new.shape[3])
            if self._room[number].numel() < math.prod(shape):
                self._room[number] = each.new_empty(math.prod(shape))
            room = self._room[number][: math.prod(shape)].view(shape)
            _gathered(each, sequence, behind, out=room)
            room[:, :, -1:] = new
            found.append(room)
        return tuple(found)


def _gathered(kept: Tensor, sequence: Tensor, before: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Of (sequences, heads, positions, d_head), each row's sequence at its positions: (rows, heads, before, d_head)."""
    _, heads, positions, d_head = kept.shape
    head = sequence[:, None] * heads + torch.arange(heads)  # (rows, heads), of sequences and heads in one
    at = head[:, :, None] * positions + before[:, None]  # (rows, heads, before)
    which, flat = at.flatten().to(kept.device), None if out is None else out.view(-1, d_head)
    return torch.index_select(kept.reshape(-1, d_head), 0, which, out=flat).view(*at.shape, d_head)

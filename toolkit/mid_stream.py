"""Changing the residual stream between attention and MLP, where TransformerBridge shows only the MLP's input.

Its hook_resid_mid is what the second layer norm reads: a change there reaches the MLP, and the stream passes it by. So
the change is added to the block's output too, after a check that the block is stream + MLP.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolkit.errors import require

HOOK = "hook_resid_mid"
"""The last part of such a hook's name."""
_AGREEMENT = 1e-4
"""How far stream + MLP may lie from the block's output, over the largest of it: rounding lies far below."""

NamedHook = tuple[str, Callable[..., Tensor | None]]
"""A hook's name and what is called there."""


class Carried(NamedTuple):
    """Three hooks that make one change of the stream."""

    at_output: NamedHook
    """Before any other at the block's output."""
    at_input: NamedHook
    """The change itself, in its place among others."""
    at_mlp: NamedHook
    """After any other at the MLP's output."""


def carried(name: str, change: Callable[..., Tensor]) -> Carried:
    """The hooks for a change at `blocks.<n>.hook_resid_mid`.

    They raise a UserError, when run, where the block's output is not the stream plus the MLP's.
    """
    block, seen = name.removesuffix(HOOK), dict[str, Tensor]()

    def at_input(value: Tensor, hook: Any) -> Tensor:
        seen["before"], seen["after"] = value, change(value, hook)
        return seen["after"]

    def at_mlp(value: Tensor, hook: Any) -> None:
        seen["mlp"] = value

    def at_output(value: Tensor, hook: Any) -> Tensor:
        if "before" not in seen:
            return value
        away = value - seen["before"] - seen["mlp"] if "mlp" in seen else torch.full_like(value, torch.inf)
        require(
            bool(away.abs().max() <= _AGREEMENT * value.abs().max()),
            f"{name} cannot be changed: what leaves its block is not what it holds plus {block}hook_mlp_out; "
            f"change {block}hook_attn_out instead",
        )
        return value + (seen["after"] - seen["before"])

    return Carried((f"{block}hook_resid_post", at_output), (name, at_input), (f"{block}hook_mlp_out", at_mlp))

"""A model run with its activations changed: logits, loss and KL divergence beside the clean run.

```python
from toolkit.interventions import Add, Patch, intervene, record
intervene(model, tokens, Add("blocks.1.hook_resid_post", direction, scale=4.0)).mean_kl            # nats
other = record(model, others, ["blocks.1.hook_resid_post"])["blocks.1.hook_resid_post"]
intervene(model, tokens, [Patch("blocks.1.hook_resid_post", other, positions=[3])]).kl             # a position each
```
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toolkit import mid_stream
from toolkit.errors import require
from toolkit.language import LanguageModel
from toolkit.mid_stream import NamedHook, carried
from toolkit.row_changes import (
    Ablate,
    Add,
    Intervention,
    Patch,
    ProjectOut,
    Replace,
    SetCoordinate,
    SwapCoordinates,
)

__all__ = [
    "Ablate",
    "Add",
    "Effect",
    "Intervention",
    "Patch",
    "ProjectOut",
    "Replace",
    "SetCoordinate",
    "SwapCoordinates",
    "intervene",
    "record",
]

_ROWS_AT_ONCE = 2**22
"""Logits turned to float64 at a time: 32 MB of them."""


@dataclass(frozen=True, eq=False)
class Effect:
    """What interventions do to a model's predictions, in nats. Positions that do not count hold NaN."""

    logits: Float[Tensor, "batch positions vocabulary"]
    """With the interventions."""
    clean_logits: Float[Tensor, "batch positions vocabulary"]
    """Without."""
    loss: Float[Tensor, "batch before_last"]
    """-log p(next token) at each position but the last, with the interventions."""
    clean_loss: Float[Tensor, "batch before_last"]
    """The same without."""
    kl: Float[Tensor, "batch positions"]
    """KL(clean || intervened) of the next token's distribution."""

    @property
    def mean_loss(self) -> float:
        """`loss` over the positions that count."""
        return self.loss.nanmean().item()

    @property
    def mean_clean_loss(self) -> float:
        """`clean_loss` over the positions that count."""
        return self.clean_loss.nanmean().item()

    @property
    def mean_kl(self) -> float:
        """`kl` over the positions that count."""
        return self.kl.nanmean().item()


@torch.no_grad()
def intervene(
    model: LanguageModel,
    tokens: Int[Tensor, "batch positions"],
    interventions: Intervention | Sequence[Intervention],
    *,
    mask: Bool[Tensor, "batch _"] | None = None,
) -> Effect:
    """Run a model clean and with interventions; several at one hook act in the order given.

    No hook stays behind, also after an error.

    Args:
        tokens: padding goes on the right, where a causal model does not see it.
        mask: the tokens that count (all by default). KL counts where they are; a loss counts where both a token and
            the next one do. It does not restrict where interventions act: their own `positions` do.

    Raises:
        UserError: an unknown hook, activations that interventions do not fit, positions beyond the sequence, tokens
            that the model cannot read, or a mask of another shape.
    """
    model.check_tokens(tokens)
    chosen = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    for intervention in chosen:
        model.check_hook(intervention.hook)
        intervention.mask(*tokens.shape)
    counts = counting(tokens, mask)
    clean = run(model, tokens)
    changed = run(model, tokens, chosen)
    last = counts[:, :-1] & counts[:, 1:]
    return Effect(
        changed,
        clean,
        _only(losses(changed, tokens), last),
        _only(losses(clean, tokens), last),
        _only(divergences(clean, changed), counts),
    )


def counting(tokens: Tensor, mask: Tensor | None) -> Bool[Tensor, "batch positions"]:
    """The mask, or one that is true everywhere.

    Raises:
        UserError: it has not the shape of the tokens.
    """
    if mask is None:
        return torch.ones(tokens.shape, dtype=torch.bool)
    require(mask.shape == tokens.shape, f"the mask is {tuple(mask.shape)}, the tokens are {tuple(tokens.shape)}")
    return mask.bool().cpu()


def _only(values: Tensor, where: Tensor) -> Tensor:
    return values.masked_fill(~where.to(values.device), float("nan"))


@torch.no_grad()
def run(
    model: LanguageModel, tokens: Int[Tensor, "batch positions"], interventions: Sequence[Intervention] = ()
) -> Float[Tensor, "batch positions vocabulary"]:
    """Logits with interventions.

    Raises:
        UserError: one does not fit, the model does not pass its hook, or is none that predicts the next token.
    """
    direction = getattr(model.bridge.cfg, "attention_dir", "causal")
    require(direction == "causal", f"{model.name} is {direction}: only models that predict the next token are run here")
    met = [False] * len(interventions)

    def change(number: int) -> Callable[..., Tensor]:
        def hooked(value: Tensor, hook: Any) -> Tensor:
            met[number] = True
            _need_rows(interventions[number].hook, value, tokens)
            return interventions[number].apply(value.flatten(2)).reshape(value.shape)  # heads flattened, and back

        return hooked

    first, hooks, last = list[NamedHook](), list[NamedHook](), list[NamedHook]()
    for number, intervention in enumerate(interventions):
        if intervention.hook.endswith(mid_stream.HOOK):
            parts = carried(intervention.hook, change(number))
            first, hooks, last = [*first, parts.at_output], [*hooks, parts.at_input], [*last, parts.at_mlp]
        else:
            hooks.append((intervention.hook, change(number)))
    logits: Tensor = model.bridge.run_with_hooks(tokens.to(model.device), fwd_hooks=[*first, *hooks, *last])
    for intervention, done in zip(interventions, met, strict=True):
        require(done, f"{intervention}: {model.name} does not pass that hook, so nothing would change; choose another")
    return logits


@torch.no_grad()
def record(
    model: LanguageModel, tokens: Int[Tensor, "batch positions"], hooks: Sequence[str]
) -> dict[str, Float[Tensor, "batch positions ..."]]:
    """Activations at hooks, heads not flattened: for looking at a few tokens, and for `Patch`.

    Raises:
        UserError: an unknown hook, or one that the model does not pass.
    """
    model.check_tokens(tokens)
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda value, hook: found.update({name: value.clone()})

    for name in hooks:
        model.check_hook(name)
    model.bridge.run_with_hooks(tokens.to(model.device), fwd_hooks=[(name, keep(name)) for name in hooks])
    for name in hooks:
        require(name in found, f"{model.name} does not pass the hook {name}; choose another")
    return found


def _need_rows(hook: str, value: Tensor, tokens: Tensor) -> None:
    by_position = value.ndim >= 3 and value.shape[:2] == tokens.shape and value.is_floating_point()
    require(
        by_position and not hook.endswith(("hook_pattern", "hook_attn_scores")),
        f"{hook} holds {tuple(value.shape)}, not one row a token: choose a hook of (batch, positions, d)",
    )


def losses(
    logits: Float[Tensor, "batch positions vocabulary"], tokens: Int[Tensor, "batch positions"]
) -> Float[Tensor, "batch before_last"]:
    """-log p(next token) in nats at every position but the last, summed in float64."""
    after = tokens[:, 1:].to(logits.device)
    rows, targets = logits[:, :-1].flatten(0, 1), after.flatten()  # (batch, positions - 1, v) -> (rows, v)
    parts = [-rows[at].double().log_softmax(1).gather(1, targets[at, None])[:, 0].float() for at in _blocks(rows)] or [
        rows.new_zeros(0)
    ]
    return torch.cat(parts).reshape(after.shape)


def divergences(
    clean: Float[Tensor, "batch positions vocabulary"], changed: Float[Tensor, "batch positions vocabulary"]
) -> Float[Tensor, "batch positions"]:
    """KL(clean || changed) in nats at every position, summed in float64; 0 where the logits are equal, never below."""
    rows, others = clean.flatten(0, 1), changed.flatten(0, 1)  # (batch, positions, v) -> (rows, v)
    parts = []
    for at in _blocks(rows):
        p, q = rows[at].double().log_softmax(1), others[at].double().log_softmax(1)
        parts.append((p.exp() * (p - q)).sum(1).clamp_min(0).float())
    return torch.cat(parts).reshape(clean.shape[:2])


def _blocks(rows: Tensor) -> list[slice]:
    size = max(1, _ROWS_AT_ONCE // rows.shape[1])
    return [slice(start, start + size) for start in range(0, len(rows), size)]

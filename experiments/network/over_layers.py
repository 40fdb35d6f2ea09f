"""Divergences of a change against those of controls at the same places: ratios of means and paired logarithms.

One layer's places are the others' too: the text is dealt by seed alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.checks import Interval, interval
from experiments.network.by_document import means, ratio
from experiments.network.ground import Subject, hook_of
from experiments.network.networks import TRAINED, network
from toolkit.language import DEFAULT

AnySubject = TypeVar("AnySubject", bound=Subject)
FLOOR = 1e-7
"""Nats below which a divergence is rounding; logarithms stop there."""


def block_of(hook: str) -> Tensor:
    """The number of a hook's block; -1 where its name has none."""
    found = re.search(r"blocks\.(\d+)\.", hook)
    return torch.tensor(int(found.group(1)) if found else -1)


def with_own_sae(settings: AnySubject, kind: str, at: str) -> AnySubject:
    """Settings of a network: where an SAE is named, others than the trained one get one of their own at the same hook.

    Raises:
        UserError: neither a hook is named nor does the SAE say which is its own.
    """
    if not settings.sae or kind == TRAINED:
        return settings
    return replace(settings, sae="", hook=hook_of(settings, network(settings.model or DEFAULT), at))


def layer(cell: Mapping[str, Any], found: Mapping[str, Tensor]) -> str:
    """What a cell's hook is called in tables: its own name, or the block that its number meant."""
    return f"block {int(found['block'])}" if cell["at"].isdigit() or not cell["at"] else str(cell["at"])


def ratio_of_means(
    kl: Float[Tensor, "changes places"], control: Float[Tensor, "draws places"], documents: Int[Tensor, " places"]
) -> Interval:
    """Mean over changes and places over the control's; interval by documents drawn with replacement."""
    return ratio(kl.double().mean(0).numpy(), control.double().mean(0).numpy(), documents.numpy(), seed=0)


def log_ratio(
    kl: Float[Tensor, "changes places"], control: Float[Tensor, "draws places"], documents: Int[Tensor, " places"]
) -> Interval:
    """Mean logarithm of the KL less that of a control's draw at the same place; t interval over documents.

    0 is expected of a change that is one more draw of the control.
    """
    return interval(means(_paired(kl, control), documents.numpy()))


def pooled_ratio(
    kl: Sequence[Float[Tensor, "changes places"]],
    control: Sequence[Float[Tensor, "draws places"]],
    documents: Int[Tensor, " places"],
) -> Interval:
    """The ratio of means with layers counted alike: each in units of its control's mean."""
    units = [one.double().mean().clamp(min=1e-30) for one in control]
    above = torch.stack([one.double().mean(0) / unit for one, unit in zip(kl, units, strict=True)]).mean(0)
    below = torch.stack([one.double().mean(0) / unit for one, unit in zip(control, units, strict=True)]).mean(0)
    return ratio(above.numpy(), below.numpy(), documents.numpy(), seed=0)


def pooled_log_ratio(
    kl: Sequence[Float[Tensor, "changes places"]],
    control: Sequence[Float[Tensor, "draws places"]],
    documents: Int[Tensor, " places"],
) -> Interval:
    """The paired logarithm averaged over layers, then over a document's places; t interval over documents."""
    each = [_paired(one, other) for one, other in zip(kl, control, strict=True)]
    return interval(means(np.mean(each, 0), documents.numpy()))


def pooled_excess(
    first: Sequence[tuple[Tensor, Tensor]], second: Sequence[tuple[Tensor, Tensor]], documents: Int[Tensor, " places"]
) -> Interval:
    """By how much the paired logarithm of one kind of change, over its control, exceeds another's over its own.

    Args:
        first: for each layer KLs of the change and of its control, (changes, places) each.
    """
    logs = [np.mean([_paired(*pair) for pair in pairs], 0) for pairs in (first, second)]
    return interval(means(logs[0] - logs[1], documents.numpy()))


def spread(found: Interval) -> str:
    """A value with its interval."""
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


def as_ratio(found: Interval) -> str:
    """The same of a logarithm, as the ratio that it means."""
    return spread(Interval(*np.exp([found.mean, found.low, found.high]).tolist()))


def _paired(kl: Tensor, control: Tensor) -> Float[np.ndarray, " places"]:
    logs = [each.double().clamp(min=FLOOR).log().mean(0) for each in (kl, control)]
    return (logs[0] - logs[1]).numpy()

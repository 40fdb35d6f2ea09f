"""Divergences of a change against those of controls at the same places: ratios of means and paired logarithms.

One layer's places are the others' too: the text is dealt by seed alone. Where changes come from several dictionaries
drawn at random, intervals are over dictionaries too: documents are resampled, the same in every layer, and dictionaries
in each layer by itself.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.checks import LEVEL, Interval, interval
from experiments.network.by_document import DRAWS, means, ratio
from experiments.network.ground import Ground, ground
from experiments.network.networks import FIRST, RANDOM, SPECTRUM, TRAINED
from experiments.network.subject import Subject
from toolkit.errors import require, unknown

AnySubject = TypeVar("AnySubject", bound=Subject)
FLOOR = 1e-7
"""Nats below which a divergence is rounding; logarithms stop there."""
AT_ONCE = 4096
"""Rows encoded together: a public SAE has tens of thousands of latents."""


def block_of(hook: str) -> Tensor:
    """The number of a hook's block; -1 where its name has none."""
    found = re.search(r"blocks\.(\d+)\.", hook)
    return torch.tensor(int(found.group(1)) if found else -1)


def check_networks(kinds: Sequence[str], *, claimed: str = TRAINED) -> None:
    """Refuse networks that leave out the one that a claim is about, or that are not there.

    Args:
        claimed: the one; empty where the first named is.

    Raises:
        UserError: either.
    """
    require(len(kinds) > 0, "networks are empty: name one")
    require(not claimed or claimed in kinds, f"networks must name {claimed!r}, which the claim is about, got {kinds}")
    for kind in kinds:
        if kind not in (TRAINED, RANDOM, SPECTRUM) and not re.fullmatch(r"step_\d+", kind):
            raise unknown("network", kind, (TRAINED, RANDOM, SPECTRUM, FIRST))


def size_of_sae(g: Ground) -> tuple[int, int]:
    """Latents of a ground's SAE ever on in the rows to learn from, and how many are on in a row: the mean, rounded."""
    on = torch.stack([(g.latents(some) != 0).sum(0) for some in g.learn.split(AT_ONCE)]).sum(0)
    k = max(1, round(int(on.sum()) / len(g.learn)))
    return max(int((on > 0).sum()), k), k


def own_sae(settings: AnySubject, kind: str, at: str) -> AnySubject:
    """Settings of a network: where an SAE is named, others than the trained one get one of their own at the same hook.

    With as many latents as the one named has ever on in the trained network's rows (of the text of seed 0), and its
    mean L0 there. Architecture, training and rows are those of SAEs trained here, and not those of the one named.

    Raises:
        UserError: the SAE cannot be read, or neither a hook is named nor does the SAE say which is its own.
    """
    if not settings.sae or kind == TRAINED:
        return settings
    g = ground(settings, at)
    width, k = size_of_sae(g)
    return replace(settings, sae="", hook=g.hook, width=width, k=k, processing=g.model.processing)


def layer(cell: Mapping[str, Any], found: Mapping[str, Tensor]) -> str:
    """What a cell's hook is called in tables: its own name, or the block that its number meant."""
    return f"block {int(found['block'])}" if cell["at"].isdigit() else str(cell["at"])


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
    kl: Sequence[Float[Tensor, "dictionaries changes places"]],
    control: Sequence[Float[Tensor, "dictionaries draws places"]],
    documents: Int[Tensor, " places"],
) -> Interval:
    """The ratio of means with layers counted alike, and their dictionaries: each in units of its control's mean.

    Args:
        kl: for each layer divergences of the change; `control`: of its control.
    """
    units = [one.double().mean((1, 2)).clamp(min=1e-30)[:, None] for one in control]
    of = documents.numpy()
    above, below = (
        [_summed((one.double().mean(1) / unit).numpy(), of) for one, unit in zip(each, units, strict=True)]
        for each in (kl, control)
    )
    weights, known = _weights(tuple(len(one) for one in kl), above[0].shape[1])
    drawn = _total(above, *weights) / _total(below, *weights)
    return _between(float(_total(above, *known)[0] / _total(below, *known)[0]), drawn)


def of_each_dictionary(
    kl: Sequence[Float[Tensor, "dictionaries changes places"]],
    control: Sequence[Float[Tensor, "dictionaries draws places"]],
    documents: Int[Tensor, " places"],
) -> list[float]:
    """The pooled ratio where every layer has its first dictionary alone, its second, ..."""
    return [
        pooled_ratio([one[[number]] for one in kl], [one[[number]] for one in control], documents).mean
        for number in range(len(kl[0]))
    ]


def pooled_log_ratio(
    kl: Sequence[Float[Tensor, "dictionaries changes places"]],
    control: Sequence[Float[Tensor, "dictionaries draws places"]],
    documents: Int[Tensor, " places"],
) -> Interval:
    """The paired logarithm averaged over a document's places, then over layers, dictionaries and documents."""
    logs = _logs(kl, control, documents)
    weights, known = _weights(tuple(len(one) for one in kl), logs[0].shape[1])
    return _between(float(_total(logs, *known)[0]), _total(logs, *weights))


def pooled_excess(
    first: Sequence[tuple[Tensor, Tensor]], second: Sequence[tuple[Tensor, Tensor]], documents: Int[Tensor, " places"]
) -> Interval:
    """By how much the paired logarithm of one kind of change, over its control, exceeds another's over its own.

    Args:
        first: for each layer KLs of the change and of its control, (dictionaries, changes, places) each.
    """
    logs = [_logs([pair[0] for pair in pairs], [pair[1] for pair in pairs], documents) for pairs in (first, second)]
    both = [*logs[0], *(-each for each in logs[1])]
    weights, known = _weights(tuple(len(one) for one in both), both[0].shape[1])
    return _between(2 * float(_total(both, *known)[0]), 2 * _total(both, *weights))


def _logs(kl: Sequence[Tensor], control: Sequence[Tensor], documents: Tensor) -> list[np.ndarray]:
    """For each layer the mean paired logarithm, (dictionaries, documents)."""
    of = documents.numpy()
    return [
        np.stack([means(_paired(*pair), of) for pair in zip(one, other, strict=True)])
        for one, other in zip(kl, control, strict=True)
    ]


def _summed(
    values: Float[np.ndarray, "dictionaries places"], documents: Int[np.ndarray, " places"]
) -> Float[np.ndarray, "dictionaries documents"]:
    here = np.unique(documents, return_inverse=True)[1]
    return np.stack([np.bincount(here, each) for each in values])


_Weights = tuple[list[Float[np.ndarray, "draws dictionaries"]], Float[np.ndarray, "draws documents"]]


@lru_cache(maxsize=8)
def _weights(dictionaries: tuple[int, ...], documents: int) -> tuple[_Weights, _Weights]:
    """Of every resample, dictionaries of each layer and documents; and those of what was measured.

    One dictionary fewer is drawn than there are: of the mean of m drawn with replacement from n the variance is
    (n - 1)/n s^2/m, which is that of a mean of n where m = n - 1; with the four that there are the difference counts.
    """
    rng = np.random.default_rng([0, 67])
    text = rng.multinomial(documents, np.full(documents, 1 / documents), DRAWS) / documents
    who = [rng.multinomial(max(1, n - 1), np.full(n, 1 / n), DRAWS) / max(1, n - 1) for n in dictionaries]
    return (who, text), ([np.full((1, n), 1 / n) for n in dictionaries], np.full((1, documents), 1 / documents))


def _total(
    layers: Sequence[Float[np.ndarray, "dictionaries documents"]],
    who: Sequence[Float[np.ndarray, "draws dictionaries"]],
    text: Float[np.ndarray, "draws documents"],
) -> Float[np.ndarray, " draws"]:
    """The mean over layers of what weights make of each."""
    each = [((some @ layer) * text).sum(1) for layer, some in zip(layers, who, strict=True)]
    return np.mean(each, 0)


def _between(mean: float, drawn: Float[np.ndarray, " draws"]) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))


def spread(found: Interval) -> str:
    """A value with its interval."""
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


def as_ratio(found: Interval) -> str:
    """The same of a logarithm, as the ratio that it means."""
    return spread(Interval(*np.exp([found.mean, found.low, found.high]).tolist()))


def _paired(kl: Tensor, control: Tensor) -> Float[np.ndarray, " places"]:
    logs = [each.double().clamp(min=FLOOR).log().mean(0) for each in (kl, control)]
    return (logs[0] - logs[1]).numpy()

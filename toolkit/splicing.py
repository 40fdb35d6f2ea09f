"""What a language model loses when an SAE's reconstruction takes the place of its activations at a hook.

Cross-entropy clean, spliced, and with the activations ablated instead, as in Gao et al., "Scaling and evaluating sparse
autoencoders" (2024), section 4.1 (downstream loss); the shares are the "loss recovered" of Rajamanoharan et al.,
"Improving dictionary learning with gated sparse autoencoders" (2024).
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toolkit.descent import Progress
from toolkit.errors import require
from toolkit.interventions import counting, divergences, losses, record, run
from toolkit.language import LanguageModel
from toolkit.row_changes import Ablate, Intervention, Replace
from toolkit.sae import SAE, LoadedSAE

Batch = tuple[Int[Tensor, "_ _"], Bool[Tensor, "_ _"]]
"""Tokens (batch, positions), padded on the right, and a mask of those that count; each batch of any size."""
Rebuild = Callable[[Float[Tensor, "_ _"]], Float[Tensor, "_ _"]]
"""Rows (rows, d) to their reconstruction."""


@dataclass(frozen=True)
class SpliceReport:
    """Mean losses in nats a prediction, and the shares of the loss that the SAE keeps."""

    hook: str
    """Where the SAE was spliced in."""
    positions: int
    """Rows that were replaced."""
    predictions: int
    """Next tokens predicted: pairs of neighbours that both count."""
    clean: float
    """Cross-entropy of the model as it is."""
    spliced: float
    """With the SAE's reconstruction."""
    zero_ablated: float
    """With zeros instead."""
    mean_ablated: float
    """With the mean row instead."""
    recovered_zero: float | None
    """(zero_ablated - spliced) / (zero_ablated - clean); None where the denominator is not positive."""
    recovered_mean: float | None
    """(mean_ablated - spliced) / (mean_ablated - clean); None where the denominator is not positive."""
    why: str
    """Why a share is None; empty otherwise."""
    kl: float
    """KL(clean || spliced), mean over the replaced positions."""


@torch.no_grad()
def splice_report(
    model: LanguageModel,
    batches: Iterable[Batch],
    hook: str,
    sae: SAE | LoadedSAE | Rebuild,
    *,
    mean: Float[Tensor, " d"] | None = None,
    progress: Progress | None = None,
) -> SpliceReport:
    """Run a model on batches four times: clean, with an SAE spliced in, zero-ablated and mean-ablated at one hook.

    Only rows of masked-in positions are replaced; a prediction counts where both its token and the next are masked in.
    One batch is held at a time.

    Args:
        batches: (tokens, mask), as often as asked for (a list, not a generator) where `mean` is not given.
        sae: a fitted or loaded SAE (of one instance), or a function of rows (rows, d).
        mean: the row of mean ablation; by default the mean of the replaced rows, found in a first pass.
        progress: called with the number of batches finished.

    Raises:
        UserError: an unknown hook, an SAE of another width, batches that can be read only once, nothing to predict.
    """
    model.check_hook(hook)
    _warn_of_other_hook(model, hook, sae)
    if mean is None:
        require(
            iter(batches) is not batches,
            "the mean row takes a pass of its own: give batches as a list, or the mean itself",
        )
        mean = mean_row(model, batches, hook)
    sums, positions, predictions = torch.zeros(5, dtype=torch.float64), 0, 0
    for tokens, mask in batches:
        chosen = counting(tokens, mask)
        last = chosen[:, :-1] & chosen[:, 1:]
        sums += _sums(model, tokens, chosen, last, _ways(hook, _rebuilder(sae, hook), mean, chosen))
        positions, predictions = positions + int(chosen.sum()), predictions + int(last.sum())
        if progress is not None:
            progress(1)
    require(predictions > 0, "no two neighbouring tokens are masked in: there is no next token to predict")
    clean, spliced, zero, average = (sums[:4] / predictions).tolist()
    return _report(hook, positions, predictions, (clean, spliced, zero, average), sums[4].item() / positions)


def mean_row(model: LanguageModel, batches: Iterable[Batch], hook: str) -> Float[Tensor, " d"]:
    """Mean of the masked-in rows at a hook, heads flattened, summed in float64.

    Raises:
        UserError: an unknown hook, or nothing masked in.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    for tokens, mask in batches:
        rows = record(model, tokens, [hook])[hook].flatten(2)  # (batch, positions, [heads,] d) -> d last
        chosen = rows[counting(tokens, mask).to(rows.device)]
        total, count = total + chosen.double().sum(0).cpu(), count + len(chosen)
    require(count > 0, f"no token is masked in: there is no mean row at {hook}")
    return (total / count).float()


def _ways(hook: str, rebuild: Rebuild, mean: Tensor, mask: Tensor) -> list[list[Intervention]]:
    return [
        [],
        [Replace(hook, rebuild, positions=mask)],
        [Ablate(hook, "zero", positions=mask)],
        [Ablate(hook, "mean", mean, positions=mask)],
    ]


def _sums(
    model: LanguageModel, tokens: Tensor, mask: Tensor, last: Tensor, ways: list[list[Intervention]]
) -> Float[Tensor, " 5"]:
    """Losses summed over predictions, one for each way, and the KL of the second from the first over positions."""
    clean = run(model, tokens)
    found, divergence = [], 0.0
    for number, way in enumerate(ways):
        logits = run(model, tokens, way) if way else clean
        found.append(losses(logits, tokens).cpu()[last].double().sum().item())
        if number == 1:
            divergence = divergences(clean, logits).cpu()[mask].double().sum().item()
    return torch.tensor([*found, divergence], dtype=torch.float64)


def _report(
    hook: str, positions: int, predictions: int, means: tuple[float, float, float, float], kl: float
) -> SpliceReport:
    clean, spliced, zero, average = means
    why = "; ".join(
        f"{name} ablation costs nothing ({lost - clean:.2g} nats)"
        for name, lost in (("zero", zero), ("mean", average))
        if not lost > clean
    )
    shares = [(lost - spliced) / (lost - clean) if lost > clean else None for lost in (zero, average)]
    return SpliceReport(hook, positions, predictions, clean, spliced, zero, average, shares[0], shares[1], why, kl)


def _rebuilder(sae: SAE | LoadedSAE | Rebuild, hook: str) -> Rebuild:
    if not isinstance(sae, SAE | LoadedSAE):
        return sae
    decoder = sae.W_dec
    require(len(decoder) == 1, f"one SAE can be spliced in, this has {len(decoder)} instances: take instance(i) first")

    def rebuild(rows: Tensor) -> Tensor:
        require(
            rows.shape[1] == decoder.shape[2],
            f"the SAE reads rows of {decoder.shape[2]} numbers, {hook} holds {rows.shape[1]}: it belongs elsewhere",
        )
        return sae(rows[None].to(decoder.device))[0]  # (rows, d) -> (1, rows, d) and back

    return rebuild


def _warn_of_other_hook(model: LanguageModel, hook: str, sae: object) -> None:
    """An SAE may be tried at a hook that it was not trained at, but not unawares."""
    named = sae.metadata.get("hook_name") if isinstance(sae, SAE | LoadedSAE) else None
    points = model.bridge.hook_dict
    if named is not None and points.get(named) is not points[hook]:
        warnings.warn(f"the SAE says that it was trained at {named}, and is spliced in at {hook}", stacklevel=3)

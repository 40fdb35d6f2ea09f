"""What a fit to activations reports: rows rebuilt, the model's loss with the SAE spliced in, latents in context."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.activations import Activations
from toolkit.language import LanguageModel, ascii_safe
from toolkit.latent_logits import LogitEffects, logit_effects, writes_to_stream
from toolkit.latent_pages import EVENTS, FOLDER, TOKENS, Text, write_latents
from toolkit.runs import Run
from toolkit.sae import SAE, LoadedSAE
from toolkit.sae_scores import score_rows, typical_rows
from toolkit.splicing import SpliceReport

MEASURED = 2**18
"""Rows of each part that are measured at most, evenly spaced: FVU, L0 and the share of rows a latent is active on."""
SHOWN = 2**18
"""Rows that pages of latents are drawn from at most, in whole documents, those held out first."""
_PIECE = 2**14
_BEFORE, _AFTER = 6, 3


@dataclass(frozen=True)
class Stream:
    """Rows at one hook made ready to fit: (raw - mean) * scale."""

    raw: Float[np.ndarray, "rows d"]
    """Memory-mapped, float16: what the saved SAE takes."""
    mean: Float[Tensor, " d"]
    """Mean of the rows trained on, or of all where none are."""
    scale: float
    """Brings the mean square of those rows about their mean to d."""
    train: Int[np.ndarray, " train"]
    """Rows trained on; none where an SAE was given."""
    held_out: Int[np.ndarray, " held"]
    """Rows of the other documents."""
    judged: Int[np.ndarray, " documents"]
    """Documents to run the model on, in random order: those held out, or all where none are."""


def pieces(raw: Float[np.ndarray, "rows d"], index: Int[np.ndarray, " some"]) -> Iterator[Float[Tensor, "_ d"]]:
    """Some rows of a memory-mapped matrix in float32, a few thousand at a time."""
    for start in range(0, len(index), _PIECE):
        yield torch.from_numpy(np.asarray(raw[index[start : start + _PIECE]])).float()


def _spaced(index: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " some"]:
    return index[:: -(-len(index) // MEASURED) or 1]


def measure(sae: SAE | LoadedSAE, stream: Stream) -> dict[str, Any]:
    """FVU and L0 of rows trained on and held out, NaN where there are none; dead latents, how often each is active."""
    found: dict[str, Any] = {"scale": stream.scale}
    for name, index in (("", stream.train), ("_held_out", stream.held_out)):
        scores = score_rows(sae, pieces(stream.raw, _spaced(index)))
        found |= {f"fvu{name}": scores.fvu, f"fvu_zero{name}": scores.fvu_zero}
        found |= {f"l0{name}": scores.l0, f"rows{name}": len(index)}
        if scores.rows and "shares" not in found:
            found |= {"dead": (scores.counts == 0).float().mean().item(), "shares": scores.counts / scores.rows}
    return found


def typical_tokens(
    sae: SAE | LoadedSAE, stream: Stream, found: Activations, tokenizer: Any, shares: Tensor, *, seed: int
) -> list[dict[str, Any]]:
    """For a sample of live latents, the ten tokens that activate each most, alone and with the text round them."""
    index = _spaced(stream.train if len(stream.train) else stream.held_out)
    said = []
    for typical in typical_rows(sae, pieces(stream.raw, index), shares, seed=seed):
        texts = [in_context(found, tokenizer, int(row)) for row in index[typical.rows]]
        tokens = [ascii_safe(tokenizer.decode([int(found.tokens[row])])) for row in index[typical.rows]]
        said.append({"latent": typical.latent, "share": typical.share, "tokens": tokens, "contexts": texts})
    return said


def in_context(found: Activations, tokenizer: Any, row: int) -> str:
    """A row's token between » «, with a few tokens of its document before and after it."""
    same = slice(max(0, row - _BEFORE), row + _AFTER + 1)
    inside = np.flatnonzero(found.documents[same] == found.documents[row]) + same.start
    parts = (inside[inside < row], [row], inside[inside > row])
    before, token, after = (tokenizer.decode(found.tokens[part].tolist()) for part in parts)
    return ascii_safe(f"{before}»{token}«{after}")


def write_pages(
    folder: Run,
    sae: SAE | LoadedSAE,
    stream: Stream,
    found: Activations,
    model: LanguageModel,
    hook: str,
    measured: dict[str, Any],
) -> None:
    """Write what pages of single latents need into the run's folder."""
    seed = folder.config["seed"]
    l0 = measured["l0"] if len(stream.train) else measured["l0_held_out"]
    index = rows_shown(stream, found.documents, min(SHOWN, int(EVENTS / max(l0, 1))), seed=seed)
    held_out = np.isin(index, stream.held_out) & bool(len(stream.train))
    text = Text(found.documents[index], found.positions[index], found.tokens[index], held_out)
    effects: LogitEffects | None = None
    if writes_to_stream(hook) and sae.W_dec.shape[2] == model.d_model:
        effects = logit_effects(model, sae.W_dec[0].detach(), min(TOKENS, model.vocabulary))
    rows = pieces(stream.raw, index)
    write_latents(folder.folder / FOLDER, sae, rows, text, model.tokenizer, effects, seed=seed)


def rows_shown(
    stream: Stream, documents: Int[np.ndarray, " all_rows"], most: int, *, seed: int
) -> Int[np.ndarray, " some"]:
    """Rows of documents, those held out first and all in random order, until there are enough, as they stand."""
    others = np.setdiff1d(documents, stream.judged)
    order = np.concatenate([stream.judged, np.random.default_rng([seed, 6]).permutation(others)])
    order = order.astype(documents.dtype)  # of another type, all documents would be copied for the search
    first, last = np.searchsorted(documents, order), np.searchsorted(documents, order, side="right")
    needed = int(np.searchsorted((last - first).cumsum(), most)) + 1
    spans = [np.arange(*span) for span in zip(first[:needed].tolist(), last[:needed].tolist(), strict=True)]
    return np.sort(np.concatenate(spans)[:most])


def numbers(splice: SpliceReport) -> dict[str, Any]:
    """The report under names of its own, the hook apart."""
    return {f"ce_{key}" if key != "kl" else key: value for key, value in asdict(splice).items() if key != "hook"}


def table(
    found: Activations,
    hook: str,
    sae: SAE | LoadedSAE,
    stream: Stream,
    measured: dict[str, Any],
    splice: SpliceReport,
    typical: list[dict[str, Any]],
) -> str:
    """The scores and the sample of latents as text."""
    counted, width, away = found.counted, sae.W_dec.shape[1], len(stream.held_out)
    steps = f"{sae.config.steps} steps of {sae.config.batch} rows" if isinstance(sae, SAE) else f"from {sae.source}"
    kind = sae.config.architecture if isinstance(sae, SAE) else sae.architecture
    lines = [
        f"{hook} of {found.model}: {counted.rows:,} tokens x {stream.raw.shape[1]}, {counted.documents:,} documents; "
        + (
            f"{len(stream.train):,} trained on, {away:,} held out by document"
            if len(stream.train)
            else "all are judged"
        ),
        f"masked: {counted.special:,} special tokens, {counted.padding:,} places of padding",
        f"{kind}, width {width}, {steps}",
        "",
        f"{'':24}{'trained on':>12}{_judged(stream):>12}",
    ]
    for label, key in (("FVU about the mean", "fvu{}"), ("FVU about zero", "fvu_zero{}"), ("L0", "l0{}")):
        cells = [measured[key.format(part)] for part in ("", "_held_out")]
        lines.append(f"{label:24}" + "".join(f"{cell:12.4f}" for cell in cells))
    lines += [f"{'dead latents':24}{measured['dead']:12.2%}", "", *loss_lines(splice, _judged(stream)), ""]
    for latent in typical:
        lines.append(f"latent {latent['latent']}, active on {latent['share']:.3%}")
        lines += [f"    {json.dumps(text, ensure_ascii=False)}" for text in latent["contexts"][:3]]
    return "\n".join(lines)


def _judged(stream: Stream) -> str:
    """What losses are measured on; an SAE that was given may have been trained on any document."""
    if not len(stream.train):
        return "all of them"
    return "held out" if len(stream.held_out) else "trained on"


def loss_lines(splice: SpliceReport, where: str) -> list[str]:
    """Cross-entropies and the shares recovered, as lines of a table."""

    def share(value: float | None) -> str:
        return f"{value:12.2%}" if value is not None else f"{'none':>12}"

    rows = [("clean", splice.clean, ""), ("SAE spliced in", splice.spliced, "")]
    rows += [("zero-ablated", splice.zero_ablated, share(splice.recovered_zero))]
    rows += [("mean-ablated", splice.mean_ablated, share(splice.recovered_mean))]
    head = f"{'cross-entropy, nats':24}{where:>12}{'recovered':>12}   ({splice.predictions:,} predictions)"
    lines = [head, *(f"{label:24}{value:12.4f}{extra}" for label, value, extra in rows)]
    return [*lines, f"{'KL(clean || spliced)':24}{splice.kl:12.4f}", *([splice.why] if splice.why else [])]

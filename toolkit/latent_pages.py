"""A page's worth of data on each latent of an SAE, written beside a run's result: latents/index.json and its chunks.

index.json has what the list of latents needs, a column a metric. A chunk has PER_CHUNK latents, in order: contexts in
which each is most active with its value on every token, its histogram, logit effects, nearest latents.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toolkit.latent_events import Events, company_rows, nearest_by_company, nearest_by_direction, read_events
from toolkit.latent_logits import STATED, LogitEffects
from toolkit.maps import umap_plane
from toolkit.sae import SAE, LoadedSAE

EVENTS = 2**24
"""Latents that are on in the rows that pages are drawn from, summed, at most: 12 bytes each."""
FOLDER = "latents"
"""In a run's folder."""
INDEX = "index.json"
"""In that."""
FORMAT = 1
"""Raised when the files change their meaning."""
PER_CHUNK = 200
"""Latents in a file."""
CONTEXTS = 10
"""Of each latent."""
NEAR = 8
"""Latents listed as nearest."""
TOKENS = 10
"""Whose logits a latent raises most, and as many that it lowers."""
MAPPED = range(256, 4096)
"""Numbers of latents of which UMAP draws the map; fewer, or more, which take it long, are drawn by components."""
_BEFORE, _AFTER = 10, 6
_SHOWN = 6
"""Different tokens in the list."""


@dataclass(frozen=True)
class Text:
    """Where each row that was read stands, in the order of the text."""

    documents: Int[np.ndarray, " rows"]
    """Ascending. A context does not leave its document."""
    positions: Int[np.ndarray, " rows"]
    """Place in the document."""
    tokens: Int[np.ndarray, " rows"]
    """Token ids."""
    held_out: Bool[np.ndarray, " rows"]
    """True where the SAE was not trained on it."""


class Vocabulary:
    """Texts of tokens, each decoded once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, ids: Iterable[int]) -> list[str]:
        """Texts as they are, unprintable characters too; a number where there is none."""
        return [self._known[i] if i in self._known else self._known.setdefault(i, self._text(i)) for i in ids]

    def _text(self, number: int) -> str:
        if self._tokenizer is None or number >= len(self._tokenizer):
            return f"#{number}"
        text, pieces = str(self._tokenizer.decode([number])), getattr(self._tokenizer, "convert_ids_to_tokens", None)
        piece = pieces(number) if pieces else None
        if isinstance(piece, str) and "\ufffd" in text:
            return piece  # part of a character: its name in the vocabulary, which is its own
        stripped = isinstance(piece, str) and piece.startswith("\u2581") and not text.startswith(" ")
        return " " + text if stripped else text


def write_latents(
    folder: Path,
    sae: SAE | LoadedSAE,
    x: Iterable[Float[Tensor, "_ d"]],
    text: Text,
    tokenizer: Any,
    effects: LogitEffects | None,
    *,
    seed: int,
) -> None:
    """Read rows once and write `folder` with an index and its chunks.

    Args:
        x: the rows of `text`, in pieces.
        effects: of the decoder rows, where they write to what the unembedding reads.

    Raises:
        OSError: the folder cannot be written.
    """
    events, decoder = read_events(sae, x), sae.W_dec[0].detach().float().cpu()
    direction, company = nearest_by_direction(decoder, NEAR), nearest_by_company(events, NEAR)
    vocabulary, histograms, width = Vocabulary(tokenizer), events.histograms(), len(decoder)
    folder.mkdir(exist_ok=True)
    shown: list[list[str]] = []
    for start in range(0, width, PER_CHUNK):
        latents = range(start, min(start + PER_CHUNK, width))
        contexts = _contexts(events, text, vocabulary, latents)
        chunk = [
            {
                "contexts": contexts[latent],
                "bars": histograms[latent].tolist(),
                "logits": _logits(effects, latent, vocabulary),
                "direction": _short(direction.of(latent)),
                "company": _short(company.of(latent, above=0.0)),
            }
            for latent in latents
        ]
        _save(folder / f"chunk-{start // PER_CHUNK:03d}.json", chunk)
        shown += [_distinct([one["tokens"][one["at"]] for one in contexts[latent]]) for latent in latents]
    plane, drawn = _plane(decoder, seed=seed)
    columns = {**_columns(events, effects), "cosine": direction.values[:, 0], "x": plane[:, 0], "y": plane[:, 1]}
    raised = [] if effects is None else [vocabulary(some) for some in effects.raised[:, :_SHOWN].tolist()]
    told = {"format": FORMAT, "width": width, "per_chunk": PER_CHUNK, "map": drawn}
    told |= {"rows": len(text.tokens), "held_out": int(text.held_out.sum()), "company_rows": company_rows(events)}
    told |= {"documents": len(np.unique(text.documents)), "logits": STATED if effects is not None else ""}
    _save(folder / INDEX, {**told, "columns": {k: _digits(v) for k, v in columns.items()}, "tokens": shown,
                           "raised": raised})  # fmt: skip


def _columns(events: Events, effects: LogitEffects | None) -> dict[str, Float[np.ndarray, " latents"]]:
    rows, counts = events.by_row.shape[0], events.counts
    found = {"density": counts / max(1, rows), "l0_share": counts / max(1, counts.sum())}
    found |= {"max": events.highest, "mean": events.sums / np.maximum(counts, 1), "fvu": events.fvu}
    return found | ({} if effects is None else {"kurtosis": effects.kurtosis.numpy()})


def _contexts(events: Events, text: Text, vocabulary: Vocabulary, latents: range) -> dict[int, list[dict[str, Any]]]:
    """The contexts in which each of some latents is most active."""
    tops = [events.top(latent, CONTEXTS) for latent in latents]
    rows = np.concatenate(tops)
    of = np.repeat(np.array(latents), [len(top) for top in tops])
    around = rows[:, None] + np.arange(-_BEFORE, _AFTER + 1)  # (contexts, places)
    inside = np.clip(around, 0, max(0, len(text.tokens) - 1))
    kept = (around == inside) & (text.documents[inside] == text.documents[rows][:, None])
    values = events.at(inside, np.broadcast_to(of[:, None], inside.shape))
    found: dict[int, list[dict[str, Any]]] = {latent: [] for latent in latents}
    for at, (row, latent) in enumerate(zip(rows.tolist(), of.tolist(), strict=True)):
        one: dict[str, Any] = {"document": int(text.documents[row]), "position": int(text.positions[row])}
        one |= {"held_out": bool(text.held_out[row]), "at": int(kept[at, :_BEFORE].sum())}
        one |= {"tokens": vocabulary(text.tokens[inside[at, kept[at]]].tolist())}
        found[latent].append(one | {"values": _digits(values[at, kept[at]], 3)})
    return found


def _logits(effects: LogitEffects | None, latent: int, vocabulary: Vocabulary) -> dict[str, list[Any]] | None:
    if effects is None:
        return None
    sides = {"raised": (effects.raised, effects.raised_by), "lowered": (effects.lowered, effects.lowered_by)}
    return {
        side: [list(pair) for pair in zip(vocabulary(ids[latent].tolist()), _digits(by[latent].numpy()), strict=True)]
        for side, (ids, by) in sides.items()
    }


def _plane(decoder: Float[Tensor, "latents d"], *, seed: int) -> tuple[Float[np.ndarray, "latents 2"], str]:
    """Places of decoder rows in a map, and how it was drawn."""
    if len(decoder) in MAPPED:
        return umap_plane(decoder, seed=seed).numpy(), "UMAP of decoder rows by cosine"
    unit = torch.nn.functional.normalize(decoder, dim=1)
    centred = unit - unit.mean(0)
    axes = torch.linalg.eigh(centred.mT @ centred).eigenvectors[:, -2:].flip(1)
    plane = torch.zeros(len(unit), 2)
    plane[:, : axes.shape[1]] = centred @ axes
    return plane.numpy(), "first principal components of decoder rows"


def _distinct(tokens: list[str]) -> list[str]:
    """Different tokens, the most active first."""
    return list(dict.fromkeys(tokens))[:_SHOWN]


def _digits(values: Float[np.ndarray, " some"], digits: int = 4) -> list[float | None]:
    """So many digits that count; None for what is no number."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.tolist()]


def _short(pairs: list[tuple[int, float]]) -> list[list[float]]:
    return [[number, float(f"{value:.3g}")] for number, value in pairs if np.isfinite(value)]


def _save(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, allow_nan=False, separators=(",", ":")), "utf-8")
    temporary.replace(path)

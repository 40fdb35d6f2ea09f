"""`--target embedding`: the rows of a model's token embedding, an SAE on them, one run folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit import corpora, figures
from toolkit.configs import EmbeddingConfig, to_dict
from toolkit.devices import progress_bar, resolve
from toolkit.errors import require
from toolkit.language import Embedding, load_embedding
from toolkit.latent_pages import EVENTS, FOLDER, Text, write_latents
from toolkit.logbook import logged
from toolkit.runs import Run, open_run, write_json, writing
from toolkit.sae import SAE, fit_sae
from toolkit.sae_scores import score_rows, typical_rows
from toolkit.targets import rows_target


@dataclass(frozen=True)
class Rows:
    """An embedding made ready to fit: rows = (raw - mean) * scale, raw being unit rows where asked for."""

    raw: Float[Tensor, "tokens d"]
    """What the saved SAE takes."""
    mean: Float[Tensor, " d"]
    """Subtracted from the raw rows; zeros without centring."""
    scale: float
    """Brings the training rows' mean square to d, as sae-lens's expected_average_only_in does for norms."""
    weights: Float[Tensor, " tokens"] | None
    """Probability of each token, or None for all alike."""
    train: Tensor
    """Indices of the tokens trained on."""
    held_out: Tensor
    """Indices of the others."""

    def ready(self, index: Tensor) -> Float[Tensor, "rows d"]:
        """Rows as the SAE sees them while training."""
        return (self.raw[index] - self.mean) * self.scale


def prepare(embedding: Embedding, config: EmbeddingConfig, *, seed: int) -> Rows:
    """Split, weigh, centre and scale the rows; the mean and scale come from the training tokens alone.

    Raises:
        UserError: the split leaves nothing to train on, or the rows are all alike.
    """
    raw = embedding.rows
    if config.unit_norm:
        raw = torch.nn.functional.normalize(raw, dim=1)
    order = torch.from_numpy(np.random.default_rng([seed, 4]).permutation(len(raw)))
    held_out = round(config.held_out * len(raw))
    require(held_out < len(raw), f"held_out={config.held_out} leaves none of the {len(raw)} tokens to train on")
    train = order[held_out:].sort().values
    weights = None
    if config.frequencies:
        require(embedding.tokenizer is not None, f"--frequencies needs a tokenizer, and {embedding.name} has none")
        weights = corpora.unigram(corpora.read_text(config.frequencies), embedding.tokenizer, len(raw))
    share = torch.ones(len(train)) if weights is None else weights[train]
    share = (share / share.sum())[:, None]
    mean = (share * raw[train]).sum(0) if config.centre else torch.zeros(raw.shape[1])
    square = (share * (raw[train] - mean).square()).sum().item()
    require(square > 0, f"every row of {embedding.name}'s embedding is the same: there is nothing to fit")
    return Rows(raw, mean, (raw.shape[1] / square) ** 0.5, weights, train, order[:held_out].sort().values)


def fit(settings: dict[str, Any]) -> None:
    """Load, train, measure, print and write the run folder."""
    options, config, run = (settings[key] for key in ("embedding", "sae", "run"))
    device = resolve(run.device)
    embedding = load_embedding(options.model, options.revision)
    rows = prepare(embedding, options, seed=run.seed)
    parts = {"embedding": to_dict(options), "sae": to_dict(config)}
    recorded = {"target": "embedding", **parts, "seed": run.seed, "device": device}
    folder = open_run(run.out, f"embedding-{Path(options.model).resolve().name}", recorded, resume=run.resume)
    weights = None if rows.weights is None else rows.weights[rows.train]
    target = rows_target(
        rows.ready(rows.train), weights=weights, seed=run.seed, name=f"the embedding of {options.model}"
    )
    bar = progress_bar(config.steps, "SAE", run.quiet)
    with writing(folder.folder), logged(run.log, folder) as watch, bar as progress:
        checkpoint = folder.checkpoint("sae")
        sae = fit_sae(
            target, config, seed=run.seed, device=device, progress=progress, checkpoint=checkpoint, watch=watch
        )
    raw_sae = sae.unscaled(rows.mean.to(device), rows.scale)
    measured = measure(raw_sae, rows)
    typical = typical_tokens(raw_sae, rows, embedding, measured["shares"], seed=run.seed)
    with writing(folder.folder):
        write_pages(folder, raw_sae, rows, embedding, measured["l0"], seed=run.seed)
    done = _write(folder, raw_sae, rows, measured, typical)
    print(table(embedding, rows, raw_sae, measured, typical))
    print(f"written: {done}")


def measure(sae: SAE, rows: Rows) -> dict[str, Any]:
    """FVU, L0 and dead latents on trained and held-out tokens; `shares`: how often each latent is active."""
    found: dict[str, Any] = {}
    for name, index in (("", rows.train), ("_held_out", rows.held_out)):
        weights = None if rows.weights is None else rows.weights[index]
        scores = score_rows(sae, [rows.raw[index]], weights)
        found |= {f"fvu{name}": scores.fvu, f"fvu_zero{name}": scores.fvu_zero}
        if weights is not None:
            found |= {f"fvu_weighted{name}": scores.fvu_weighted, f"fvu_zero_weighted{name}": scores.fvu_zero_weighted}
        found[f"l0{name}"] = scores.l0
        if index is rows.train:
            found["dead"] = (scores.counts == 0).float().mean().item()
            found["shares"] = scores.counts / len(index)
    if rows.weights is not None:
        found["effective_tokens"] = corpora.effective_size(rows.weights)
    return found


def typical_tokens(sae: SAE, rows: Rows, embedding: Embedding, shares: Tensor, *, seed: int) -> list[dict[str, Any]]:
    """For a sample of live latents, the ten tokens that activate each most."""
    return [
        {"latent": found.latent, "share": found.share, "tokens": [embedding.token(int(token)) for token in found.rows]}
        for found in typical_rows(sae, [rows.raw], shares, seed=seed)
    ]


def write_pages(folder: Run, sae: SAE, rows: Rows, embedding: Embedding, l0: float, *, seed: int) -> None:
    """Write what pages of single latents need into the run's folder: each token stands for itself, without context.

    Where codes are so dense that those of all tokens would not fit in memory, tokens drawn at random stand for them.
    """
    drawn = np.random.default_rng([seed, 6]).permutation(len(rows.raw))[: int(EVENTS / max(l0, 1))]
    some = np.sort(drawn)
    text = Text(some, np.zeros_like(some), some, np.isin(some, rows.held_out.numpy()))
    shown = rows.raw[torch.from_numpy(some)]
    write_latents(folder.folder / FOLDER, sae, [shown], text, embedding.tokenizer, None, seed=seed)


def _write(folder: Run, sae: SAE, rows: Rows, measured: dict[str, Any], typical: list[dict[str, Any]]) -> Path:
    shares = measured["shares"]
    with writing(folder.folder):
        figures.curves_figure({"SAE": sae.history}, folder.folder / "training.svg")
        figures.density_figure(shares, folder.folder / "density.svg")
        sae.save(folder.folder / "sae")
        write_json(folder.folder / "tokens.json", typical)
        tensors = {"mean": rows.mean, "train": rows.train, "held_out": rows.held_out, "share_active": shares}
        tensors |= {f"sae.{name}": value for name, value in sae.parameters.items()}
        numbers = {key: value for key, value in measured.items() if key != "shares"} | {"scale": rows.scale}
        return folder.finish(numbers, tensors, [])


def table(embedding: Embedding, rows: Rows, sae: SAE, measured: dict[str, Any], typical: list[dict[str, Any]]) -> str:
    """The scores and the sample of latents as text."""
    tokens, d = rows.raw.shape
    lines = [
        f"embedding of {embedding.name}: {tokens:,} tokens x {d}, {len(rows.train):,} trained on, "
        f"{len(rows.held_out):,} held out",
        f"{sae.config.architecture}, width {sae.config.width}, {sae.config.steps} steps of {sae.config.batch} rows",
        "",
        f"{'':24}{'trained on':>12}{'held out':>12}",
    ]
    names = [("FVU about the mean", "fvu{}"), ("FVU about zero", "fvu_zero{}"), ("L0", "l0{}")]
    if rows.weights is not None:
        names += [("  weighted, mean", "fvu_weighted{}"), ("  weighted, zero", "fvu_zero_weighted{}")]
    for label, key in names:
        cells = [measured[key.format(part)] for part in ("", "_held_out")]
        lines.append(f"{label:24}" + "".join(f"{cell:12.4f}" for cell in cells))
    lines += [f"{'dead latents':24}{measured['dead']:12.2%}", "", "latent  active on  most typical tokens"]
    for latent in typical:
        quoted = " ".join(json.dumps(token, ensure_ascii=False) for token in latent["tokens"])
        lines.append(f"{latent['latent']:6d}  {latent['share']:9.3%}  {quoted}")
    return "\n".join(lines)

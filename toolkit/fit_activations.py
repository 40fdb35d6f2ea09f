"""`--target activations`: a model's activations over a corpus, an SAE on them or a given one judged, one run folder."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit import figures
from toolkit.activation_report import Stream, measure, numbers, pieces, table, typical_tokens, write_pages
from toolkit.activations import Activations, harvest
from toolkit.configs import ActivationsConfig, RunConfig, SAEConfig, to_dict
from toolkit.corpora import documents
from toolkit.devices import progress_bar, resolve
from toolkit.errors import require
from toolkit.forward import check_hooks
from toolkit.language import LanguageModel, load_model
from toolkit.logbook import logged
from toolkit.processes import first_alone, joined_processes, rank, world
from toolkit.runs import Run, open_run, write_json, writing
from toolkit.sae import SAE, LoadedSAE, fit_sae, load_sae
from toolkit.sae_training import check_shares
from toolkit.splicing import splice_report
from toolkit.targets import mapped_target

SPLICED = 2**15
"""Tokens on which the model's own loss is measured at most: it is run four times over them."""
BATCH = 1024
"""Tokens at a time where it is: their logits, four times, are what takes the memory."""


def fit(settings: dict[str, Any]) -> None:
    """Harvest, train or load, measure, print and write the run folder; under torchrun the first process writes."""
    options, config, run = (settings[key] for key in ("activations", "sae", "run"))
    require(bool(options.corpus), "--corpus is missing: a text file, a folder, nltk:NAME or hf:NAME")
    device = resolve(run.device)
    with joined_processes(device):
        if not options.sae:
            check_shares(config)
        given = load_sae(options.sae, device=device) if options.sae else None
        hook, processing = _hook(options, given), given.processing if given is not None else {}
        with first_alone():  # the others find in the cache what the first has put there
            model, found = _harvested(options, run, hook, device, processing)
        options = replace(options, context=found.cutting.context)  # no more than the model reads
        stream = prepare(found, hook, 1.0 if given else options.held_out, seed=run.seed)
        if rank() > 0:
            if given is None:
                _trained(stream, hook, options, config, run, None)
            return
        if given is not None:
            _check_width(given, stream, hook)
        name = f"activations-{Path(options.model).resolve().name}-{hook}"
        folder = open_run(
            run.out, name, _recorded(options, hook, config, run, given, processing, found), resume=run.resume
        )
        with writing(folder.folder):
            sae = given if given is not None else _trained(stream, hook, options, config, run, folder)
    with writing(folder.folder):
        batches = found.batches(stream.judged.tolist(), batch=BATCH, places=SPLICED)
        with progress_bar(len(batches), "spliced", run.quiet) as progress:
            splice = splice_report(model, batches, hook, sae, mean=stream.mean, progress=progress)
    measured = measure(sae, stream)
    typical = typical_tokens(sae, stream, found, model.tokenizer, measured["shares"], seed=run.seed)
    with writing(folder.folder):
        write_pages(folder, sae, stream, found, model, hook, measured)
    done = _write(folder, sae, stream, found, {**measured, **numbers(splice)}, typical)
    print(table(found, hook, sae, stream, measured, splice, typical))
    print(f"activations: {found.cache.folder}" + (" (read, not computed)" if found.read else ""))
    print(f"written: {done}")


def _harvested(
    options: ActivationsConfig, run: RunConfig, hook: str, device: str, processing: dict[str, bool]
) -> tuple[LanguageModel, Activations]:
    """The model, and its activations at the hook over the corpus."""
    corpus = documents(options.corpus)
    model = load_model(options.model, revision=options.revision, device=device, **processing)
    check_hooks(model, [hook])
    found = harvest(
        model,
        corpus,
        [hook],
        context=options.context,
        batch=options.forward_batch,
        rows=options.rows,
        cache=Path(options.cache or Path(run.out) / "activations"),
        progress=partial(progress_bar, what="activations", quiet=run.quiet or rank() > 0),
    )
    return model, found


def _hook(options: ActivationsConfig, given: LoadedSAE | None) -> str:
    named = str(given.metadata.get("hook_name") or "") if given is not None else ""
    require(bool(options.hook or named), "--hook is missing: where to read, such as blocks.2.hook_resid_post")
    return options.hook or named


def _check_width(given: LoadedSAE, stream: Stream, hook: str) -> None:
    width, d = given.W_dec.shape[2], stream.raw.shape[1]
    require(width == d, f"the SAE {given.source} reads rows of {width} numbers, and {hook} holds {d}: it is another's")


def _recorded(
    options: ActivationsConfig,
    hook: str,
    config: SAEConfig,
    run: RunConfig,
    given: LoadedSAE | None,
    done: dict[str, bool],
    found: Activations,
) -> dict[str, Any]:
    """What decides the numbers: not where activations are kept, nor how an SAE would have been trained."""
    kept = {key: value for key, value in to_dict(options).items() if key != "cache"}
    sae = {"architecture": given.architecture, "width": given.W_dec.shape[1]} if given else to_dict(config)
    rows = {"hook": hook, "processing": sorted(done), "content": found.cache.folder.name}
    parts = {"activations": {**kept, **rows}, "sae": sae}
    shared = {"processes": world()} if world() > 1 else {}
    return {"target": "activations", **parts, "seed": run.seed, "device": resolve(run.device), **shared}


def prepare(found: Activations, hook: str, held_out: float, *, seed: int) -> Stream:
    """Split by documents, and find the mean and scale of the rows trained on.

    Raises:
        UserError: the split leaves no document to train on or to hold out, or the rows are all alike.
    """
    order = np.random.default_rng([seed, 4]).permutation(np.unique(found.documents))
    kept = max(round(held_out * len(order)), 1 if held_out > 0 else 0)
    require(
        kept < len(order) or held_out == 1,
        f"held_out={held_out} leaves none of the {len(order)} documents with text to train on: "
        "give a corpus of more documents, or --held-out 0, and losses are measured on documents trained on",
    )
    away = np.isin(found.documents, order[:kept])
    raw, train, held = found.rows(hook), np.flatnonzero(~away), np.flatnonzero(away)
    mean, square = moments(raw, train if len(train) else held)
    require(square > 0, f"every row at {hook} is the same: there is nothing to fit")
    judged = order[:kept] if kept else order
    return Stream(raw, mean, (raw.shape[1] / square) ** 0.5, train, held, judged)


def moments(raw: Float[np.ndarray, "rows d"], index: Int[np.ndarray, " some"]) -> tuple[Float[Tensor, " d"], float]:
    """Mean of some rows and their mean squared distance from it, in two passes, summed in double precision."""
    mean = sum((piece.double().sum(0) for piece in pieces(raw, index)), torch.zeros(raw.shape[1]).double()) / len(index)
    square = sum((piece.double() - mean).square().sum().item() for piece in pieces(raw, index)) / len(index)
    return mean.float(), square


def _trained(
    stream: Stream, hook: str, options: ActivationsConfig, config: SAEConfig, run: RunConfig, folder: Run | None
) -> SAE:
    """An SAE on the rows of the training documents, its mean and scale folded in; only one process has a folder."""
    name, device = f"{hook} of {options.model}", resolve(run.device)
    target = mapped_target(stream.raw, stream.train, mean=stream.mean, scale=stream.scale, seed=run.seed, name=name)
    checkpoint = folder.checkpoint("sae") if folder else None
    bar = progress_bar(config.steps, "SAE", run.quiet or folder is None)
    with logged(run.log, folder) as watch, bar as progress:
        sae = fit_sae(
            target, config, seed=run.seed, device=device, progress=progress, checkpoint=checkpoint, watch=watch
        )
    told = {"model_name": options.model, "hook_name": hook, "context_size": options.context}
    return replace(
        sae.unscaled(stream.mean.to(device), stream.scale),
        metadata={**told, "revision": options.revision, "dataset_path": options.corpus},
    )


def _write(
    folder: Run, sae: SAE | LoadedSAE, stream: Stream, found: Activations, measured: dict[str, Any], typical: list[Any]
) -> Path:
    shares = measured["shares"]
    with writing(folder.folder):
        figures.density_figure(shares, folder.folder / "density.svg")
        write_json(folder.folder / "tokens.json", typical)
        trained = np.unique(found.documents[stream.train])
        tensors = {"mean": stream.mean, "share_active": shares, "documents_trained_on": torch.from_numpy(trained)}
        if isinstance(sae, SAE):
            figures.curves_figure({"SAE": sae.history}, folder.folder / "training.svg")
            sae.save(folder.folder / "sae")
            tensors |= {f"sae.{name}": value for name, value in sae.parameters.items()}
        numbers = {key: value for key, value in measured.items() if key != "shares"}
        return folder.finish(numbers | {f"corpus_{k}": v for k, v in asdict(found.counted).items()}, tensors, [])

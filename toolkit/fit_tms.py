"""`--target tms`: toy models, their SAEs, the comparison with the truth, one run folder."""

import math
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from toolkit import figures, metrics, scoring
from toolkit.configs import PRESETS, SAEConfig, to_dict
from toolkit.devices import progress_bar, resolve
from toolkit.logbook import logged
from toolkit.metrics import Recovery
from toolkit.runs import Run, open_run, writing
from toolkit.sae import SAE, fit_sae
from toolkit.targets import tms_target
from toolkit.toy import TrainedToy, train

_SHOWN = 16
WHY = """Why these settings: at most one feature is on in most rows, so with k=1 the cheapest code gives each feature a
latent; twice as many latents as features, silent ones re-drawn at badly rebuilt rows, leave no feature without one;
tied, a re-drawn latent starts at full strength, while an untied encoder starts at a fifth and stays silent."""


def fit(settings: dict[str, Any]) -> None:
    """Train, score, print the table and write the run folder."""
    what, model, training, config, run = (settings[key] for key in ("what", "toy", "training", "sae", "run"))
    device = resolve(run.device)
    parts = {"toy": to_dict(model), "training": to_dict(training), "sae": to_dict(config)}
    recorded = {"target": "tms", **parts, "seed": run.seed, "device": device}
    folder = open_run(run.out, f"tms-{what.preset}", recorded, resume=run.resume)
    with writing(folder.folder), progress_bar(training.toy_steps, "toy models", run.quiet) as progress:
        toy = train(
            model, training, seed=run.seed, device=device, progress=progress, checkpoint=folder.checkpoint("toy")
        )
    target = tms_target(toy, seed=run.seed + 1)
    bar = progress_bar(config.steps, "SAEs", run.quiet)
    with writing(folder.folder), logged(run.log, folder) as watch, bar as progress:
        checkpoint = folder.checkpoint("sae")
        sae = fit_sae(
            target, config, seed=run.seed, device=device, progress=progress, checkpoint=checkpoint, watch=watch
        )
    scores = scoring.score(toy, sae, seed=run.seed)
    chances = scoring.chance(toy, sae, seed=run.seed)
    done = _write(folder, toy, sae, scores, chances)
    print(table(toy, scores, chances))
    print(_verdict(toy, config, scores))
    print(f"written: {done}")


def _write(folder: Run, toy: TrainedToy, sae: SAE, scores: list[Recovery], chances: list[Recovery]) -> Path:
    # An instance that represents no feature has no score, and comes last.
    best = max(range(len(scores)), key=lambda i: -1.0 if math.isnan(scores[i].signed_mcc) else scores[i].signed_mcc)
    with writing(folder.folder):
        figures.toy_figure(toy, folder.folder / "toy.svg")
        figures.sae_figure(toy, sae, folder.folder / "sae.svg")
        figures.curves_figure({"toy models": toy.history, "SAEs": sae.history}, folder.folder / "training.svg")
        sae.instance(best).save(folder.folder / "sae")
        tensors = {"toy.W": toy.W, "toy.b": toy.b, **{f"sae.{name}": value for name, value in sae.parameters.items()}}
        return folder.finish(run_metrics(toy, scores, chances, best), tensors, [])


def run_metrics(toy: TrainedToy, scores: list[Recovery], chances: list[Recovery], best: int) -> dict[str, Any]:
    """Every number of the run: a list over instances, then the best and the median, then chance."""
    lists: dict[str, list[float]] = {name: [asdict(s)[name] for s in scores] for name in asdict(scores[0])}
    lists |= {f"{name}_chance": [asdict(c)[name] for c in chances] for name in asdict(chances[0])}
    # Every toy sample is new, so what is measured is held out already; both names are kept for one reader.
    lists["fvu_held_out"] = lists["fvu"]
    lists["represented"] = [int(r) for r in toy.represented]
    lists["toy_loss"] = toy.loss.tolist()
    falling = ("fvu", "fvu_zero", "fvu_held_out", "l0", "dead", "shrinkage", "toy_loss")
    result: dict[str, Any] = dict(lists)
    for name, values in lists.items():
        known = [value for value in values if not math.isnan(value)] or [math.nan]
        result[f"{name}_best"] = min(known) if name.removesuffix("_chance") in falling else max(known)
        result[f"{name}_median"] = median(known)
    return result | {
        "feature_dimensionality": toy.feature_dimensionality.tolist(),
        "dimensions_per_feature": metrics.dimensions_per_feature(toy.W).tolist(),
        "geometry": [metrics.geometry(W.cpu()) for W in toy.W],
        "well_trained": toy.well_trained,
        "saved_instance": best,
    }


_HEAD = ("instance", "density", "loss", "repr.", "D_i", "geometry", "signed MCC", "recovered", "F1", "FVU", "L0",
         "dead", "shrinkage")  # fmt: skip


def table(toy: TrainedToy, scores: list[Recovery], chances: list[Recovery]) -> str:
    """The comparison with the truth as text: one line an instance, then medians and the chance level."""
    rows: list[tuple[str, ...]] = [_HEAD]
    for i in range(min(len(scores), _SHOWN)):
        rows.append((*_toy_cells(toy, i), *_score_cells(scores[i])))
    rows.append(("median", "", f"{toy.loss.median():.4g}", f"{toy.represented.median():g}", "", "", *_middle(scores)))
    rows.append(("chance", "", "", "", "", "", *_middle(chances)))
    widths = [max(len(row[c]) for row in rows) for c in range(len(_HEAD))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    lines.insert(len(lines) - 2, "-" * len(lines[0]))
    if len(scores) > _SHOWN:
        lines.append(f"({_SHOWN} of {len(scores)} instances shown; all are in result.json)")
    lines.append(
        "* not well trained: loss more than 10% above the best with the same density. Chance: random decoders."
    )
    return "\n".join(lines)


def _toy_cells(toy: TrainedToy, i: int) -> tuple[str, ...]:
    keep = metrics.represented(toy.W[i])
    dimensionality = toy.feature_dimensionality[i][keep]
    spread = f"{dimensionality.min():.3f}-{dimensionality.max():.3f}" if keep.any() else "none"
    named = metrics.geometry(toy.W[i].cpu())
    shape = " + ".join(f"{count} {name}" if count > 1 else name for name, count in list(named.items())[:3])
    chance = toy.model.density[i % len(toy.model.density)]
    mark = "" if toy.well_trained[i] else "*"
    return f"{i}{mark}", f"{chance:g}", f"{toy.loss[i]:.4g}", str(int(keep.sum())), spread, shape or "none"


def _score_cells(s: Recovery) -> tuple[str, ...]:
    return (f"{s.signed_mcc:.3f}", f"{s.recovered:g}", f"{s.f1:.3f}", f"{s.fvu:.4f}", f"{s.l0:.2f}", f"{s.dead:.0%}",
            f"{s.shrinkage:.3f}")  # fmt: skip


def _middle(scores: list[Recovery]) -> tuple[str, ...]:
    columns = {name: [asdict(s)[name] for s in scores] for name in asdict(scores[0])}
    known = {name: [value for value in column if not math.isnan(value)] for name, column in columns.items()}
    return _score_cells(Recovery(**{name: median(column or [math.nan]) for name, column in known.items()}))


def _verdict(toy: TrainedToy, config: SAEConfig, scores: list[Recovery]) -> str:
    good = [i for i, well in enumerate(toy.well_trained) if well]
    full = [i for i in good if scores[i].recovered == int(toy.represented[i]) > 0]
    line = (
        f"{config.architecture}{' tied' if config.tied else ''}{' with resampling' if config.resample else ''}, "
        f"width {config.width}, k {config.k:g}: all represented features recovered (signed cosine >= "
        f"{metrics.RECOVERED}) in {len(full)} of {len(good)} well-trained instances."
    )
    return f"{line}\n{WHY}" if config == PRESETS["pentagon"].sae else line

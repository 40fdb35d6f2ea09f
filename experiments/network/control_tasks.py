"""N1: parts of speech at every layer of a model: does a probe find them, or learn words by heart?"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from experiments.network.control_tasks_report import ARMS, summarise
from experiments.network.planted_words import plant_words
from experiments.network.words import lacking, read_words
from experiments.registry import Experiment, register
from toolkit.code_length import code_length
from toolkit.control_tasks import control_labels, selectivity
from toolkit.probe_base import Probe
from toolkit.probes import LinearProbe, LowRankProbe, MLPProbe


@dataclass(frozen=True)
class Settings:
    """Which words, which probes."""

    model: str = ""
    """tiny-gpt2, a folder or a hub name; empty: planted words in place of a model's."""
    corpus: str = ""
    """Universal Dependencies, a .conllu file or a folder of them."""
    replicates: int = 4
    """Parts of the corpus without a document in common, each with control tasks of its own: what intervals are over."""
    rows: int = 2000
    """Words in each part, up to whole documents."""
    words: int = 100
    """Of each document at most, up to whole sentences: many documents tell more than long ones."""
    layers: int = 4
    """Blocks read beside the embedding, evenly spaced, the last among them."""
    tasks: int = 2
    """Control tasks for the selectivity of a part."""
    coded: int = 1
    """Of these, control tasks whose labels are coded too."""
    rank: int = 4
    """Of the rank-limited probe; the linear one has the number of parts of speech less one, 16 of them here."""
    hidden: int = 64
    """Units of the MLP, half of tiny-gpt2's dimensions."""
    l2: float = 1e-4
    """Penalty of all three: about scikit-learn's default for 10,000 rows, so light that capacity tells."""
    coded_l2: float = 1e-2
    """Penalty of all three where labels are coded: the first blocks are small, and a light one would overfit them."""
    tolerance: float = 1e-4
    """Of all three: where the gradient's largest entry stops their fitting."""
    steps: int = 100
    """Of L-BFGS at most, for the two that are no convex programs."""
    signal: float = 1.0
    """Planted words only: norm of the direction of a part of speech, beside type vectors of norm 1."""
    device: str = "cpu"
    """Where probes are fitted: cpu, cuda, or auto for what there is."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """Every part of the corpus, of the model trained and before training."""
    return [{"arm": arm, "replicate": r} for r in range(settings.replicates) for arm in ARMS]


def probes(settings: Settings, l2: float) -> dict[str, Probe]:
    """The three families by name, with one penalty."""
    how: Any = {"l2": l2, "tolerance": settings.tolerance, "device": settings.device}
    return {
        "linear": LinearProbe(**how),
        "rank-limited": LowRankProbe(settings.rank, **how, max_steps=settings.steps),
        "MLP": MLPProbe(settings.hidden, **how, max_steps=settings.steps),
    }


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """MEASURES of the report by layer and probe; bits are a word. Arms have the same words and control tasks."""
    arm, part = cell["arm"], cell["replicate"]
    planted = not settings.model
    words = plant_words(arm, part, seed, signal=settings.signal) if planted else read_words(settings, arm, part, seed)
    y, of, draw = words.labels, words.documents, 997 * seed + part
    controls = control_labels(y, words.types, n=settings.coded, seed=draw)
    found = {"sizes": torch.tensor([len(y), *(len(set(each.tolist())) for each in (words.types, of, y))])}
    for depth, X in words.layers.items():
        for name, probe in probes(settings, settings.l2).items():
            with warnings.catch_warnings():  # `steps` is to end the fits that are no convex programs
                warnings.simplefilter("ignore", ConvergenceWarning)
                picked = selectivity(probe, X, y, tokens=words.types, groups=of, n=settings.tasks, seed=draw)
                coder = probes(settings, settings.coded_l2)[name]
                code = code_length(coder, X, y, groups=of, controls=controls, seed=draw)
            bits = [code.bits / len(y), code.control_bits.mean() / len(y), code.uniform_bits / len(y)]
            scores = [picked.accuracy, picked.control_accuracy, picked.ceiling, *bits]
            found[f"{depth}.{name}"] = torch.tensor(scores, dtype=torch.float64)
    return found


# Paper scale, GPT-2's size: 13 layers, 2 arms, 8 parts. Nine columns through MLPs: 9 * 256 * 785 weights * 8,000 rows
# * 6 FLOP * 200 steps * 3 folds = 5e13 a layer, half again for codes: 1.6e16 FLOP, 13 min at 20 TFLOP/s. Not run yet.
PAPER = Settings(replicates=8, rows=12_000, words=400, layers=12, hidden=256, tasks=8, steps=200, device="auto")
SMOKE = Settings(replicates=3, rank=2, hidden=32)
EXPERIMENT = register(
    Experiment(
        name="control-tasks",
        row="N1",
        question="Parts of speech at every layer: does a probe find them in the rows, or learn words by heart?",
        claim="linear probes are more selective than MLPs, rank-limited ones more than full ones; description length "
        "tells a trained model from a random one where accuracy does not",
        source="Hewitt and Liang 2019; Voita and Titov 2020",
        controls=(
            "control tasks: each word type gets a random label, drawn anew for each part of the corpus",
            "the same model before training: its own step 0, or its architecture's own initialisation",
        ),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2"), "paper": PAPER},
        seconds={"smoke": 20, "default": 500, "paper": 2400},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, signal=0.0),
        group="network",
        lacks=lambda settings: lacking(settings.corpus),
    )
)  # fmt: skip

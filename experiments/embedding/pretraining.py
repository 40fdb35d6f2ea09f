"""E5: does a model reduce the error of sparse codes of its embedding as it trains, by more than its spectrum does?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from experiments.embedding import coding
from experiments.embedding.checkpoints import lacking, steps, vocabulary_at
from experiments.embedding.pretraining_report import SOURCES, summarise
from experiments.registry import Experiment, register
from toolkit.devices import resolve
from toolkit.unigrams import model_unigram


@dataclass(frozen=True)
class Settings:
    """What is learned and coded at each checkpoint. Rows are centred at the mean of the training tokens."""

    model: str = ""
    """A folder with the embeddings of a pretraining, or a run on the hub whose revisions are its checkpoints; empty: a
    planted sequence from a Gaussian cloud to sparse rows of the same covariance."""
    frequencies: str = ""
    """Text that tokens are counted in; without it their frequencies are those in text that the last model writes."""
    null: str = ""
    """A null of controls.weights that takes each checkpoint's place."""
    replicates: int = 3
    """Splits of the tokens, each with first atoms and draws of the nulls of its own."""
    overcomplete: float = 4.0
    """Atoms for each dimension."""
    sparsity: float = 1 / 16
    """Atoms in a code for each dimension: 8 of tiny-gpt2's 128, 48 of GPT-2's 768."""
    epochs: int = 10
    """Passes over the training tokens."""
    coded: int = 4096
    """Held-out tokens coded, at most."""
    written: int = 64
    """Sequences of 128 tokens that the model writes for the frequencies."""
    device: str = "cpu"
    """Where dictionaries are learned: cpu, cuda, or auto for what there is."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """Every checkpoint and split, and the frequencies."""
    each = steps(settings.model)
    runs = [{"part": "codes", "step": step, "replicate": r} for step in each for r in range(settings.replicates)]
    return [*runs, {"part": "frequencies"}]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Squared errors of the held-out tokens under the name of what was coded; or the tokens' frequencies."""
    if cell["part"] == "frequencies":
        return {"weights": _weights(settings, seed)}
    seed = (997 * seed + cell["replicate"]) % 2**31
    tokens = vocabulary_at(settings, cell["step"], seed)
    d = tokens.rows.shape[1]
    n, k = round(settings.overcomplete * d), max(1, round(settings.sparsity * d))
    how: Any = {"n": n, "k": k, "epochs": settings.epochs, "seed": seed, "device": resolve(settings.device)}
    found: dict[str, Tensor] = {}
    for source in SOURCES:
        rows = coding.split_of(tokens, source, settings.coded, seed)
        atoms = coding.learned(rows.train, **how)
        found |= {f"errors.{source}": coding.pursued(rows.held_out, atoms, (k,))[:, 0], "tokens": rows.tokens}
        found[f"squares.{source}"] = coding.squares(rows.held_out)
        if source == "observed":
            found |= {"errors.components": coding.components(rows, (k,))[:, 0]}
            found["squares.components"] = coding.squares(rows.held_out)
    return found


def _weights(settings: Settings, seed: int) -> Tensor:
    weights = vocabulary_at(settings, steps(settings.model)[-1], seed).weights
    if weights is None:
        weights = model_unigram(settings.model, sequences=settings.written, length=128, seed=seed)
    return weights / weights.sum()


# Paper scale, a run of GPT-2's size (50,257 x 768): 13 checkpoints, 5 splits, 3 sources: 195 dictionaries of 3,072
# atoms, 10 passes each over 40,000 rows with k=48. On two cores a pass takes some 10 s (OMP with k=32 takes 6.6 s for
# all 50,257 rows), so 195 * 10 * 10 s = 5.4 h. On a GPU a pass is a product of 0.2 TFLOP and 48 rounds of updates in
# batches, taken as 1 s: 195 * 10 * 1 s = 33 min, and as much again for nulls, held-out codes and downloads.
SMOKE = Settings(replicates=4)
EXPERIMENT = register(
    Experiment(
        name="error-over-pretraining",
        row="E5",
        question="Is a model reducing the error of sparse codes of its token embedding as it trains?",
        claim="the error is lower after pretraining than before, by more than the change of the spectrum explains",
        source="question put by this project: the embedding over pretraining",
        controls=(
            "at every checkpoint the same on Gaussian rows of its mean and covariance, and on its columns shuffled",
            "principal components, as many as a code has atoms",
        ),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2", replicates=5),
                "paper": Settings(replicates=5, coded=8192, device="auto")},
        seconds={"smoke": 10, "default": 150, "paper": 4000},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, null="covariance_matched"),
        group="embedding",
        lacks=lambda settings: lacking(settings.model),
    )
)  # fmt: skip

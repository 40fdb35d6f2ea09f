"""E6: how much worse is a small GPT-2 with a frozen random embedding, at equal steps and at convergence?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.embedding.frozen_arms import trained_arms
from experiments.embedding.frozen_report import summarise
from experiments.embedding.texts import Text, read
from experiments.registry import Experiment, register
from toolkit.errors import check_types, require
from toolkit.pretrain_config import PretrainConfig
from toolkit.token_baselines import baselines


@dataclass(frozen=True)
class Settings:
    """The model, its text and its training, the same in every arm. Random rows have the norms of the learned ones."""

    model: str = ""
    """tiny-gpt2 or a folder, whose tokenizer is taken; empty: a planted language."""
    corpus: str = ""
    """Text, as toolkit.corpora.documents takes it."""
    learn: bool = True
    """Without, the learned arm is another frozen random embedding."""
    seeds: int = 4
    """Each with its own documents, order and weights, which all arms share."""
    tokens: int = 16_000
    """Training tokens: few, so that the validation loss stops falling within the steps there is time for."""
    held_out: int = 16_000
    """Validation tokens, of other documents."""
    layers: int = 2
    """Transformer blocks."""
    width: int = 64
    """Dimensions of an embedding row."""
    heads: int = 2
    """Attention heads."""
    context: int = 128
    """Tokens in a sequence."""
    batch: int = 8
    """Sequences a step."""
    steps: int = 400
    """Optimiser steps of every arm."""
    every: int = 25
    """Steps between two measurements of the validation loss."""
    lr: float = 4e-3
    """Peak learning rate: at the upper end of what tiny-gpt2's pilots found alike."""
    device: str = "cpu"
    """cpu, cuda, or auto for what there is."""

    def __post_init__(self) -> None:
        check_types(self)
        whole = self.every >= 1 and self.steps >= self.every and self.steps % self.every == 0
        require(whole, f"steps={self.steps} must be a multiple of every={self.every}: the last step is measured too")

    def training(self, text: Text, **changes: Any) -> PretrainConfig:
        """As toolkit.pretraining takes it."""
        sizes = {name: getattr(self, name) for name in ("layers", "width", "heads", "context", "batch", "steps", "lr")}
        return PretrainConfig(**sizes, vocabulary=text.vocabulary, checkpoints=2, **changes)


def cells(settings: Settings) -> list[dict[str, Any]]:
    """A seed with all its arms, of which the frozen ones need the embedding that the learned one ends with."""
    return [{"seed": s} for s in range(settings.seeds)]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """The curve of validation losses of each arm under its name, and what its embedding looks like."""
    seed = (997 * seed + cell["seed"]) % 2**31
    text = read(settings, settings.tokens, settings.held_out, seed)
    known = baselines(text.train, text.held_out, text.vocabulary)
    return {**trained_arms(settings, text, seed), "baselines": torch.tensor([known.unigram, known.bigram])}


# Paper scale: GPT-2's own size (124 M parameters), 6 arms of 3 seeds on 100 M tokens, 5 passes: with 6 FLOP a parameter
# and token 18 * 5e8 * 6 * 1.24e8 = 6.7e18 FLOP; at 40% of an H100's or H200's dense bfloat16 (989 TFLOP/s) 4.7 h.
# Validation on 1 M tokens every 475 of the 7,600 steps of 65,536 tokens adds a hundredth.
SMOKE = Settings(
    seeds=3,
    tokens=3_000,
    held_out=3_000,
    layers=1,
    width=24,
    heads=1,
    context=32,
    batch=8,
    steps=240,
    every=24,
    lr=2e-2,
)
EXPERIMENT = register(
    Experiment(
        name="frozen-embedding",
        row="E6",
        question="How much worse is a small GPT-2 whose token embedding is random and never trained?",
        claim="worse, at equal steps and at convergence; because the rows are random, not because they are fixed",
        source="question put by this project: a frozen random embedding",
        controls=(
            "frozen at the learned run's final embedding: freezing without randomness",
            "frozen random rows without a cosine bound; with the norms that rows start with; with an output of its own",
            "the unigram and the bigram of the training tokens",
        ),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2"),
                "paper": Settings(seeds=3, tokens=100_000_000, held_out=1_000_000, layers=12, width=768, heads=12,
                                  context=1024, batch=64, steps=7_600, every=475, lr=6e-4, device="auto")},
        seconds={"smoke": 20, "default": 391, "paper": 17_000},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, learn=False),
        group="embedding",
    )
)  # fmt: skip

"""Every setting of `python -m toolkit.pretrain`, as frozen dataclasses. Light to import: its --help reads only this."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from simple_parsing import field

from toolkit.errors import check_types, require
from toolkit.logbook import check_log

_LARGEST_SIZE = 2**31 - 1
_SIZES = ("layers", "width", "heads", "context", "vocabulary", "batch")


@dataclass(frozen=True)
class PretrainConfig:
    """A small GPT-2 and its training; the defaults are those of tiny-gpt2."""

    layers: int = 4
    """Transformer blocks."""
    width: int = 128
    """Dimensions of the residual stream and of an embedding row."""
    heads: int = 4
    """Attention heads a block; they must divide the width. Four of 32 dimensions each."""
    context: int = 256
    """Longest input, in tokens; a training sequence has one more, its last target."""
    vocabulary: int = 4096
    """Tokens of the byte-pair tokenizer trained on the corpus, <|endoftext|> and the 256 bytes among them."""
    batch: int = 16
    """Sequences in each step (of all processes together); 4,096 tokens: fewer lose speed, more lose steps."""
    epochs: float = 3.0
    """Passes over the training tokens: half an hour on two free cores for five million of them."""
    steps: int = 0
    """Optimiser steps in place of epochs; 0 takes the epochs."""
    lr: float = 3e-3
    """AdamW's peak learning rate: between 2e-3 and 4e-3, which 200 steps left within .03 nats of each other."""
    warmup: float = 0.02
    """Share of the steps in which the rate rises to its peak; a cosine takes it to a tenth from there."""
    weight_decay: float = 0.1
    """AdamW's decay of matrices; gains and biases have none. GPT-3's value."""
    validation: float = 0.05
    """Share of the text held out, in whole documents; one too large for what is left stays in training."""
    freeze_embedding: Literal["none", "random"] = "none"
    """random: rows drawn at random under a cosine bound, at the initial norms, never updated."""
    cosine_bound: float | None = None
    """Largest |cosine| of two random rows; by default the one at which 1 in 50 last draws is rejected (.39 here)."""
    checkpoints: int = 8
    """Embeddings kept and validations made: at step 0, at the last, and at halves, quarters, ... of the steps."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in _SIZES:
            _whole(name, getattr(self, name), least=1)
        _whole("steps", self.steps, least=0)
        _whole("checkpoints", self.checkpoints, least=2)
        require(
            self.width % self.heads == 0,
            f"width={self.width} is not divisible by heads={self.heads}: each head takes width / heads dimensions",
        )
        for name in ("epochs", "lr"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} must be a positive number, got {value}")
        require(0 <= self.warmup < 1, f"warmup is a share of the steps, in [0, 1), got {self.warmup}")
        require(0 <= self.weight_decay < math.inf, f"weight_decay must be zero or positive, got {self.weight_decay}")
        require(0 < self.validation < 1, f"validation is a share of the text, in (0, 1), got {self.validation}")
        require(self.vocabulary >= 257, f"vocabulary must hold 256 bytes and <|endoftext|>, got {self.vocabulary}")
        self._check_freeze()

    def _check_freeze(self) -> None:
        if self.cosine_bound is not None:
            require(0 < self.cosine_bound <= 1, f"cosine_bound must lie in (0, 1], got {self.cosine_bound}")
            require(
                self.freeze_embedding == "random",
                "cosine_bound belongs to freeze_embedding=random: leave it out or draw the rows at random",
            )


@dataclass(frozen=True)
class PretrainRun:
    """Where the text comes from, where the model goes, and what is trained of it."""

    corpus: tuple[str, ...] = ()
    """Text files, folders, nltk:NAME, hf:NAME: one or several."""
    licences: tuple[str, ...] = ()
    """A licence for each corpus, in their order, for the model's card."""
    out: str = ""
    """Folder that receives the model; it must not exist. Until it is whole it is called OUT.unfinished."""
    seed: int = 0
    """Every draw follows from it: the same seed gives the same numbers on the same machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes cuda where there is one."""
    keep_models: int = 3
    """Checkpoints kept as whole models: the first, the last, and others evenly between; of the rest the rows."""
    start: str = field(default="", alias="--from")
    """Model folder to go on from (--from); its tokenizer and sizes are taken, and the schedule starts anew."""
    norms_from: str = ""
    """Model folder whose rows' norms a frozen random embedding gets, in place of the initial ones."""
    randomise_rows: tuple[int, ...] = ()
    """Token ids whose rows are drawn anew at the same norm before training (with --from)."""
    train: Literal["all", "rows"] = "all"
    """rows: nothing but the rows of --randomise-rows moves."""
    resume: bool = False
    """Go on with OUT.unfinished from its last checkpoint; start where there is none."""
    quiet: bool = False
    """No progress bar."""
    log: Literal["none", "tensorboard", "wandb"] = "none"
    """Where losses also go: TensorBoard's files in the folder, or Weights & Biases; extra `logging`."""

    def __post_init__(self) -> None:
        check_types(self)
        check_log(self.log)
        _whole("seed", self.seed, least=0)
        _whole("keep_models", self.keep_models, least=1)
        if self.licences:
            require(
                len(self.licences) == len(self.corpus),
                f"--licences names {len(self.licences)} licences for {len(self.corpus)} corpora: give one for each",
            )
        if self.randomise_rows:
            require(bool(self.start), "--randomise-rows needs --from MODEL_FOLDER: the model whose rows are drawn anew")
        if self.train == "rows":
            require(bool(self.randomise_rows), "--train rows needs --randomise-rows: the token ids of the rows")


def log_grid(steps: int, count: int) -> tuple[int, ...]:
    """Step 0 and `count` - 1 steps that end at `steps`, each half of the next; fewer where halves coincide."""
    halves = {max(1, round(steps / 2**k)) for k in range(count - 1)}
    return (0, *sorted(halves))


def spread(steps: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` of the steps: the last, the first, and others evenly between."""
    if count >= len(steps):
        return tuple(steps)
    if count == 1:
        return (steps[-1],)
    return tuple(steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count))


def _whole(name: str, value: int, *, least: int) -> None:
    require(least <= value <= _LARGEST_SIZE, f"{name} must be a whole number of at least {least}, got {value}")

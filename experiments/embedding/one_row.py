"""E7: one row of a trained embedding is drawn anew; fine-tuned, how far does it come back, and to the same place?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.embedding.fine_tuning import ground, undisturbed
from experiments.embedding.one_row_report import summarise
from experiments.embedding.token_lessons import chosen_tokens, token_losses, windows_with, without
from experiments.registry import Experiment, register
from toolkit.devices import resolve
from toolkit.pretraining import pretrain, randomise_rows


@dataclass(frozen=True)
class Settings:
    """Which rows, and how they are fine-tuned."""

    model: str = ""
    """tiny-gpt2 or a folder; empty: a model of the planted language, trained at once."""
    corpus: str = ""
    """Text to fine-tune on, as toolkit.corpora.documents takes it."""
    withhold: bool = False
    """Take every text that a token occurs in away from its fine-tuning."""
    bands: int = 5
    """Of frequency, even in its logarithm."""
    tokens: int = 3
    """In each band."""
    starts: int = 2
    """Random rows that each is begun from."""
    steps: int = 50
    """Optimiser steps."""
    batch: int = 4
    """Sequences a step, as long as the model's context."""
    lr_rows: float = 1e-2
    """Peak learning rate where only the row is trained."""
    lr_all: float = 2e-3
    """Peak learning rate where the whole model is."""
    held_out: int = 200_000
    """Tokens of other documents, where the loss is measured."""
    measured: int = 16
    """Windows of these that hold the token, at most."""
    device: str = "cpu"
    """cpu, cuda, or auto for what there is."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """Every band with its tokens, in both ways, and the middle band's with their text withheld."""
    bands = [(band, settings.withhold) for band in range(settings.bands)] + [(settings.bands // 2, True)]
    parts = [{"band": b, "withheld": w, "token": t} for b, w in dict.fromkeys(bands) for t in range(settings.tokens)]
    return [{"train": train, **part} for train in ("all", "rows") for part in parts]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Rows (starts + 1, d), losses (starts + 1, 2: as input, as target), before and after; the first is not redrawn."""
    model, config, text = ground(settings, seed)
    token = int(chosen_tokens(text, settings.bands, settings.tokens, seed=seed)[cell["band"], cell["token"]])
    train, windows = text.train, windows_with(text.held_out, token, config.context, settings.measured)
    if cell["withheld"]:
        train = without(train, token, config.context)
    rows = [token] if cell["train"] == "rows" else None
    config = replace(config, lr=settings.lr_all if rows is None else settings.lr_rows)
    data, device = text.data(train, windows[0]), resolve(settings.device)
    seen: dict[str, list[Tensor]] = {"before": [], "after": [], "losses.before": [], "losses.after": []}
    for start in range(settings.starts + 1):
        begun = randomise_rows(model, [token], seed=(97 * seed + start) * 2**20 + token) if start else model
        if start or rows or cell["withheld"]:
            ended = pretrain(data, config, seed=seed, device=device, model=begun, only_rows=rows).model
        else:
            ended = undisturbed(settings, seed)
        for when, one in (("before", begun), ("after", ended)):
            seen[when].append(one.get_input_embeddings().weight[token].detach())
            seen[f"losses.{when}"].append(token_losses(one, windows, token, device))
    mean = model.get_input_embeddings().weight.detach().mean(0)
    counts = torch.tensor([int((stream == token).sum()) for stream in (train, text.held_out)])
    found = {name: torch.stack(each) for name, each in seen.items()}
    return {**found, "mean": mean, "counts": counts, "token": torch.tensor(token), "read": torch.tensor(len(train))}


# Paper scale, GPT-2 (124 M parameters) from a folder: 5 bands of 8 tokens and 8 withheld, 3 trainings each of the row,
# 144, and of the whole model 40 * 2 + 1 + 8 * 3 = 105: 249 of 200 steps of 8 * 1,024 tokens, 4.1e8 tokens. At 6 FLOP
# a parameter and token that is 3.0e17 FLOP; at 40% of an H100's or H200's dense bfloat16 (989 TFLOP/s) 13 min, and as
# much again for copies of the model, measured windows (576 * 32 * 1,024 tokens forward, in float32) and reading text.
SMOKE = Settings(bands=3, tokens=4, steps=80, batch=16, lr_rows=2e-2, lr_all=1.5e-2, held_out=20_000)
EXPERIMENT = register(
    Experiment(
        name="one-row",
        row="E7",
        question="One row of a trained embedding, drawn anew and fine-tuned: does it come back, and to the same place?",
        claim="it comes back towards where it was, further for frequent tokens, and from two starts to one place",
        source="question put by this project: one row at a time",
        controls=(
            "the same tokens with every text that holds them withheld: nothing pulls but the softmax",
            "fine-tuning the same without drawing the row anew",
            "the cosine of the random rows before they are fine-tuned",
        ),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2"),
                "paper": Settings(tokens=8, steps=200, batch=8, held_out=2_000_000, measured=32, device="auto")},
        seconds={"smoke": 40, "default": 480, "paper": 1_800},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, withhold=True),
        group="embedding",
    )
)  # fmt: skip

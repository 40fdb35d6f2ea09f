"""Training tokens a second of toolkit.pretraining, of the same model in a minimal loop, and what arithmetic allows."""

import time
from itertools import pairwise
from statistics import median

import torch

from benchmarks.timing import best_of, show
from toolkit.pretrain_config import PretrainConfig
from toolkit.pretrain_data import TokenData, batch_at
from toolkit.pretraining import initial_model, pretrain

ROUNDS = 3
STEPS = 8
CONFIG = PretrainConfig(steps=STEPS, checkpoints=2)


class _Tokenizer:
    eos_token_id = 0


def report() -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, CONFIG.vocabulary, (40 * CONFIG.batch * CONFIG.context,), generator=draw)
    data = TokenData(tokens, tokens[: CONFIG.context + 1], _Tokenizer(), ("none",), 1)
    rows = []
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        seconds: dict[str, list[float]] = {"minimal": [], "ours": []}
        for _ in range(ROUNDS):  # in turns, so that both meet the same neighbours
            seconds["minimal"] += minimal(data)
            seconds["ours"] += ours(data)
        rows.append(_row(threads, seconds, ceiling()))
    head = ("threads", "minimal loop", "ours", "ours / minimal", "median / median", "ceiling", "share of it")
    show(
        f"pretraining, tokens/s, {CONFIG.layers} x {CONFIG.width}, {CONFIG.vocabulary} tokens, batch 16 x 256",
        head,
        rows,
    )


def ours(data: TokenData) -> list[float]:
    """Seconds of each step."""
    clock = _Clock()
    pretrain(data, CONFIG, seed=0, progress=clock.tick)
    return clock.seconds


def minimal(data: TokenData) -> list[float]:
    """Seconds of each step of transformers' model and loss with torch's fused AdamW: nothing else."""
    model = initial_model(CONFIG, seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=CONFIG.lr, fused=True)
    clock = _Clock()
    for step in range(STEPS):
        batch = batch_at(data.train, CONFIG, seed=0, step=step)[:, :-1]
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        clock.tick(1)
    return clock.seconds


def ceiling() -> float:
    """Tokens a second if a step were its matrix products only, at the rate of a large square product."""
    size = 2048
    square = torch.randn(size, size)
    rate = 2 * size**3 / best_of(lambda: square @ square, repeats=5)
    blocks, head = 12 * CONFIG.layers * CONFIG.width**2, CONFIG.vocabulary * CONFIG.width
    # Scores and mixtures of values, each position with half the context on average.
    attention = CONFIG.layers * CONFIG.context * CONFIG.width
    # Two operations a weight forward, four backward (Kaplan et al. 2020, section 2.1).
    return rate / (6 * (blocks + head + attention))


def _row(threads: int, seconds: dict[str, list[float]], top: float) -> tuple[str, ...]:
    tokens = CONFIG.batch * CONFIG.context
    best = {name: tokens / min(each) for name, each in seconds.items()}
    middle = median(seconds["minimal"]) / median(seconds["ours"])
    return (
        str(threads), f"{best['minimal']:,.0f}", f"{best['ours']:,.0f}", f"{best['ours'] / best['minimal']:.2f}",
        f"{middle:.2f}", f"{top:,.0f}", f"{best['ours'] / top:.0%}",
    )  # fmt: skip


class _Clock:
    """Seconds between ticks: the first step, which warms up, is left out."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def tick(self, done: int) -> None:
        self.ticks.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [after - before for before, after in pairwise(self.ticks)]

"""What each command costs in time and memory at the sizes of GPT-2 small and Pythia-1.4B, from rates measured here.

Rates are measured on this machine by processor time, on the shapes of GPT-2 small; a cost is its count of
floating-point operations over the rate. The column of a GPU is computed from its data sheet: nothing ran there.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from controls.budgets import BUDGETS, Rates, duration, measured
from controls.reading import Reading
from toolkit.configs import SAEConfig
from toolkit.forward import forward_to
from toolkit.language import load_model
from toolkit.pretrain_config import PretrainConfig
from toolkit.pretrain_data import TokenData
from toolkit.pretraining import initial_model, pretrain
from toolkit.sae import fit_sae

LATENTS, K, BATCH, CONTEXT = 16_384, 32, 2_048, 256
"""Of the SAE, and tokens in a window."""
FORWARD, TRAINING = 4_096, 16
"""Tokens in a forward pass; windows in a step of pretraining."""
SPLICED, FEATURES = 2**15, 20
"""Tokens on which an SAE is spliced in; features of an audit."""
TOKENS = (100_000, 4_000_000)
"""Of text; between them costs grow in proportion, an audit's up to its budget."""
PEAK, PEAK_HALF, BANDWIDTH, USED = 19.5e12, 312e12, 1.555e12, 0.4
"""An A100's float32 and bfloat16 operations and bytes a second (its data sheet), and the share we count on."""
PASSES = 30
"""Times a dense SAE step on a GPU touches each of its batch x latents numbers."""
PROGRAM = 0.8e9
"""Bytes of a process with torch and numba in it, before any data."""


@dataclass(frozen=True)
class Size:
    """A language model, by what its costs depend on."""

    name: str
    d: int
    layers: int
    vocabulary: int
    tied: bool

    @property
    def table(self) -> int:
        """Weights of an embedding."""
        return self.vocabulary * self.d

    def blocks(self, layers: float) -> float:
        """Weights of so many blocks."""
        return 12 * layers * self.d**2

    @property
    def weights(self) -> float:
        """All of them, but for norms, biases and positions."""
        return self.blocks(self.layers) + self.table * (1 if self.tied else 2)

    def passed(self, layers: float, context: int = CONTEXT) -> float:
        """Operations a token takes through so many blocks: two a weight, and attention over half the context."""
        return 2 * (self.blocks(layers) + layers * context * self.d)

    @property
    def whole(self) -> float:
        """Operations of a forward pass to the logits."""
        return self.passed(self.layers) + 2 * self.table


SIZES = (Size("GPT-2 small", 768, 12, 50_257, True), Size("Pythia-1.4B", 2_048, 24, 50_304, False))
TRIED = Size("two blocks of GPT-2 small", 768, 2, 50_257, True)


@dataclass(frozen=True)
class Machine:
    """Operations a second of each kind of work."""

    sae: float
    """Of the encoder's product, counting all else that a topk step does as overhead."""
    forward: float
    """Of a forward pass."""
    training: float
    """Of a step of pretraining."""
    audit: Rates
    """On one thread, with two blocks of GPT-2 small, hook in the middle."""


def report() -> None:
    """Measure, and print the rates, the table and the formulas as Markdown."""
    began = _clock()
    machine = rates()
    print(f"measured in {_clock() - began:.0f} s on {torch.get_num_threads()} threads; operations a second:")
    print(f"topk step {machine.sae:.3g}, forward pass {machine.forward:.3g}, pretraining {machine.training:.3g}")
    a = machine.audit
    print(
        f"one thread: {a.rows:,.0f} rows read/s, {a.rest:,.0f} interventions/s, {a.draw:.2f} s to draw null networks\n"
    )
    print(table(machine))
    print(FORMULAS)


FORMULAS = f"""
Formulas. d numbers in a row, w = {LATENTS:,} latents, N tokens, L blocks, V vocabulary, c = {CONTEXT} the context, F
the measured operations a second. A pass to block b takes f(b) = 2 (12 b d^2 + b c d) a token. Harvest: N f(L/2) / F,
and 2 N d bytes on disk. SAE, one epoch: 2 d w N / F (what is sparse is in F), 16 bytes a weight (itself, its gradient,
two moments) and 4 x {BATCH:,} w. Splice: 4 (f(L) + 2 V d) min(N / 10, {SPLICED:,}) / F. Pretraining:
3 (f(L) + 2 V d) N / F, 16 bytes a weight and 4 (34 L d + 3 V) a token of a step of {TRAINING} windows. Audit:
`Rates.seconds` in controls/budgets.py; a null network is drawn in time proportional to d times its weights. A100: SAE
10 d w N operations and (28 x 2 d w / {BATCH:,} + {PASSES} x 4 w) N bytes; everything at {USED:.0%} of
{PEAK / 1e12:g} Tflop/s (pretraining, in bfloat16: of {PEAK_HALF / 1e12:g}) and of {BANDWIDTH / 1e12:g} TB/s. Memory
adds {PROGRAM / 1e9:g} GB for the program."""


def table(machine: Machine) -> str:
    """One line a command and size of text; for each model, time here, time on a GPU, and memory."""
    heads = [f"{size.name}: {what}" for size in SIZES for what in ("2 cores", "A100, computed", "memory")]
    lines = [" | ".join(["", "command", "tokens", *heads, ""]).strip(), "|---" * (len(heads) + 2) + "|"]
    for name, cost in COSTS.items():
        for tokens in TOKENS:
            cells = [cell for size in SIZES for cell in cost(size, tokens, machine)]
            lines.append(" | ".join(["", name, f"{tokens:,}", *cells, ""]).strip())
    return "\n".join(lines)


def _cells(here: float, there: float | None, memory: float) -> tuple[str, str, str]:
    return duration(here), "CPU only" if there is None else duration(there), f"{memory / 1e9:.1f} GB"


def harvest(size: Size, tokens: int, machine: Machine) -> tuple[str, str, str]:
    """`sae_fit --target activations`, first part: activations of the middle block."""
    work = tokens * size.passed(size.layers / 2)
    here, there, memory = _cells(work / machine.forward, work / (PEAK * USED), _loaded(size) + 60 * FORWARD * size.d)
    return here, there, f"{memory}, disk {2 * tokens * size.d / 1e9:.1f} GB"


def _loaded(size: Size) -> float:
    return PROGRAM + 4 * size.weights


def sae(size: Size, tokens: int, machine: Machine) -> tuple[str, str, str]:
    """`sae_fit --target activations`, second part: one epoch of a topk SAE."""
    weights = 2 * size.d * LATENTS
    moved = tokens * (28 * weights / BATCH + PASSES * 4 * LATENTS)
    there = (tokens * 5 * weights / PEAK + moved / BANDWIDTH) / USED
    memory = PROGRAM + 16 * weights + 4 * BATCH * (LATENTS + 8 * size.d)
    return _cells(tokens * weights / machine.sae, there, memory)


def splice(size: Size, tokens: int, machine: Machine) -> tuple[str, str, str]:
    """`sae_fit --target activations`, last part: the model's loss, clean, spliced and ablated twice."""
    work = 4 * min(tokens / 10, SPLICED) * size.whole
    memory = _loaded(size) + 8 * size.d * LATENTS + 1024 * 4 * (3 * size.vocabulary + LATENTS)
    return _cells(work / machine.forward, work / (PEAK * USED), memory)


def pretraining(size: Size, tokens: int, machine: Machine) -> tuple[str, str, str]:
    """`pretrain`, one epoch."""
    work = 3 * tokens * size.whole
    held = TRAINING * CONTEXT * 4 * (34 * size.layers * size.d + 3 * size.vocabulary)
    return _cells(work / machine.training, work / (PEAK_HALF * USED), PROGRAM + 16 * size.weights + held)


def audit(budget: str) -> Callable[[Size, int, Machine], tuple[str, str, str]]:
    """`controls audit`, at the middle block, on two workers."""

    def cost(size: Size, tokens: int, machine: Machine) -> tuple[str, str, str]:
        bought = BUDGETS[budget]
        asked: dict[str, Any] = {"features": FEATURES, "available": tokens, "workers": 2, "alpha": 0.05}
        seconds = scaled(machine.audit, size).seconds(bought, **asked)
        rows = 12 * min(bought.rows, tokens) * size.d
        return _cells(seconds, None, 2 * (PROGRAM + 8 * size.weights + rows))

    return cost


def scaled(rates: Rates, size: Size) -> Rates:
    """An audit's rates at another size: operations a token, a moved row, a drawn network; the hook in the middle."""
    half, tried = size.layers / 2, TRIED.layers / 2
    context = 64  # controls.reading.CONTEXT
    read = TRIED.passed(tried, context) / size.passed(half, context)
    rest = (TRIED.passed(tried, context) + 2 * TRIED.table) / (size.passed(half, context) + 2 * size.table)
    drawn = size.d * (size.blocks(half) + size.table) / (TRIED.d * (TRIED.blocks(tried) + TRIED.table))
    return Rates(rates.rows * read, rates.draw * drawn, rates.rest * rest, size.d)


COSTS: dict[str, Callable[[Size, int, Machine], tuple[str, str, str]]] = {
    "sae_fit: harvest": harvest,
    f"sae_fit: topk, {LATENTS:,} latents": sae,
    "sae_fit: splice": splice,
    "pretrain": pretraining,
    "audit, quick": audit("quick"),
    "audit, standard": audit("standard"),
}


def rates() -> Machine:
    """Measure all of it: about a minute."""
    config = PretrainConfig(layers=TRIED.layers, width=TRIED.d, heads=12, vocabulary=TRIED.vocabulary, batch=2,
                            steps=4, checkpoints=2)  # fmt: skip
    training = 3 * 2 * CONTEXT * TRIED.whole / _training(config)
    with tempfile.TemporaryDirectory() as folder:
        initial_model(config, seed=0).save_pretrained(folder)
        load_model().tokenizer.save_pretrained(folder)
        model = load_model(folder)
        tokens = torch.randint(4_096, (FORWARD // CONTEXT, CONTEXT), generator=torch.Generator().manual_seed(0))
        forward = forward_to(model, [f"blocks.{TRIED.layers - 1}.hook_resid_post"])
        seconds = _best(lambda: forward(tokens))
        return Machine(_sae(), FORWARD * TRIED.passed(TRIED.layers) / seconds, training, _audit(model, tokens))


def _clock() -> float:
    """Processor time over the threads: seconds as a quiet machine would give, where work is even on all threads."""
    return time.process_time() / torch.get_num_threads()


def _best(call: Callable[[], object]) -> float:
    call()
    found = []
    for _ in range(2):
        began = _clock()
        call()
        found.append(_clock() - began)
    return min(found)


def _sae() -> float:
    """Of steps of a topk SAE on Gaussian rows, at the size of GPT-2 small."""
    rows, d, ticks = 2 * BATCH, 768, []
    x = torch.randn(rows, d, generator=torch.Generator().manual_seed(0))
    # Every step goes by itself: a chunk of the progress bar would be a minute.
    for steps in (1, 3):
        began = _clock()
        fit_sae(x, SAEConfig(architecture="topk", width=LATENTS, k=K, batch=BATCH, steps=steps))
        ticks.append(_clock() - began)
    return 2 * 2 * d * LATENTS * BATCH / (ticks[1] - ticks[0])


def _training(config: PretrainConfig) -> float:
    """Seconds of a step, the first left out."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocabulary, (8 * config.batch * config.context,), generator=draw)
    data, ticks = TokenData(tokens, tokens[: config.context + 1], _Tokenizer(), ("none",), 1), list[float]()
    pretrain(data, config, seed=0, progress=lambda done: ticks.append(_clock()))
    return min(after - before for before, after in pairwise(ticks[:-1]))  # the last one has waited for validation


class _Tokenizer:
    eos_token_id = 0


def _audit(model: Any, tokens: torch.Tensor) -> Rates:
    windows = tokens[:, :64].contiguous()
    rows = torch.tensor([[s, p] for s in range(len(windows)) for p in range(1, 64)])
    nobody = np.zeros(len(rows), dtype=np.int64)
    wall, used = time.perf_counter(), time.process_time()
    found = measured(model, "blocks.0.hook_resid_post", Reading(windows, rows, nobody, nobody[:0], "tokens", None))
    share = min(1.0, (time.process_time() - used) / (time.perf_counter() - wall))  # of a core that was to be had
    return Rates(found.rows / share, found.draw * share, found.rest / share, found.width)

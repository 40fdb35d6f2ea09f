"""Activations moved in many directions, by many radii, at many positions: in one pass from the hook on, against one
whole forward pass with a hook a perturbation.

Ours are all rows of `Ground.divergences`, the clean prefix computed beforehand once (its seconds are told apart). The
others are timed on a subset, each run reading its sequence up to the moved position, the clean run free: by
transformer-lens (`run_with_hooks`, logits everywhere), and by the bare transformers module with a hook of torch's and
logits at the moved position alone, the least that a whole run can do. All give KL divergences, which are compared; the
bar is against the faster. Floors are the multiplications and additions that each way cannot do without,
at the rate of one large matrix product timed beside them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import ModuleList

from benchmarks.timing import best_of, show
from experiments.network.ground import Ground, divergence, ground
from experiments.network.subject import Subject
from toolkit.errors import require
from toolkit.plain_network import module_of, unwrapped

DIRECTIONS, RADII, PLACES = 16, (0.1, 0.3, 1.0, 3.0), 32
"""Of the perturbations: 2,048 rows; radii in typical distances of a row from the mean."""
PLAIN = 48
"""Of them run one by one."""
ROWS = 2_000
"""Rows of activations behind the covariance."""
BAR = 15.0
"""Times faster that ours is to be."""


@dataclass(frozen=True)
class Compared:
    """Both ways at one hook."""

    hook: str
    """Where rows are moved."""
    prefix: float
    """Seconds of the clean prefix of all places, once."""
    ours: float
    """Seconds a perturbation."""
    hooked: float
    """Seconds a perturbation by transformer-lens, one whole run each."""
    bare: float
    """The same by the bare module."""
    ours_flop: float
    """Multiplications and additions a perturbation: one token through the blocks after the hook."""
    whole_flop: float
    """The same of a whole run up to the position, on average, logits there alone."""
    apart: float
    """Largest difference of KL divergences, in nats."""
    largest: float
    """Largest KL divergence among those compared, in nats."""


def report(model: str | None) -> None:
    """Print a line a hook."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as cells of experiments have it
    try:
        rate = flop_rate()
        found = [compared(ground(*subject_at)) for subject_at in subjects(model or "")]
    finally:
        torch.set_num_threads(threads)
    rows: list[tuple[str, ...]] = [
        (c.hook, f"{c.hooked * 1e3:.2f}", f"{c.bare * 1e3:.2f}", f"{c.whole_flop / rate * 1e3:.2f}",
         f"{c.ours * 1e3:.3f}", f"{c.ours_flop / rate * 1e3:.3f}", f"{c.prefix:.2f}", f"{c.hooked / c.ours:.0f}",
         f"{c.bare / c.ours:.0f}", f"{c.apart:.0e}", f"{c.largest:.1g}") for c in found
    ]  # fmt: skip
    n = DIRECTIONS * len(RADII) * PLACES
    title = (
        f"{n:,} perturbations ({DIRECTIONS} directions, {len(RADII)} radii, {PLACES} positions), "
        f"{model or 'tiny-gpt2'}, one core; milliseconds each; floors at {rate / 1e9:.0f} Gflop/s; bar {BAR:.0f} times"
    )
    heads = ("hook", "with hooks", "bare", "floor of both", "ours", "its floor", "prefix, s, once", "times",
             "times bare", "KL differ by", "of up to")  # fmt: skip
    show(title, heads, rows)


def subjects(model: str) -> list[tuple[Subject, str]]:
    """After the first block, and after the last but one."""
    settings = Subject(model=model, layers=2, rows=ROWS, places=PLACES)
    return [(settings, at) for at in settings.at]


def compared(here: Ground) -> Compared:
    """All perturbations by us, some of them one by one."""
    moved = perturbed(here, seed=0)  # (ways, places, d)
    began = time.perf_counter()
    again = type(here.rest)(here.model, here.hook, here.rest.tokens, here.rest.places)
    prefix = time.perf_counter() - began
    require(again.is_cached, f"{here.model.name} is run whole for each row: there is nothing to compare")
    here.clean  # noqa: B018  # free on both sides
    seconds, ours = timed(lambda: here.divergences(moved))
    which = np.random.default_rng(0).permutation(ours.numel())[:PLAIN]
    pairs = [divmod(int(i), moved.shape[1]) for i in which]
    at = torch.tensor([place for _, place in pairs])
    runs = [timed(partial(one_by_one, run, moved, pairs)) for run in (Hooked(here), Bare(here))]
    mine = torch.stack([ours[pair] for pair in pairs])
    apart = max(float((divergence(here.clean[at], said) - mine).abs().max()) for _, said in runs)
    length = float(here.positions[at.numpy()].mean()) + 1
    head = 2.0 * here.x.shape[1] * here.model.vocabulary
    flop = block_flop(here, after=True) + head, length * block_flop(here, after=False) + head
    hooked, bare = (each / len(pairs) for each, _ in runs)
    return Compared(here.hook, prefix, seconds / ours.numel(), hooked, bare, *flop, apart, float(mine.max()))


def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """The lesser seconds of two calls after one that warms up, and what it gives."""
    kept: list[Tensor] = []
    seconds = best_of(lambda: kept.append(call()), repeats=2)
    return seconds, kept[-1]


def one_by_one(run: "Hooked", moved: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """Log-probabilities of perturbations (way, place)."""
    return torch.stack([run(moved[way, place], place) for way, place in pairs])


def perturbed(here: Ground, *, seed: int) -> Tensor:
    """Every place moved in random directions by every radius, (directions * radii, places, d)."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(DIRECTIONS, here.x.shape[1], generator=generator)
    u = u / u.norm(dim=1, keepdim=True) * float(here.covariance.trace().sqrt())
    steps = (torch.tensor(RADII)[:, None, None] * u).flatten(0, 1)  # (radii, directions, d) -> (ways, d)
    return here.x + steps[:, None]


class Hooked:
    """Log-probabilities at a place by a whole run of its sequence, with transformer-lens's hooks."""

    def __init__(self, here: Ground) -> None:
        """Of a network at a hook."""
        self.here = here

    @torch.no_grad()
    def __call__(self, row: Tensor, place: int) -> Tensor:
        """Where the row stands in for the activation of the place."""
        sequence, position = (int(n) for n in self.here.rest.places[place])

        def change(x: Tensor, hook: object) -> Tensor:
            x[0, position] = row
            return x

        tokens = self.here.rest.tokens[sequence : sequence + 1, : position + 1]
        return self._run(tokens, position, change)

    def _run(self, tokens: Tensor, position: int, change: Any) -> Tensor:
        logits: Any = self.here.model.bridge.run_with_hooks(tokens, fwd_hooks=[(self.here.hook, change)])
        said: Tensor = logits[0, position].log_softmax(0)
        return said


class Bare(Hooked):
    """The same by the module of transformers that holds the weights."""

    def __init__(self, here: Ground) -> None:
        """Of a network after a block."""
        super().__init__(here)
        bridge = here.model.bridge
        self.network = unwrapped(bridge.original_model)
        site = module_of(bridge, self.network, here.hook)
        require(site is not None and site[1] == "out", f"{here.model.name} has no module of its own at {here.hook}")
        assert site is not None
        self.module = self.network.get_submodule(site[0])

    def _run(self, tokens: Tensor, position: int, change: Any) -> Tensor:
        def after(_: object, args: object, output: Any) -> Any:
            return (change(output[0], None), *output[1:]) if isinstance(output, tuple) else change(output, None)

        handle = self.module.register_forward_hook(after)
        try:
            states = self.network(tokens, use_cache=False).last_hidden_state
        finally:
            handle.remove()
        said: Tensor = self.here.model.bridge.unembed(states[:, position])[0].log_softmax(0)
        return said


def block_flop(here: Ground, *, after: bool) -> float:
    """Two for each weight that a token is multiplied by in the blocks after the hook alone, or in all.

    Attention's own products are left out: a hundredth of that at these lengths.
    """
    network = unwrapped(here.model.bridge.original_model)
    blocks = max((module for module in network.modules() if isinstance(module, ModuleList)), key=len)
    first = int(here.hook.split(".")[1]) + 1 if after else 0
    return 2.0 * sum(p.numel() for block in list(blocks)[first:] for p in block.parameters() if p.ndim == 2)


def flop_rate() -> float:
    """Multiplications and additions a second of a matrix product of 2,048 a side."""
    A = torch.randn(2048, 2048)
    return 2 * 2048**3 / best_of(lambda: A @ A)

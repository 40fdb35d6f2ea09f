"""Weights changed, text and labels kept: the same labels, read in the same way from networks that never learned them.

The statistic is r, the held-out correlation of a label and its linear read-out (`controls.decoding`), at the same rows
of the same text. Labels stay what they are in the trained network, whoever named them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch

from controls.case import Case
from controls.model_weights import drawn_anew
from controls.outcomes import Outcome
from controls.registry import control
from controls.subject import as_float
from toolkit.errors import require
from toolkit.language import LanguageModel

R = "held-out r of label and linear read-out"
"""What all of them measure."""
LEVEL = 0.05
"""Below which a p-value is looked for."""
LOSS = "what a finder explains or how much loss it recovers says nothing of a random network, so neither is asked"
"""Why r is the statistic."""


@control(
    "weights.init",
    null="architecture, text and the label explain the score: the network as it begins",
    mind=f"tokens and places can be read from any network, and so can what they settle; {LOSS}",
    dear=True,
)
def init(case: Case) -> list[Outcome]:
    """Every weight by the architecture's own initialisation."""
    return _drawn(case, "weights.init", "init")


@control(
    "weights.gaussian",
    null="mean and variance of each matrix explain the score",
    mind=f"norms and biases stay trained; {LOSS}",
    dear=True,
)
def gaussian(case: Case) -> list[Outcome]:
    """Gaussian entries with each matrix's mean and variance, embeddings too."""
    return _drawn(case, "weights.gaussian", "gaussian")


@control(
    "weights.gaussian-kept",
    null="the trained embeddings, and mean and variance of every other matrix, explain the score",
    mind="what survives weights.gaussian and not this one is learned by the embeddings",
    dear=True,
)
def gaussian_kept(case: Case) -> list[Outcome]:
    """Gaussian entries but for the embeddings, which stay trained."""
    return _drawn(case, "weights.gaussian-kept", "gaussian", embeddings=False)


@control(
    "weights.shuffled",
    null="the values of each matrix's entries explain the score, wherever they stand",
    mind="norms and biases stay trained",
    dear=True,
)
def shuffled(case: Case) -> list[Outcome]:
    """The entries of each matrix in another order."""
    return _drawn(case, "weights.shuffled", "shuffled")


@control(
    "weights.spectrum",
    null="the singular values of each matrix explain the score",
    mind="norms and biases stay trained",
    dear=True,
)
def spectrum(case: Case) -> list[Outcome]:
    """Singular values kept, singular vectors Haar-random on both sides."""
    return _drawn(case, "weights.spectrum", "spectrum")


@control(
    "weights.spectrum-left",
    null="singular values and what each matrix reads explain the score",
    mind="an embedding keeps which tokens are alike: only its directions are drawn",
    dear=True,
)
def spectrum_left(case: Case) -> list[Outcome]:
    """Left singular vectors alone Haar-random: where each matrix writes."""
    return _drawn(case, "weights.spectrum-left", "spectrum", side="left")


@control(
    "weights.spectrum-right",
    null="singular values and where each matrix writes explain the score",
    mind="an embedding keeps the directions it uses and forgets which token has which",
    dear=True,
)
def spectrum_right(case: Case) -> list[Outcome]:
    """Right singular vectors alone Haar-random: what each matrix reads."""
    return _drawn(case, "weights.spectrum-right", "spectrum", side="right")


@control(
    "weights.spectrum-products",
    null="the singular values of each head's QK and OV products, and of every other matrix, explain the score",
    mind="norms and biases stay trained",
    dear=True,
)
def spectrum_products(case: Case) -> list[Outcome]:
    """Singular values of attention's products kept, singular vectors Haar-random."""
    return _drawn(case, "weights.spectrum-products", "spectrum", side="products")


@control(
    "weights.cascade",
    null="the blocks below those that are drawn explain the score",
    mind="a curve over depth rather than a test: its draws are not exchangeable with the trained network",
    dear=True,
)
def cascade(case: Case) -> list[Outcome]:
    """The top blocks up to the hook as at initialisation, one more at a time; embeddings stay trained.

    Raises:
        UserError: no block comes before the hook.
    """
    depths = cascade_depths(case)
    above = int(case.model.bridge.cfg.n_layers) - blocks_before(case.model, case.hook)
    seed = _seed(case, 0)
    networks = (drawn_anew(case.model, "cascade", seed=seed, blocks=above + depth) for depth in depths)
    drawn = f"{', '.join(map(str, depths))} of {depths[-1]}" if len(depths) > 1 else str(depths[0])
    note = f"a draw is a depth: top blocks up to the hook drawn, {drawn}; the rank is no test"
    found = against(case, "weights.cascade", networks, note=note)
    return [replace(outcome, is_test=False) for outcome in found]


def cascade_depths(case: Case) -> list[int]:
    """From one block to all before the hook; where these are more than `case.dear`, so many evenly spread, all last.

    Raises:
        UserError: no block comes before the hook.
    """
    blocks = blocks_before(case.model, case.hook)
    require(blocks > 0, f"no block comes before {case.hook}, so there is none to draw: leave weights.cascade out")
    return sorted({int(depth) for depth in np.linspace(blocks, 1, min(blocks, case.dear)).round()})


def blocks_before(model: LanguageModel, hook: str) -> int:
    """Blocks that a hook's activations depend on."""
    name, block, *inside = [*hook.split("."), ""]
    if name == "blocks":
        return int(block) + (inside[0] not in ("hook_resid_pre", "hook_in"))
    return int(model.bridge.cfg.n_layers) if name in ("ln_final", "unembed") else 0


def against(case: Case, name: str, networks: Iterable[LanguageModel], *, note: str) -> list[Outcome]:
    """r of every feature in the trained network against r in others: one pass of the text through each of them."""
    Y = as_float(case.subject.table[case.some])
    own = case.data_of_some.r(Y)
    nulls = torch.stack([case.fold(case.through(network)).r(Y) for network in networks]).numpy()  # (networks, features)
    return [
        Outcome(
            name,
            feature,
            R,
            float(own[f]),
            nulls[:, f].copy(),
            note="; ".join(filter(None, (note, _whose(case, feature)))),
        )
        for f, feature in enumerate(case.features())
    ]


def _whose(case: Case, feature: str) -> str:
    """What is said of a feature that is a function of the trained network's own activations."""
    finder = case.finders.get(case.subject.families.get(feature, ""))
    return "" if finder is None or finder.supervised else "read off these very activations: see finders.* too"


def _drawn(case: Case, name: str, kind: str, *, side: str = "both", embeddings: bool = True) -> list[Outcome]:
    floor = 1 / (1 + case.dear)
    note = f"{case.dear} networks: p is at least {floor:.2g}" if floor > LEVEL else ""
    return against(case, name, _networks(case, kind, side, embeddings), note=note)


def _networks(case: Case, kind: str, side: str, embeddings: bool) -> Iterator[LanguageModel]:
    for number in range(case.dear):
        seed = _seed(case, number)
        yield drawn_anew(case.model, kind, seed=seed, side=side, embeddings=embeddings, until=case.hook)


def _seed(case: Case, number: int) -> int:
    return int(np.random.default_rng([case.seed, 131, number]).integers(2**31))

"""Finders changed: dictionaries that learned nothing or half, another seed, the best of many directions."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from controls.best_directions import against_principal, against_random
from controls.case import Case
from controls.finders import Latents, refitted
from controls.outcomes import Outcome
from controls.refits import AGAIN, Sought, generators, half_of, overlaps, rows_of, sought
from controls.registry import control
from toolkit.errors import require
from toolkit.metrics import fvu, least_squares_gain, random_dictionary
from toolkit.sae import SAE
from toolkit.sae_training import fold_decoder_norm, initial_parameters, with_encoder
from toolkit.sparse_coding import omp_codes

REFITS = 3
"""Seeds that stability is averaged over."""
SCORED = 500
"""Rows at most that dictionaries are scored on, drawn at random."""
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of least-squares decoders, in units of a code's mean square."""
EXPLAINED = "share of variance explained in the other half of the documents"


@control(
    "finders.untrained",
    null="training explains no more variance than the SAE had at its start",
    mind="of SAEs; the same L0, as many latents as are live after training; a scalar brings each to the rows' scale",
    dear=True,
)
def untrained(case: Case) -> list[Outcome]:
    """SAEs of the same recipe before the first step, through their own encoders."""

    def share(sae: SAE, given: Parted) -> float:
        gain = least_squares_gain(given.learn, sae(given.learn[None])[0])
        return 1 - fvu(given.score, gain * sae(given.score[None])[0])

    return _of_encoders(case, "finders.untrained", 211, share, "both through their encoders")


@control(
    "finders.frozen-encoder",
    null="an encoder that learned nothing serves the decoder as well",
    mind="of SAEs; the same L0, as many latents as are live after training; decoders by least squares for both",
    dear=True,
)
def frozen_encoder(case: Case) -> list[Outcome]:
    """Encoders as they start, under decoders fitted to their latents."""

    def share(sae: SAE, given: Parted) -> float:
        return _decoded(sae.encode(given.learn[None])[0], sae.encode(given.score[None])[0], given)

    note = "least-squares decoders, for both the best of five penalties"
    return _of_encoders(case, "finders.frozen-encoder", 212, share, note)


@control(
    "finders.random-decoder",
    null="a dictionary of random directions explains as much",
    mind="codes of both by matching pursuit, with the same L0; as many directions as the trained one has live; on "
    "Gaussian rows a trained dictionary is a little better too",
    dear=True,
)
def random_decoder(case: Case) -> list[Outcome]:
    """Directions drawn uniformly."""
    return _of_dictionaries(
        case, "finders.random-decoder", 213, lambda n, rows, seed: random_dictionary(n, rows.shape[1], seed=seed)
    )


@control(
    "finders.random-decoder-covariance",
    null="a dictionary of directions drawn from the rows' covariance explains as much",
    mind="codes of both by matching pursuit, with the same L0; as many directions as the trained one has live; on "
    "Gaussian rows a trained dictionary is a little better too",
    dear=True,
)
def random_decoder_covariance(case: Case) -> list[Outcome]:
    """Directions of draws from N(0, covariance)."""
    return _of_dictionaries(
        case, "finders.random-decoder-covariance", 214, lambda n, rows, seed: like_rows(rows, n, seed=seed)
    )


@control(
    "finders.stability",
    null="seeds agree by chance: the overlap of random directions, about sqrt(2 ln n / d)",
    mind="uniform directions: where few directions hold the variance any two finders overlap more, see inputs.gaussian",
    dear=True,
)
def stability(case: Case) -> list[Outcome]:
    """Features found again from other seeds, against as many random directions."""
    rows, outcomes = rows_of(case), []
    for one in sought(case):
        found = _different([one.refit(rows, seed=seed) for _, seed in generators(case, 215, REFITS)])
        observed = np.mean([overlaps(one.directions, directions) for directions in found], 0)
        null = np.array([
            np.mean([overlaps(one.directions, _uniform(directions, rng)) for directions in found], 0)
            for rng, _ in generators(case, 216, case.draws)
        ])  # fmt: skip
        how = f"mean over {len(found)} seeds" if len(found) > 1 else "no seed changes what is found"
        note = f"{how}; chance {null.mean():.3f} for {len(found[0])} directions"
        outcomes += [
            Outcome("finders.stability", name, AGAIN, float(observed[place]), null[:, place], note=note)
            for place, name in enumerate(one.names)
        ]
    return outcomes


@control(
    "finders.pca",
    null="a single principal direction goes with the label as well",
    mind="the best of as many as the finder has, of a label as many as dimensions; null draws are r and its lead over "
    "the principal direction's in documents drawn with replacement; a latent goes with its own direction by the way it "
    "is defined; principal features are left out",
)
def pca(case: Case) -> list[Outcome]:
    """The best principal direction."""
    return against_principal(case, "finders.pca", 217)


@control(
    "finders.random-directions",
    null="a direction drawn from the rows' covariance goes with the label as well",
    mind="the best of as many as the finder has, of a label as many as dimensions; a feature that a finder named goes "
    "with its own direction by the way it is defined",
)
def random_directions(case: Case) -> list[Outcome]:
    """The best random direction."""
    return against_random(case, "finders.random-directions", 218)


def _uniform(like: Tensor, rng: np.random.Generator) -> Tensor:
    return random_dictionary(*like.shape, seed=int(rng.integers(2**31)))


@dataclass(frozen=True)
class Parted:
    """Rows of two halves of the documents, less the mean of the first."""

    one: Sought
    """The finder, to be trained on the first half."""
    learn: Float[Tensor, "learn d"]
    """Rows of the first half."""
    score: Float[Tensor, "score d"]
    """Rows of the second, SCORED at most."""
    seed: int
    """Of the training."""


def _parted(case: Case, number: int) -> list[Parted]:
    rows, half, found = rows_of(case), half_of(case), []
    learn, score = (torch.from_numpy(np.flatnonzero(half == part)) for part in (0, 1))
    for one in sought(case):
        rng, seed = next(generators(case, number, 1))
        some = score[torch.from_numpy(rng.permutation(len(score))[:SCORED])]
        mean = rows[learn].mean(0)
        found.append(Parted(one, rows[learn] - mean, rows[some] - mean, seed))
    return found


def _of_dictionaries(case: Case, name: str, number: int, draw: Callable[[int, Tensor, int], Tensor]) -> list[Outcome]:
    """A trained and random dictionaries, both with codes by pursuit."""
    outcomes = []
    for given in _parted(case, number):
        directions = given.one.refit(given.learn, seed=given.seed)
        observed, live = pursued(given, directions)
        count = max(live, given.one.l0)
        found = [
            pursued(given, draw(count, given.learn, seed)) for _, seed in generators(case, number + 10, case.draws)
        ]
        how = f"non-negative codes, L0 {given.one.l0}" if given.one.l0 else f"all {count} directions a row"
        note = f"{how}; live {live}, random {_range([n for _, n in found])}"
        null = np.array([share for share, _ in found])
        outcomes.append(Outcome(name, given.one.family, EXPLAINED, observed, null, note=note))
    return outcomes


def pursued(given: Parted, directions: Float[Tensor, "found d"]) -> tuple[float, int]:
    """The share of variance that matching pursuit explains on the rows to score, and how many directions it uses."""
    D = directions.detach().double().numpy()
    codes = omp_codes(given.score.double().numpy(), D, given.one.l0 or len(D), positive=given.one.l0 > 0).codes
    rebuilt = torch.from_numpy(codes @ D)
    return 1 - fvu(given.score.double(), rebuilt), len(np.unique(codes.indices[codes.data != 0]))


def _of_encoders(case: Case, name: str, number: int, share: Callable[[SAE, Parted], float], how: str) -> list[Outcome]:
    """A trained SAE and SAEs at their start, of as many latents as are live after training."""
    outcomes = []
    for given in _parted(case, number):
        if not isinstance(given.one.finder, Latents):
            continue
        trained = refitted(given.learn, given.one.finder.width, given.one.l0, seed=given.seed)
        live = _live(trained, given)
        starts = [
            at_start(trained, max(live, given.one.l0), seed=seed)
            for _, seed in generators(case, number + 10, case.draws)
        ]
        null = np.array([share(sae, given) for sae in starts])
        note = f"{how}; L0 {given.one.l0}; live {live}, untrained {_range([_live(sae, given) for sae in starts])}"
        outcomes.append(Outcome(name, given.one.family, EXPLAINED, share(trained, given), null, note=note))
    require(bool(outcomes), f"{name}: only an SAE has an encoder of its own: give --sae")
    return outcomes


def at_start(trained: SAE, width: int, *, seed: int) -> SAE:
    """An SAE of the same recipe and another width before its first step, with unit decoder rows."""
    config = replace(trained.config, width=width)
    start = initial_parameters(config, d=trained.W_dec.shape[-1], instances=1, seed=seed)
    return SAE(config, trained.target, fold_decoder_norm(with_encoder(start)), torch.zeros(0, 1))


def _live(sae: SAE, given: Parted) -> int:
    return int((sae.encode(given.score[None])[0] > 0).any(0).sum())


def _decoded(codes: Float[Tensor, "learn width"], scored: Float[Tensor, "score width"], given: Parted) -> float:
    """The share of variance that the best ridge decoder of PENALTIES explains."""
    mean = codes.mean(0)
    Z, held = (codes - mean).double(), (scored - mean).double()
    values, vectors = torch.linalg.eigh(Z.mT @ Z)
    cross, held = vectors.mT @ (Z.mT @ given.learn.double()), held @ vectors
    scale = float(values.mean().clamp(min=1e-30))
    fits = [held @ (cross / (values.clamp(min=0) + penalty * scale)[:, None]) for penalty in PENALTIES]
    return max(1 - fvu(given.score.double(), fit) for fit in fits)


def _different(found: list[Float[Tensor, "found d"]]) -> list[Float[Tensor, "found d"]]:
    """Without repetitions: of what no seed changes a mean over seeds scatters as one find does."""
    kept = list[Tensor]()
    for directions in found:
        if not any(torch.equal(directions, other) for other in kept):
            kept.append(directions)
    return kept


def like_rows(rows: Float[Tensor, "some d"], n: int, *, seed: int) -> Float[Tensor, "n d"]:
    """Unit vectors along draws from N(0, covariance of the rows)."""
    weights = np.random.default_rng(seed).standard_normal((n, len(rows)))
    drawn = torch.from_numpy(weights) @ (rows - rows.mean(0)).double()  # Gaussian sums of rows have their covariance
    return torch.nn.functional.normalize(drawn, dim=1).float()


def _range(counts: list[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"

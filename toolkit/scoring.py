"""SAEs on toy models against the truth, beside what a dictionary that learned nothing would score."""

from dataclasses import asdict, replace

import torch
from torch import Tensor

from toolkit import metrics
from toolkit.descent import EVALUATION
from toolkit.metrics import Recovery
from toolkit.sae import SAE
from toolkit.sae_training import calibrated_threshold
from toolkit.samplers import sample
from toolkit.toy import TrainedToy

ROWS = 8192
"""Fresh samples each score is measured on."""
DRAWS = 20
"""Random dictionaries a chance level is averaged over."""


def score(toy: TrainedToy, sae: SAE, *, seed: int) -> list[Recovery]:
    """Each instance's SAE against its toy model, on samples neither was trained on."""
    features, x = _fresh(toy, seed)
    return _compare(toy, sae, features, x)


def chance(toy: TrainedToy, sae: SAE, *, seed: int) -> list[Recovery]:
    """The same scores for random dictionaries, averaged over DRAWS.

    The architecture, width and budget are kept; the decoder is drawn from the sphere, the encoder is its transpose
    times the one gain that rebuilds x best.
    """
    features, x = _fresh(toy, seed)
    draws = [_compare(toy, _random(sae, x, seed * DRAWS + draw), features, x) for draw in range(DRAWS)]
    return [_mean([draw[i] for draw in draws]) for i in range(len(x))]


def _fresh(toy: TrainedToy, seed: int) -> tuple[Tensor, Tensor]:
    features = sample(toy.densities.to(toy.W.device), ROWS, seed=seed, step=EVALUATION + 1000)
    return features, toy.hidden(features)


def _compare(toy: TrainedToy, sae: SAE, features: Tensor, x: Tensor) -> list[Recovery]:
    latents = sae.encode(x)
    bias = sae.parameters["b_dec"]
    return [metrics.recovery(toy.W[i], features[i], x[i], latents[i], sae.W_dec[i], bias[i]) for i in range(len(x))]


def _random(sae: SAE, x: Tensor, seed: int) -> SAE:
    instances, width, d = sae.W_dec.shape
    decoder = torch.stack([metrics.random_dictionary(width, d, seed=seed * 10_007 + i) for i in range(instances)])
    decoder = decoder.to(x.device)
    zeros = {name: torch.zeros_like(value) for name, value in sae.parameters.items()}
    drawn = replace(sae, parameters={**zeros, "W_dec": decoder, "W_enc": decoder})
    if sae.config.architecture in ("batchtopk", "matryoshka"):
        drawn.parameters["threshold"] = calibrated_threshold(drawn.parameters, x, sae.config.k)
    rebuilt = drawn(x)
    gain = torch.tensor([metrics.least_squares_gain(x[i], rebuilt[i]) for i in range(instances)], device=x.device)
    scaled = {name: value * gain[:, None] for name, value in drawn.parameters.items() if name == "threshold"}
    return replace(drawn, parameters={**drawn.parameters, **scaled, "W_enc": decoder * gain[:, None, None]})


def _mean(draws: list[Recovery]) -> Recovery:
    return Recovery(**{name: sum(asdict(draw)[name] for draw in draws) / len(draws) for name in asdict(draws[0])})

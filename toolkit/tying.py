"""SAE variants by name on toy models, from any start, with what tells tied from untied ones apart."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit import metrics
from toolkit.configs import SAEConfig
from toolkit.sae import SAE, fit_sae
from toolkit.sae_losses import Parameters
from toolkit.sae_training import initial_parameters
from toolkit.samplers import sample
from toolkit.scoring import score
from toolkit.targets import tms_target
from toolkit.toy import TrainedToy

BUDGETS: dict[str, dict[str, float]] = {
    "l1": {"sparsity": 0.4},
    "topk": {},
    "batchtopk": {"k": 0.12},
    "jumprelu": {"sparsity": 0.2},
    "gated": {"sparsity": 1.0},
    "matryoshka": {"k": 0.16},
}
"""Penalty or budget of each architecture: the best of two to five tried on pentagons, with an SAE seed not reported."""
LIVE = 1e-3
"""A latent is live when it is on in more than this share of rows."""
DRAWS = 20
"""Random decoders a chance level is averaged over."""


@dataclass(frozen=True)
class StartFrom:
    """A checkpoint that holds given parameters at step 0 and keeps nothing."""

    parameters: Parameters
    """What training starts from."""

    def load(self) -> dict[str, Tensor]:
        """The state at step 0, Adam's moments zero."""
        latents = self.parameters["b_enc"]
        kept = {f"parameters.{name}": value for name, value in self.parameters.items()}
        kept |= {f"moments.{name}": torch.zeros(2, *value.shape) for name, value in self.parameters.items()}
        return {**kept, "silent": torch.zeros_like(latents, dtype=torch.int64), "history": torch.zeros(0, len(latents))}

    def save(self, state: Callable[[], dict[str, Tensor]]) -> None:
        """Nothing: the fit is short."""


def configured(name: str, base: SAEConfig, features: int) -> SAEConfig:
    """The configuration a name means: an architecture, then words; without words tied, resampled and twice as wide
    as there are features.

    untied; full: re-drawn latents' encoders as long as live ones; unsampled: no resampling; narrow: one latent a
    feature; apart, from-tied: how it starts, see `fit_variant`.
    """
    architecture, *words = name.split()
    return SAEConfig(
        **asdict(base)
        | {"architecture": architecture, "width": features * (1 if "narrow" in words else 2)}
        | {"tied": "untied" not in words, "resample": "unsampled" not in words}
        | {"resample_encoder": 1.0 if "full" in words else 0.2}
        | BUDGETS[architecture]
    )


def fit_variant(toy: TrainedToy, name: str, config: SAEConfig, *, seed: int) -> SAE:
    """Fit the SAEs; `apart` starts from an encoder that is not the decoder, `from-tied` from the fitted tied SAEs."""
    target, words = tms_target(toy, seed=seed + 1), name.split()
    if "apart" in words:
        start, other = (
            initial_parameters(config, d=target.d, instances=target.instances, seed=s) for s in (seed, seed + 1000)
        )
        return fit_sae(target, config, seed=seed, checkpoint=StartFrom({**start, "W_enc": other["W_dec"]}))
    if "from-tied" in words:
        tied = fit_sae(target, replace(config, tied=True), seed=seed)
        return fit_sae(target, config, seed=seed, checkpoint=StartFrom(tied.parameters))
    return fit_sae(target, config, seed=seed)


def random_toy(toy: TrainedToy, *, seed: int) -> TrainedToy:
    """The same features along random unit directions: a toy model that has learned nothing."""
    hidden, features = toy.W.shape[1:]
    draws = [metrics.random_dictionary(features, hidden, seed=(seed + 1) * 10_007 - 1 - i) for i in range(len(toy.W))]
    return replace(toy, W=torch.stack(draws).mT.contiguous())


def compared(toy: TrainedToy, sae: SAE, *, seed: int) -> dict[str, Float[Tensor, " instances"]]:
    """Each instance's recovery, the error it trained to, and how far its live latents read what they write."""
    scores = score(toy, sae, seed=seed)
    counts = [max(1, int(metrics.represented(W).sum())) for W in toy.W]
    fired = sae.encode(toy.hidden(sample(toy.densities, 4096, seed=seed, step=2**41))) > 0
    live = fired.float().mean(1) > LIVE  # (I, B, width) -> (I, width)
    cosine = torch.nn.functional.cosine_similarity(sae.parameters["W_enc"], sae.W_dec, dim=-1)
    return {
        "matching": torch.tensor([s.signed_mcc for s in scores]),
        "recovered": torch.tensor([s.recovered / count for s, count in zip(scores, counts, strict=True)]),
        "f1": torch.tensor([s.f1 for s in scores]),
        "shrinkage": torch.tensor([s.shrinkage for s in scores]),
        "error": sae.history[-len(sae.history) // 10 :].mean(0),
        "apart": ((cosine < 0.95) & live).sum(-1) / live.sum(-1).clamp(min=1),
        "live": live.float().mean(-1),
    }


def chance_matching(toy: TrainedToy, width: int, *, seed: int) -> dict[str, Float[Tensor, " instances"]]:
    """Matching and share recovered by random decoders of that width: `scoring.chance` for these two scores alone."""
    found = torch.zeros(2, len(toy.W), DRAWS)
    for i, W in enumerate(toy.W):
        directions = W[:, metrics.represented(W)].T
        for draw in range(DRAWS):
            decoder = metrics.random_dictionary(width, len(W), seed=seed * 10_007 + i * DRAWS + draw)
            cosines = metrics.signed_matching(directions, decoder).cosines
            found[:, i, draw] = torch.tensor([cosines.mean(), (cosines >= metrics.RECOVERED).float().mean()])
    return dict(zip(("matching", "recovered"), found.mean(-1), strict=True))

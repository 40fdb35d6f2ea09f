"""Sparse autoencoders whose directions are given and not learned: the encoder alone is trained."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.errors import require
from toolkit.sae import SAE, SAEConfig
from toolkit.sae_training import Trainer
from toolkit.targets import Target, rows_target


def fit_encoder(
    rows: Float[Tensor, "rows d"], directions: Float[Tensor, "width d"], config: SAEConfig, *, seed: int
) -> SAE:
    """Train encoder and biases of an SAE on rows, its decoder rows held at `directions`.

    As `toolkit.sae.fit_sae` but for the gradient of the decoder, which is dropped. The encoder starts at the
    directions, at length 1: a decoder that cannot grow needs latents of the rows' own size. The rows' mean and size are
    taken off before training and folded into the biases after it.

    Raises:
        UserError: directions of another number than the SAE's latents, or of another length than 1; a tied or a
            resampled SAE.
        DivergenceError: the loss stopped being finite.
    """
    shape = (config.width, rows.shape[1])
    require(tuple(directions.shape) == shape, f"directions must be {shape}, got {tuple(directions.shape)}")
    unit = bool((directions.norm(dim=1) - 1).abs().max() < 1e-4)
    require(unit, "directions must have length 1: a latent's value is what it writes")
    require(not config.tied, "a tied SAE has no encoder of its own: its directions cannot be held while it is trained")
    require(not config.resample, "resampling draws decoder rows anew, which are held here: leave it out")
    mean = rows.mean(0)
    scale = float((rows - mean).square().sum(1).mean().clamp(min=1e-30).rsqrt()) * rows.shape[1] ** 0.5
    trainer = _EncoderTrainer(rows_target((rows - mean) * scale, seed=seed), config, seed, directions)
    trainer.run(None, None)
    sae = SAE(config, trainer.target.name, trainer.fitted(), trainer.history).unscaled(mean, scale)
    sae.parameters["W_dec"] = directions[None].clone()  # as given, to the last digit
    return sae


class _EncoderTrainer(Trainer):
    """A trainer that leaves the decoder where it is."""

    def __init__(self, target: Target, config: SAEConfig, seed: int, directions: Tensor) -> None:
        super().__init__(target, config, seed, torch.device("cpu"))
        for name in ("W_dec", "W_enc"):
            self.parameters[name].copy_(directions[None])
        step = self.step_of

        def without_decoder(parameters: Any, grads: Any, *rest: Any) -> Any:
            done = step(parameters, grads, *rest)
            grads["W_dec"].zero_()  # Adam leaves a parameter whose gradient was always 0 where it is
            return done

        self.step_of = without_decoder

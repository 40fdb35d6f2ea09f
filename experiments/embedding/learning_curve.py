"""Validation loss at even steps of a training: toolkit.pretraining measures it on a log grid."""

from typing import Any

from jaxtyping import Int
from torch import Tensor

from toolkit.pretrain_config import PretrainConfig
from toolkit.pretraining import validation_loss


class LearningCurve:
    """Its `keep` and `progress` are given to `pretrain`; then `losses` are those at step 0, every, 2 every, ..."""

    def __init__(self, tokens: Int[Tensor, " tokens"], config: PretrainConfig, every: int, device: str) -> None:
        self.tokens, self.config, self.every, self.device = tokens, config, every, device
        self.losses: list[float] = []
        self._model: Any = None
        self._step = 0

    def keep(self, step: int, model: Any) -> None:
        """Take the model that is trained, at step 0."""
        if step == 0:
            self._model = model
            self._measure()

    def progress(self, done: int) -> None:
        """Count steps, and measure where it is time."""
        self._step += done
        if self._step % self.every == 0:
            self._measure()

    def _measure(self) -> None:
        sizes = self.config
        how: Any = {"context": sizes.context, "batch": sizes.batch, "device": self.device}
        self._model.eval()
        self.losses.append(validation_loss(self._model, self.tokens, **how))
        self._model.train()

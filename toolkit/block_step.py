"""A stretch of a language model as a function of single activations: from a hook to a later one at the same position.

```python
step = BlockStep(model, "blocks.1.hook_resid_post", "blocks.2.hook_resid_post", tokens, places)
step(step.activations, torch.arange(len(places)))       # what the later hook holds there, (places, d)
```

Earlier positions stay as they are; what a change does to later positions is not seen.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.cached_rest import CachedRest, checked_places
from toolkit.errors import require
from toolkit.interventions import record
from toolkit.language import LanguageModel
from toolkit.plain_network import module_of, unwrapped

AGREEMENT = 1e-3
"""How far the step may lie from what the model holds at the later hook, over the largest of it."""
_AT_ONCE = 16
"""Sequences run together."""
_TRIED = 4
"""Places at which both are compared."""


class BlockStep:
    """From a hook to a later one, each row in its own context; differentiable by the activations.

    Attributes:
        activations: (places, d), as the model has them at the first hook.
        reached: (places, d), as the model has them at the later one.
    """

    def __init__(
        self,
        model: LanguageModel,
        hook: str,
        later: str,
        tokens: Int[Tensor, "sequences positions"],
        places: Int[Tensor, "places 2"],
    ) -> None:
        """Run the sequences once.

        Args:
            later: a hook that the model passes after `hook`.
            tokens: padding on the right.
            places: sequence and position of each activation.

        Raises:
            UserError: what `toolkit.interventions.record` refuses; a model whose modules cannot be run from a hook on,
                hooks in the wrong order, places that the sequences do not have.
        """
        model.check_tokens(tokens)
        places = checked_places(tokens, places)
        hooks = [hook, later]
        parts = [[record(model, some, hooks)[name] for name in hooks] for some in tokens.split(_AT_ONCE)]
        sequence, position = places.T
        self.activations, self.reached = (torch.cat(each)[sequence, position] for each in zip(*parts, strict=True))
        self._rest = CachedRest.of(model, hook, tokens, places)
        self._site = module_of(model.bridge, unwrapped(model.bridge.original_model), later)
        require(
            self._agrees(),
            f"{model.name} cannot be run from {hook} to {later} alone: choose hooks of the residual stream, the later "
            "one second",
        )

    def __call__(self, activations: Float[Tensor, "rows d"], at: Int[Tensor, " rows"]) -> Float[Tensor, "rows d_later"]:
        """What the later hook holds where row i stands in for the activation of place at[i]."""
        assert self._rest is not None
        assert self._site is not None
        return self._rest.until(self._site, activations, at).to(activations.device)

    @torch.no_grad()
    def _agrees(self) -> bool:
        """Whether it holds at some places what the model does."""
        if self._rest is None or self._site is None:
            return False
        at = torch.arange(min(_TRIED, len(self.reached)))
        try:
            away = (self(self.activations[at], at) - self.reached[at]).abs().max()
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError):
            return False
        return bool(away <= AGREEMENT * self.reached.abs().max())

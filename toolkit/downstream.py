"""The rest of a network, from activations of one hook to its outputs: what interventions are measured on.

```python
rest = LanguageDownstream(model, "blocks.2.hook_resid_post", tokens, places)   # places (n, 2): sequence, position
rest(rest.activations + 0.1 * direction, torch.arange(n))                      # log-probabilities (n, vocabulary)
```
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit import mid_stream
from toolkit.cached_rest import CachedRest, checked_places
from toolkit.interventions import record
from toolkit.language import LanguageModel

AGREEMENT = 1e-3
"""How far log-probabilities computed from the hook on may lie from those of whole runs, in nats."""
_AT_ONCE = 16
"""Sequences run together: each position has a vocabulary of logits."""
_TRIED = 4
"""Places at which both are compared."""


@runtime_checkable
class Downstream(Protocol):
    """What a network computes from activations, each row in its own context.

    Deterministic, and differentiable by the activations.
    """

    def __call__(self, activations: Float[Tensor, "rows d"], at: Int[Tensor, " rows"]) -> Float[Tensor, "rows outputs"]:
        """Outputs where row i stands in for the activation of place at[i].

        Outputs are log-probabilities of the next token for a language model, and whatever it computes for another
        network. Places may repeat: many changes of one activation are many rows. Callers keep blocks of rows small.
        """
        ...


class LanguageDownstream:
    """A language model from one hook on: the next token's log-probabilities where one activation is another.

    What comes before, and the keys and values that earlier positions leave, is computed once; a row then costs one
    token through the blocks from the hook on. Where the model's modules cannot be run so (which is tried out at once),
    the whole sequence is run again for each row.

    Attributes:
        activations: (places, d), as the model has them.
        is_cached: whether rows start at the hook.
    """

    def __init__(
        self,
        model: LanguageModel,
        hook: str,
        tokens: Int[Tensor, "sequences positions"],
        places: Int[Tensor, "places 2"],
        *,
        activations: Float[Tensor, "places d"] | None = None,
    ) -> None:
        """Run the sequences once.

        Args:
            tokens: padding on the right; on any device, as places.
            places: sequence and position of each activation.
            activations: what the hook holds there, heads flattened, where that is known; else it is read.

        Raises:
            UserError: what `toolkit.interventions.record` refuses, places that the sequences do not have.
        """
        model.check_tokens(tokens)
        model.check_hook(hook)
        places = checked_places(tokens, places)
        self.model, self.hook, self.tokens, self.places = model, hook, tokens, places
        self._shape = record(model, tokens[:1, :1], [hook])[hook].shape[2:]
        if activations is None:
            parts = [record(model, some, [hook])[hook].flatten(2) for some in tokens.split(_AT_ONCE)]
            activations = torch.cat(parts)[self.places[:, 0], self.places[:, 1]]  # (places, heads * d)
        self.activations = activations
        self._rest = None if hook.endswith(mid_stream.HOOK) else CachedRest.of(model, hook, tokens, self.places)
        self.is_cached = self._rest is not None and self._agrees()
        if not self.is_cached:
            self._rest = None

    def __call__(self, activations: Float[Tensor, "rows d"], at: Int[Tensor, " rows"]) -> Float[Tensor, "rows outputs"]:
        """As `Downstream` has it; outputs are log-probabilities of the vocabulary."""
        if self._rest is not None:
            logits = self._rest(activations, at)
        else:
            parts = zip(activations.split(_AT_ONCE), at.split(_AT_ONCE), strict=True)
            logits = torch.cat([self._whole(rows, places) for rows, places in parts])
        return logits.log_softmax(1).to(activations.device)

    @torch.no_grad()
    def _agrees(self) -> bool:
        """Whether both ways say the same of activations moved by half their own spread."""
        at = torch.linspace(0, len(self.places) - 1, min(_TRIED, len(self.places))).long()
        moved = self.activations[at] + 0.5 * self.activations[at].std() * torch.sign(self.activations[at].roll(1, 1))
        assert self._rest is not None
        try:
            cached = self._rest(moved, at).log_softmax(1)
        except (AttributeError, TypeError, ValueError, RuntimeError, KeyError, IndexError):
            return False
        return bool((cached - self._whole(moved, at).log_softmax(1)).abs().max() <= AGREEMENT)

    def _whole(self, activations: Tensor, at: Tensor) -> Tensor:
        """Logits by running each row's sequence up to its position, activation replaced."""
        sequence, position = self.places[at.cpu()].T
        length = int(position.max()) + 1
        rows = torch.arange(len(at))

        def change(value: Tensor, hook: object) -> Tensor:
            changed = value.clone()
            changed[rows, position] = activations.reshape(-1, *self._shape).to(value)  # (rows, [heads,] d)
            return changed

        if self.hook.endswith(mid_stream.HOOK):
            parts = mid_stream.carried(self.hook, change)
            hooks = [parts.at_output, parts.at_input, parts.at_mlp]
        else:
            hooks = [(self.hook, change)]
        tokens = self.tokens[sequence, :length].to(self.model.device)
        logits: Tensor = self.model.bridge.run_with_hooks(tokens, fwd_hooks=hooks)
        return logits[rows, position]

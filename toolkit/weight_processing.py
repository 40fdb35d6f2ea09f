"""Weights of a language model changed so that its predictions stay: folded and centred, by TransformerBridge."""

from typing import Any

import torch

from toolkit.errors import require

FOLD_LAYER_NORM = "fold_layer_norm"
"""Layer norm's weight and bias move into the matrices that read its output."""
CENTRE_WRITING = "centre_writing_weights"
"""The mean over d is taken from every matrix that writes to the residual stream."""
CENTRE_UNEMBED = "centre_unembed"
"""The mean over tokens is taken from the unembedding."""
FOLD_VALUE_BIASES = "fold_value_biases"
"""Attention's value biases move into its output bias."""
CHANGED = 1e-2
"""Nats by which a log-probability may move: rounding to float32 moves it less, a wrong fold far more."""


def process_weights(model: str, bridge: Any, processing: tuple[str, ...]) -> None:
    """Change a bridge's weights in place by the named ways, and check that its predictions stay what they were.

    Raises:
        UserError: the bridge cannot do one of them for this architecture, or predictions moved.
    """
    for name in processing:
        why = _impossible(name, bridge)
        require(why is None, f"{name}: not for {model}, {why}; leave it out")
    probe = torch.arange(min(16, bridge.cfg.n_ctx), device=bridge.cfg.device)[None] % bridge.cfg.d_vocab
    with torch.no_grad():
        before = bridge(probe).log_softmax(-1)
        bridge.process_weights(
            fold_ln=FOLD_LAYER_NORM in processing,
            center_writing_weights=CENTRE_WRITING in processing,
            center_unembed=CENTRE_UNEMBED in processing,
            fold_value_biases=FOLD_VALUE_BIASES in processing,
        )
        moved = (bridge(probe).log_softmax(-1) - before).abs().max().item()
    require(
        moved <= CHANGED,
        f"{', '.join(processing)}: not for {model}, whose log-probabilities it moves by {moved:.2g}; leave it out",
    )


def _impossible(name: str, bridge: Any) -> str | None:
    """Why the bridge cannot process the weights of this architecture so; None where it can."""
    config, adapter = bridge.cfg, bridge.adapter
    norm, kind = getattr(config, "normalization_type", None), type(adapter).__name__
    if name == FOLD_LAYER_NORM and not getattr(adapter, "supports_fold_ln", True):
        return f"whose layer norms TransformerBridge cannot fold ({kind})"
    if name == FOLD_LAYER_NORM and norm not in ("LN", "LNPre", "RMS", "RMSPre"):
        return f"whose norm is {norm}, not a layer norm or RMS norm"
    if name == CENTRE_WRITING:
        if not getattr(adapter, "supports_center_writing_weights", True):
            return f"whose writing weights TransformerBridge cannot centre ({kind})"
        if norm not in ("LN", "LNPre") or getattr(config, "final_rms", False):
            return f"whose norm is {norm}: only layer norm removes the mean again"
    if name == CENTRE_UNEMBED and (getattr(config, "output_logits_soft_cap", None) or 0) > 0:
        return "whose logits are capped, so that a common shift changes them"
    return None

"""The matrices of a language model, each as the map it is, and a copy of the model in which they may be rewritten."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.errors import require
from toolkit.language import LanguageModel

EMBEDDINGS = ("embed", "pos_embed", "unembed")
"""Parts that are embeddings; the unembedding is among them whether tied or not."""
READING = ("attn.q", "attn.k", "attn.v", "mlp.in", "mlp.gate", "unembed")
"""Parts whose input is the residual stream, behind a norm."""
WRITING = ("embed", "pos_embed", "attn.o", "mlp.out")
"""Parts whose output is added to the residual stream."""


@dataclass(frozen=True)
class Matrix:
    """One matrix of a network."""

    part: str
    """What it is in its block (`attn.q`, `mlp.out`) or in the network (`embed`), by the bridge's names."""
    name: str
    """The part with its block before it: `blocks.0.attn.q`."""
    weight: Float[Tensor, "out in"]
    """A view of the weights as the map y = W x, embeddings from tokens to R^d: writing to it changes the network."""


def copied(model: LanguageModel, name: str) -> LanguageModel:
    """A model with weights of its own: hooks, processing and device as they were, and the very same tokenizer."""
    shared: dict[int, Any] = {id(model.bridge.tokenizer): model.bridge.tokenizer}
    for module in model.bridge.modules():  # what a pass with gradients left behind, which torch refuses to copy
        left = [value for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf]
        shared |= {id(value): value.detach() for value in left}
    bridge = copy.deepcopy(model.bridge, shared)
    for module in bridge.modules():
        if getattr(module, "_capture_hooks_wired", False):  # once it has run, to the blocks of the model itself
            module._teardown_capture_hooks()
    return replace(model, name=name, bridge=bridge)


def matrices(model: LanguageModel) -> list[Matrix]:
    """All matrices of a network in its order, one for both embeddings where they are tied (`embed`).

    Raises:
        UserError: weights with more than two axes, as batched experts have: what their matrices are is not known.
    """
    found = dict[int, Matrix]()
    for key, weight in model.bridge.state_dict().items():
        name, _, leaf = key.rpartition(".")
        require(
            weight.ndim <= 2, f"{key} of {model.name} has {weight.ndim} axes: only networks of plain matrices are drawn"
        )
        if leaf == "weight" and weight.ndim == 2:
            part = name.split(".", 2)[2] if name.startswith("blocks.") else name
            turned = part in ("embed", "pos_embed") or _is_conv1d(model.bridge, name)
            found.setdefault(weight.data_ptr(), Matrix(part, name, weight.T if turned else weight))
    return list(found.values())


def _is_conv1d(bridge: Any, name: str) -> bool:
    """Whether a module keeps its weights as (in, out), as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(getattr(bridge.get_submodule(name), "original_component", None), Conv1D)


def synchronise(model: LanguageModel) -> None:
    """Bring what the bridge holds twice up to date after its matrices were rewritten.

    That is: queries, keys and values in one matrix beside their own (GPT-2), which the plain Hugging Face network
    reads, and a gated network's processed weights, which the bridge reads.
    """
    for module in model.bridge.modules():
        if getattr(module, "_use_processed_weights", False):
            module.set_processed_weights(_own_weights(module))
        if hasattr(module, "split_qkv_matrix") and "qkv" in module._modules:
            _join(module)


def _own_weights(module: Any) -> dict[str, Tensor]:
    parts = {part: getattr(module, part, None) for part in ("gate", "in", "out")}
    held = {part: dict(own.state_dict()) for part, own in parts.items() if own is not None}
    return {f"{part}.{key.rpartition('.')[2]}": value for part, own in held.items() for key, value in own.items()}


def _join(attention: Any) -> None:
    """Write queries, keys and values into the joint ones; where each entry belongs, the split itself says."""
    joint = dict(attention.qkv.original_component.named_parameters())
    held = {leaf: parameter.data for leaf, parameter in joint.items()}
    for leaf, values in held.items():
        entries = torch.arange(values.numel(), dtype=torch.float64, device=values.device)
        joint[leaf].data = entries.reshape(values.shape)  # (entries,) -> as the parameter is
    split = attention.split_qkv_matrix(attention.original_component)
    for leaf, values in held.items():
        joint[leaf].data = values
        for own, home in zip((attention.q, attention.k, attention.v), split, strict=True):
            values.view(-1)[getattr(home, leaf).long()] = getattr(own, leaf).detach()

"""The Hugging Face model inside a TransformerBridge, without its hooks: the same weights, faster."""

import copy
from typing import Any

import torch
from torch import Tensor


def unwrapped(original: Any) -> Any:
    """A Hugging Face model without language head that shares the weights of one the bridge has wrapped."""
    base = original.base_model
    config = copy.deepcopy(base.config)
    config._attn_implementation = "sdpa" if getattr(base, "_supports_sdpa", False) else "eager"
    with torch.device("meta"):
        network = type(base)(config).eval()
    wanted = dict(network.named_parameters()) | dict(network.named_buffers())
    held = {_clean(k): v for k, v in [*base.named_parameters(remove_duplicate=False), *base.named_buffers()]}
    for name in wanted:
        _put(network, name, held[name])
    return network


def _put(network: Any, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = network.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = value
    else:
        owner._buffers[leaf] = value


def _clean(path: str) -> str:
    return path.replace("._original_component", "")


def module_of(bridge: Any, network: Any, name: str) -> tuple[str, str] | None:
    """(path of the Hugging Face module, "in" or "out") behind a hook, or None."""
    point, known = bridge.hook_dict[name], {path for path, _ in network.named_modules()}
    for path, module in bridge.original_model.base_model.named_modules(remove_duplicate=False):
        for side in ("in", "out"):
            if vars(module).get("_modules", {}).get(f"hook_{side}") is point and _clean(path) in known:
                return _clean(path), side
    return None

"""A forward pass that ends at the last hook needed, as fast as the Hugging Face model itself.

TransformerBridge puts its own modules round those of Hugging Face and computes attention step by step, so that every
value inside can be hooked; that costs a tenth to a half of the speed. A hook that is the input or output of a Hugging
Face module is read there instead, in a model of the same class on the same weights, after both have been compared.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.errors import UserError, require
from toolkit.language import LanguageModel
from toolkit.plain_network import module_of, unwrapped

AGREEMENT = 1e-4
"""How far plain and bridged values may lie apart, over the largest of their row, for the plain pass to be taken."""
_PROBES = (5, 7)
_INPUT_NAMES = ("hidden_states", "input", "input_ids", "x", "inputs_embeds")


class _ReachedError(Exception):
    """The last hook needed has been reached."""


@dataclass(frozen=True)
class Forward:
    """Tokens to activations at some hooks, nothing computed beyond the last of them."""

    hooks: tuple[str, ...]
    """The hooks read, each name once."""
    is_plain: bool
    """True where the Hugging Face modules are run, False where TransformerBridge is."""
    widths: dict[str, int]
    """Numbers in a row of each hook; a head axis is flattened into it."""
    device: torch.device
    """Where it runs."""
    run: Callable[[Tensor], dict[str, Tensor]]
    """Tokens -> raw values, before heads are flattened."""

    def __call__(self, tokens: Int[Tensor, "windows positions"]) -> dict[str, Float[Tensor, "windows positions _"]]:
        """Activations at each hook, on the model's device; padding belongs on the right, where no token sees it."""
        values = self.run(tokens.to(self.device))
        return {name: values[name].flatten(2) for name in self.hooks}  # (windows, positions, [heads,] d) -> d last


def forward_to(model: LanguageModel, hooks: Iterable[str]) -> Forward:
    """A forward pass up to the last of some hooks.

    Raises:
        UserError: an unknown hook (the nearest name is given), one that does not fire or has no row for each token,
            or a model whose tokens see later ones.
    """
    hooks = tuple(dict.fromkeys(hooks))
    check_hooks(model, hooks)
    direction = getattr(model.bridge.cfg, "attention_dir", "causal")
    require(direction == "causal", f"{model.name} is {direction}: only models that read left to right can be harvested")
    device = next(model.bridge.original_model.parameters()).device
    bridged = _bridged(model.bridge, hooks)
    probes = [_probe(model, min(length, model.context)).to(device) for length in _PROBES]
    expected = [bridged(probe) for probe in probes]
    for name in hooks:
        _check_rows(name, [values.get(name) for values in expected], probes)
    widths = {name: expected[0][name].flatten(2).shape[2] for name in hooks}
    plain = _plain(model.bridge, hooks)
    if plain is not None and all(_agree(plain(p), e) for p, e in zip(probes, expected, strict=True)):
        return Forward(hooks, True, widths, device, plain)
    return Forward(hooks, False, widths, device, bridged)


def check_hooks(model: LanguageModel, hooks: Iterable[str]) -> None:
    """Refuse names that are no hooks of the model.

    Raises:
        UserError: an unknown hook, with the nearest name among those of its kind.
    """
    for name in hooks:
        model.check_hook(name)


def _probe(model: LanguageModel, length: int) -> Tensor:
    """Two windows of unlike tokens, the same ones every time."""
    rows = model.bridge.cfg.d_vocab
    return (torch.arange(2 * length) * 7919 + 1).remainder(rows).reshape(2, length)  # (2 length) -> (2, length)


def _check_rows(name: str, values: list[Any], probes: list[Tensor]) -> None:
    """A hook must hold a row for each token at any length: attention patterns and rotary tables do not."""
    require(
        all(value is not None for value in values),
        f"hook {name} does not fire in a plain run of this model: choose another, such as its block's hook_resid_post",
    )
    for value, probe in zip(values, probes, strict=True):
        require(
            value.ndim in (3, 4) and value.shape[:2] == probe.shape and value.is_floating_point(),
            f"hook {name} has shape {tuple(value.shape)} for {probe.shape[0]} windows of {probe.shape[1]} tokens: "
            "expected (windows, tokens, d) or (windows, tokens, heads, d)",
        )


def _agree(values: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether both passes say the same, heads flattened."""
    for name, wanted in expected.items():
        flat = wanted.flatten(2)
        if name not in values or values[name].shape != flat.shape:
            return False
        apart, largest = (values[name] - flat).abs().amax(2), flat.abs().amax(2)  # (windows, positions)
        if not bool((apart <= AGREEMENT * largest).all()):
            return False
    return True


def _bridged(bridge: Any, hooks: tuple[str, ...]) -> Callable[[Tensor], dict[str, Tensor]]:
    """The pass through TransformerBridge's own hooks."""

    @torch.no_grad()
    def run(tokens: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda value, hook: _keep(found, name, value, hooks)

        try:
            bridge.run_with_hooks(tokens, fwd_hooks=[(name, keep(name)) for name in hooks], return_type=None)
        except _ReachedError:
            pass
        except ValueError as error:
            raise UserError(f"cannot read {', '.join(hooks)}: {error}") from error
        return found

    return run


def _keep(found: dict[str, Tensor], name: str, value: Tensor, hooks: tuple[str, ...]) -> None:
    found[name] = value
    if len(found) == len(hooks):
        raise _ReachedError


def _plain(bridge: Any, hooks: tuple[str, ...]) -> Callable[[Tensor], dict[str, Tensor]] | None:
    """The pass through a Hugging Face model on the bridge's weights; None where it cannot be made or has no such hook.

    Whatever goes wrong in making it, the bridge itself remains: it is slower and says the same.
    """
    try:
        network = unwrapped(bridge.original_model)
        places = {name: found for name in hooks if (found := module_of(bridge, network, name)) is not None}
    except (AttributeError, TypeError, ValueError, RuntimeError, KeyError):
        return None
    if len(places) < len(hooks):
        return None

    @torch.inference_mode()
    def run(tokens: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        handles = [_watch(network, path, side, name, found, hooks) for name, (path, side) in places.items()]
        try:
            network(input_ids=tokens, use_cache=False)
        except _ReachedError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return found

    return run


def _watch(network: Any, path: str, side: str, name: str, found: dict[str, Tensor], hooks: tuple[str, ...]) -> Any:
    module = network.get_submodule(path)
    if side == "in":

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = args[0] if args else next(kwargs[key] for key in _INPUT_NAMES if key in kwargs)
            _keep(found, name, given, hooks)

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(_: Any, args: Any, output: Any) -> None:
        _keep(found, name, output[0] if isinstance(output, tuple) else output, hooks)

    return module.register_forward_hook(after)

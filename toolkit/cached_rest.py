"""The blocks of a language model from a hook on, for one token a row: what came before is kept as keys and values."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from toolkit.errors import require
from toolkit.kept_keys import KeptKeys
from toolkit.language import LanguageModel
from toolkit.plain_network import module_of, unwrapped

_AT_ONCE = 16
"""Sequences run together when keys and values are kept."""
_UNSUITED = (AttributeError, TypeError, ValueError, RuntimeError, KeyError, IndexError)
"""What running a network's modules in another way than their authors meant may end in."""


def checked_places(tokens: Tensor, places: Tensor) -> Tensor:
    """Places (n, 2) on the CPU.

    Raises:
        UserError: the sequences do not have one.
    """
    places, limits = places.cpu(), torch.tensor(tokens.shape)
    require(
        places.ndim == 2 and places.shape[1] == 2 and bool(((places >= 0) & (places < limits)).all()),
        f"places must be (n, 2) sequences and positions within {tuple(tokens.shape)}",
    )
    return places


class CachedRest:
    """Logits of single positions from replaced activations on."""

    def __init__(self, model: LanguageModel, network: Any, site: tuple[str, str], tokens: Tensor, places: Tensor):
        self._network, self._unembed = network, model.bridge.unembed
        self._tokens, self._places = tokens, places
        self._entry = _keep_from(network, site[0])
        self._path, self._side = _after_cut(site[0], self._entry), site[1]
        self._cut(model)

    @classmethod
    def of(cls, model: LanguageModel, hook: str, tokens: Tensor, places: Tensor) -> Self | None:
        """The rest of a model, or None where its modules are not of a known shape."""
        try:
            network = unwrapped(model.bridge.original_model)
            site = module_of(model.bridge, network, hook)
            return None if site is None else cls(model, network, site, tokens, places)
        except _UNSUITED:
            return None

    @torch.no_grad()
    def _cut(self, model: LanguageModel) -> None:
        """Keys and values (sequences, heads, positions, d_head) of each block kept, and the stream at the first.

        Sequences are read up to their last place, those of like lengths side by side.
        """
        whole = unwrapped(model.bridge.original_model)
        entry = None if self._entry is None else whole.get_submodule(self._entry[0])[self._entry[1]]
        last = torch.zeros(len(self._tokens), dtype=torch.long)
        last = last.scatter_reduce(0, self._places[:, 0], self._places[:, 1] + 1, "amax")
        order, longest = last.argsort(stable=True), int(last.max())
        stream, keys = list[Tensor](), list[list[Tensor]]()
        for some in order.split(_AT_ONCE):
            length = max(1, int(last[some].max()))
            found, kept = _read(whole, entry, self._tokens[some, :length].to(model.device))
            first = 0 if self._entry is None else self._entry[1]
            stream += [_padded(value, longest, axis=1) for value in found]
            layers = [each for layer in kept.layers[first:] for each in (layer.keys, layer.values)]
            keys.append([_padded(value, longest, axis=2) for value in layers])
        home = order.argsort()
        self._stream = torch.cat(stream)[home] if stream else None  # (sequences, positions, d)
        joined = [torch.cat(layer)[home] for layer in zip(*keys, strict=True)]
        self._kept = KeptKeys(list(zip(joined[::2], joined[1::2], strict=True)))

    def __call__(self, activations: Tensor, at: Tensor) -> Tensor:
        """Logits (rows, vocabulary) where row i stands in for the activation of place at[i]."""
        logits: Tensor = self._unembed(self._states(activations, at))[:, 0]
        return logits

    def until(self, site: tuple[str, str], activations: Tensor, at: Tensor) -> Tensor:
        """What a later module reads or writes (rows, d), as `module_of` has it, and no further.

        Raises:
            LookupError: the network does not pass it from here on.
        """
        path = site[0] if self._entry is None else _renumbered(site[0], self._entry)
        with _stopped(self._network.get_submodule(path), site[1]) as seen:
            self._states(activations, at, blocks=_number(path, self._entry) + 1)
        if not seen:
            raise LookupError(f"{site[0]} is not passed")
        return seen[0][:, 0]

    def _states(self, activations: Tensor, at: Tensor, *, blocks: int | None = None) -> Tensor:
        """What the unembedding reads, (rows, 1, d); with keys and values for so many blocks, None: all."""
        sequence, position = self._places[at.cpu()].T
        longest = int(position.max())
        before = torch.arange(longest) - (longest - position)[:, None]  # (rows, longest); padding on the left is < 0
        mask = torch.cat([before >= 0, torch.ones(len(at), 1, dtype=torch.bool)], 1).long()
        device = next(self._network.parameters()).device
        given = self._given(sequence, position)
        with self._entered(sequence, position), _replaced(self._network, self._path, self._side, activations):
            states: Tensor = self._network(
                **given,
                past_key_values=self._kept.cache(sequence, before.clamp(min=0), blocks) if longest else None,
                attention_mask=mask.to(device),
                position_ids=position[:, None].to(device),
                use_cache=longest > 0,
            ).last_hidden_state
        return states

    def _given(self, sequence: Tensor, position: Tensor) -> dict[str, Tensor]:
        """A token a row; where blocks were cut off, what stands for it is overwritten at the first one kept."""
        device = next(self._network.parameters()).device
        if self._stream is None:
            return {"input_ids": self._tokens[sequence, position][:, None].to(device)}
        return {"inputs_embeds": self._stream[sequence, position][:, None]}

    @contextmanager
    def _entered(self, sequence: Tensor, position: Tensor) -> Iterator[None]:
        """Within, the first block kept reads the stream as the clean run had it."""
        if self._entry is None:
            yield
            return
        assert self._stream is not None
        rows = self._stream[sequence, position][:, None]  # (rows, 1, d)

        def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (rows, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": rows}

        handle = self._network.get_submodule(self._entry[0])[0].register_forward_pre_hook(enter, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _read(whole: Any, entry: Any, tokens: Tensor) -> tuple[list[Tensor], Any]:
    """What reaches the first block kept, where there is one, and all keys and values."""
    from transformers import DynamicCache

    cache = DynamicCache()
    with _watched(entry) as seen:
        whole(input_ids=tokens, use_cache=True, past_key_values=cache)
    return list(seen), cache


def _padded(value: Tensor, length: int, *, axis: int) -> Tensor:
    """With zeros after what is there."""
    shape = [*value.shape]
    shape[axis] = length - shape[axis]
    return torch.cat([value, value.new_zeros(shape)], axis)


def _keep_from(network: Any, path: str) -> tuple[str, int] | None:
    """Cut off the blocks before the one that holds a module: (path of the list, its number), None if it is in none."""
    parts = path.split(".")
    for depth in range(1, len(parts)):
        holder = network.get_submodule(".".join(parts[:depth]))
        if isinstance(holder, nn.ModuleList) and parts[depth].isdigit():
            break
    else:
        return None
    number, holder_path = int(parts[depth]), ".".join(parts[:depth])
    parent, _, leaf = holder_path.rpartition(".")
    setattr(network.get_submodule(parent), leaf, nn.ModuleList(list(holder)[number:]))
    network.config.num_hidden_layers = len(holder) - number
    for module in network.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx -= number
    return holder_path, number


def _after_cut(path: str, entry: tuple[str, int] | None) -> str:
    if entry is None:
        return path
    holder, number = entry
    return holder + ".0" + path.removeprefix(f"{holder}.{number}")


def _renumbered(path: str, entry: tuple[str, int]) -> str:
    """Of a module in any block that is kept, or in none."""
    holder, number = entry
    if not path.startswith(holder + "."):
        return path
    block, *within = path.removeprefix(holder + ".").split(".")
    return ".".join([holder, str(int(block) - number), *within])


def _number(path: str, entry: tuple[str, int] | None) -> int:
    """Of the block that holds a module, or a number no block has."""
    first = "" if entry is None else path.removeprefix(entry[0] + ".").split(".")[0]
    return int(first) if first.isdigit() else sys.maxsize - 1


class _Reached(Exception):  # noqa: N818 - not an error
    """The run has come to where it was to stop."""


@contextmanager
def _stopped(module: Any, side: str) -> Iterator[list[Tensor]]:
    """Within, a run ends at a module, and what it reads or writes there is kept."""
    seen: list[Tensor] = []

    def stop(value: Any) -> None:
        seen.append(value[0] if isinstance(value, tuple) else value)
        raise _Reached

    if side == "in":
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: stop(args if args else kwargs["hidden_states"]), with_kwargs=True
        )
    else:
        handle = module.register_forward_hook(lambda _, args, output: stop(output))
    try:
        yield seen
    except _Reached:
        pass
    finally:
        handle.remove()


@contextmanager
def _watched(module: Any) -> Iterator[list[Tensor]]:
    """What enters a module, in order."""
    seen: list[Tensor] = []
    if module is None:
        yield seen
        return
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _replaced(network: Any, path: str, side: str, rows: Tensor) -> Iterator[None]:
    """Within, a module's input or output holds other rows."""
    module = network.get_submodule(path)

    def put(value: Tensor) -> Tensor:
        return rows.reshape(value.shape).to(value)  # (rows, d) -> (rows, 1, [heads,] d)

    def after(_: Any, args: Any, output: Any) -> Any:
        return (put(output[0]), *output[1:]) if isinstance(output, tuple) else put(output)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (put(args[0]), *args[1:]), kwargs
        name = next(key for key in ("hidden_states", "input", "x") if key in kwargs)
        return args, {**kwargs, name: put(kwargs[name])}

    if side == "in":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()

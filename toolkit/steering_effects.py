"""What steering along directions does: on target, off target and to the loss, at matched divergence of the outputs.

```python
found = steering_effects(downstream, activations, {"probe": W.T, "dual": dual_basis(W).vectors}, effects, kl=0.1)
print(found)
```

Each vector is both added and subtracted at every place, its length chosen so that the divergence is the one asked for
in the mean over places and both senses; effects are in the sense that was asked for, averaged over both. The target
effect is the movement of the outputs along the attribute's expected effect e, in units of |e|; off target is the
divergence that no movement along e explains (`toolkit.movements`). Random directions are isotropic, have each vector's
own length and steer the same places: they match it in norm and in frequency. They move outputs less far, so the share
on target is the stricter comparison of the two.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from toolkit.coding_inputs import as_rows
from toolkit.descent import Progress
from toolkit.downstream import Downstream
from toolkit.errors import require, unknown
from toolkit.matched_scale import matched_scales
from toolkit.movements import DIVERGENCES, centred, distances, movements
from toolkit.probe_inputs import as_array, check_count
from toolkit.steering_results import SteeringEffects

_AT_ONCE = 2**22
"""Outputs or activations held at a time: 16 MB of float32 in each of a few tensors."""


def steering_effects(
    downstream: Downstream,
    activations: Float[Tensor, "places d"] | ArrayLike,
    directions: Mapping[str, ArrayLike],
    effects: ArrayLike,
    *,
    kl: float = 0.1,
    divergence: str = "kl",
    next_tokens: Int[Tensor, " places"] | ArrayLike | None = None,
    attributes: Sequence[str] = (),
    random: int = 999,
    seed: int = 0,
    progress: Progress = lambda done: None,
) -> SteeringEffects:
    """Steer along each direction until outputs have moved equally far, and see where they went.

    Args:
        downstream: the rest of the network; row i stands in for place at[i].
        activations: clean ones (places, d), floating-point, a row a place.
        directions: by family: (d, m), a column an attribute, or (d,) for a single one. Lengths do not matter, signs do.
        effects: (m, outputs), the expected effect of each attribute; of log-probabilities less its mean over tokens.
        kl: the mean divergence to match; its unit is nats for "kl".
        divergence: "kl" for log-probabilities, "squared" (half the squared distance) for other outputs.
        next_tokens: the output that came true at each place, on any device, for the effect on the loss; for "kl".
        attributes: names; by default numbers.
        random: random directions for each vector; 999 bring p down to .001.
        progress: called with the number of vectors measured: all of them, and `random` for each that was matched.

    Raises:
        UserError: shapes or types that do not fit, values that are not finite, an effect of zero, a `kl` that is not
            positive, tokens that are no outputs, an unknown divergence.
    """
    check_count(random, "random", least=0)
    check_count(seed, "seed", least=0)
    rows, e = _checked(activations, effects, kl, divergence)
    families = _families(directions, rows.shape[1], len(e))
    came = _tokens(next_tokens, rows, e, divergence)
    names = tuple(attributes) or tuple(str(j) for j in range(len(e)))
    require(len(names) == len(e), f"attributes has {len(names)} names for {len(e)} effects: expected as many")
    ground = _Ground(downstream, rows, e, divergence, came)
    units = np.concatenate([columns.T for columns in families.values()])  # (families * m, d)
    steered = ground.matched(units / np.linalg.norm(units, axis=1, keepdims=True).clip(np.finfo(float).tiny), kl)
    seen = {"loss": None, **ground.measure(steered, ground.attributes_of(len(steered)))}
    progress(len(steered))
    seen |= ground.beside_random(steered, random, seed, progress)
    shaped: dict[str, Any] = {
        name: None if values is None else values.reshape(len(families), len(e), *values.shape[1:])
        for name, values in seen.items()
    }  # (families * m, ...) -> (families, m, ...)
    scales = steered.norm(dim=1).double().cpu().numpy().reshape(len(families), len(e))
    return SteeringEffects(tuple(families), names, kl, scales, **shaped)


def _checked(activations: Any, effects: ArrayLike, kl: float, divergence: str) -> tuple[Tensor, Tensor]:
    """Activations (places, d), and effects (m, outputs) in their type."""
    if divergence not in DIVERGENCES:
        raise unknown("divergence", divergence, DIVERGENCES)
    require(bool(np.isfinite(kl)) and kl > 0, f"kl={kl}: expected a positive number")
    rows = torch.as_tensor(activations).detach()
    require(
        rows.ndim == 2 and rows.is_floating_point(),
        f"activations are {tuple(rows.shape)} of {rows.dtype}: expected (places, d) of a floating-point type",
    )
    require(bool(rows.isfinite().all()) and len(rows) > 0, "activations: expected rows without NaN")
    e = centred(torch.as_tensor(as_rows(as_array(effects), "effects")).to(rows), divergence)
    zero = (~e.any(1)).nonzero()
    require(len(zero) == 0, f"effects: row {int(zero[0]) if len(zero) else 0} moves nothing: leave that attribute out")
    return rows, e


def _families(directions: Any, d: int, m: int) -> dict[str, np.ndarray]:
    """Each family's vectors as (d, m), float64."""
    kind = type(directions).__name__
    require(isinstance(directions, Mapping), f"directions is a {kind}: expected each family's vectors by its name")
    require(bool(directions), "directions is empty: give at least one family")
    families = {}
    for name, given in directions.items():
        vectors = np.asarray(as_array(given))
        shape = vectors.shape
        vectors = vectors[:, None] if vectors.ndim == 1 else vectors
        require(vectors.shape == (d, m), f"directions[{name!r}] has shape {shape}: expected ({d}, {m}), as effects say")
        require(vectors.dtype.kind in "fiub", f"directions[{name!r}] holds {vectors.dtype}: expected real numbers")
        require(bool(np.isfinite(vectors).all()), f"directions[{name!r}] holds NaN or infinity")
        families[name] = vectors.astype(np.float64)
    return families


def _tokens(next_tokens: Any, rows: Tensor, effects: Tensor, divergence: str) -> Tensor | None:
    """Token ids (places,), each one of the outputs."""
    if next_tokens is None:
        return None
    tokens, (places, outputs) = torch.as_tensor(next_tokens), (len(rows), effects.shape[1])
    require(
        tokens.shape == (places,) and divergence == "kl",
        f"next_tokens: expected one for each of {places} places, with divergence='kl'",
    )
    whole = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
    require(whole, f"next_tokens holds {tokens.dtype}: expected token ids, whole numbers")
    low, high = int(tokens.min()), int(tokens.max())
    require(low >= 0 and high < outputs, f"next_tokens run from {low} to {high}: outputs from 0 to {outputs - 1}")
    return tokens.long()


def _rise(clean: Tensor, moved: Tensor, tokens: Tensor) -> Tensor:
    """How much less likely each row's token has become, in nats (rows,); tokens on any device."""
    at = tokens.to(clean.device)[:, None]
    return (clean.gather(1, at) - moved.gather(1, at))[:, 0]


class _Ground:
    """The network, the places and what is expected, on which any vectors are tried."""

    def __init__(
        self, downstream: Downstream, activations: Tensor, effects: Tensor, divergence: str, next_tokens: Tensor | None
    ) -> None:
        self.downstream, self.activations, self.effects = downstream, activations, effects
        self.divergence, self.next_tokens = divergence, next_tokens
        places = len(activations)
        self.block = max(1, _AT_ONCE // max(effects.shape[1], activations.shape[1]))
        with torch.no_grad():
            parts = [downstream(activations[at], at) for at in torch.arange(places).split(self.block)]
        self.clean = torch.cat(parts)
        fits = self.clean.shape == (places, effects.shape[1]) and bool(self.clean.isfinite().all())
        require(fits, f"downstream gave {tuple(self.clean.shape)}: expected finite {(places, effects.shape[1])}")

    def attributes_of(self, count: int) -> Tensor:
        """The attribute of each vector: families one after another."""
        return torch.arange(count) % len(self.effects)

    def matched(self, units: np.ndarray, wanted: float) -> Tensor:
        """Unit vectors at the length of that divergence, (v, d); NaN where there is none."""
        reach = float(self.activations.square().sum(1).mean().sqrt()) or 1.0
        vectors = torch.as_tensor(units).to(self.activations)
        return vectors * matched_scales(self.mean_divergence, vectors, wanted, reach)[:, None].to(vectors)

    def beside_random(
        self, steered: Tensor, count: int, seed: int, progress: Progress
    ) -> dict[str, Float[np.ndarray, "v n"]]:
        """Target effects and shares on target of random directions as long as each vector."""
        draws = np.random.default_rng([seed, 11]).standard_normal((count, steered.shape[1]))
        units = torch.as_tensor(draws / np.linalg.norm(draws, axis=1, keepdims=True)).to(steered)
        target, share = np.full((len(steered), count), np.nan), np.full((len(steered), count), np.nan)
        attributes = self.attributes_of(len(steered))
        for i in steered.isfinite().all(1).nonzero()[:, 0].tolist() if count else ():
            found = self.measure(units * steered[i].norm(), attributes[i].repeat(count))
            target[i] = found["along"][:, attributes[i]].mean(1)
            share[i] = found["explained"].mean(1) / found["divergence"].mean(1)
            progress(count)
        return {"random_target": target, "random_explained": share}

    def mean_divergence(self, vectors: Tensor) -> Tensor:
        """Over places and both senses, (v,)."""

        def distance(clean: Tensor, moved: Tensor, at: Tensor, vector: Tensor, sign: Tensor) -> dict[str, Tensor]:
            return {"divergence": distances(clean, moved, self.divergence)}

        return torch.as_tensor(self._over_all(vectors, distance)["divergence"]).mean(1)

    def measure(self, vectors: Tensor, wanted: Tensor) -> dict[str, np.ndarray]:
        """Everything that is measured at each place, (v, [m,] places), averaged over both senses."""

        def everything(clean: Tensor, moved: Tensor, at: Tensor, vector: Tensor, sign: Tensor) -> dict[str, Tensor]:
            how = {"divergence": self.divergence}
            split = movements(clean, moved, self.effects, wanted[vector], sign, **how)
            seen = {"divergence": split.divergence, "explained": split.explained, "along": split.along}
            if self.next_tokens is not None:
                seen["loss"] = _rise(clean, moved, self.next_tokens[at.to(self.next_tokens.device)])
            return seen

        seen = self._over_all(vectors, everything)
        return seen | {"along": np.moveaxis(seen["along"], 2, 1)}

    @torch.no_grad()
    def _over_all(
        self, vectors: Tensor, look: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]
    ) -> dict[str, np.ndarray]:
        """Each vector at each place, added and subtracted, in blocks."""
        places = len(self.activations)
        parts: dict[str, list[Tensor]] = {}
        for pairs in torch.arange(len(vectors) * 2 * places).split(self.block):
            at, vector, sign = pairs % places, pairs // (2 * places), 1.0 - 2.0 * (pairs // places % 2)
            sign = sign.to(self.activations)
            moved = self.downstream(self.activations[at] + sign[:, None] * vectors[vector], at)
            for name, values in look(self.clean[at], moved, at, vector, sign).items():
                parts.setdefault(name, []).append(values.cpu())
        return {
            name: torch.cat(each).reshape(len(vectors), 2, places, *each[0].shape[1:]).mean(1).double().numpy()
            for name, each in parts.items()
        }  # (v * 2 * places, ...) -> (v, 2, places, ...) -> the mean over senses

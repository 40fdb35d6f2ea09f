"""What names features: labels of words or texts, latents of an SAE, principal directions, or any 0 or 1 of a row.

audit(Labels.of("upos=VERB"), model, data, hook=...)
audit(Latents(load_sae(FOLDER), tuple(range(20))), model, data, hook=...)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.reading import Reading
from toolkit.errors import UserError, require
from toolkit.sae import SAE, LoadedSAE, SAEConfig, fit_sae

REFIT_WIDTH = 512
"""Latents at most of an SAE that a control trains anew: hundreds are trained, and their null with them."""
REFIT_STEPS = 200
"""Steps of these trainings: with three times as many, seeds agree no better."""
RARE = 0.01
"""Share of the rows on which a latent has to be on to be chosen where nobody names latents: rarer ones have too few
rows to be judged by."""
MOST_LATENTS = 10**7
"""More than any SAE has."""
AT_ONCE = 4096
"""Rows encoded together."""


@runtime_checkable
class Finder(Protocol):
    """Names features of a hook."""

    @property
    def family(self) -> str:
        """A word that stands for it in tables and before its features' names."""
        ...

    @property
    def supervised(self) -> bool:
        """Whether somebody gave it labels."""
        ...

    def fit(self, rows: Float[Tensor, "some d"], *, seed: int) -> Self:
        """Itself, with what it has to learn or choose taken from rows that are not judged.

        Raises:
            UserError: it does not go with these rows.
        """
        ...

    def labels(self, reading: Reading, activations: Float[Tensor, "rows d"]) -> dict[str, Int[np.ndarray, " rows"]]:
        """0 or 1 for each row, of each feature."""
        ...

    def directions(self) -> Float[Tensor, "features d"] | None:
        """What it writes or reads along for each feature, in the order of `labels`; None where it has no such thing."""
        ...

    def refit(self, rows: Float[Tensor, "some d"], *, seed: int) -> Float[Tensor, "found d"]:
        """Directions of length 1 that the same recipe finds in other rows; only of finders that have no labels."""
        ...


@dataclass(frozen=True)
class Labels:
    """Features that people labelled, each "LAYER=VALUE"."""

    names: tuple[str, ...]
    """Such as upos=VERB, Number=Plur, category=pos."""
    family: str = "labels"
    """In tables."""
    supervised: bool = True
    """People gave the labels."""

    @classmethod
    def of(cls, *names: str) -> Self:
        """Labels by name; several may stand in one text, apart by commas."""
        found = tuple(part.strip() for name in names for part in name.split(",") if part.strip())
        require(bool(found), "no label was named: give LAYER=VALUE, such as upos=VERB")
        require(len(set(found)) == len(found), f"a label is named twice: {', '.join(found)}")
        return cls(found)

    def fit(self, rows: Float[Tensor, "some d"], *, seed: int) -> Self:
        """Itself: nothing is learned."""
        return self

    def labels(self, reading: Reading, activations: Float[Tensor, "rows d"]) -> dict[str, Int[np.ndarray, " rows"]]:
        """As the text has them."""
        return {name: reading.labels(name) for name in self.names}

    def directions(self) -> None:
        """None: a label has no direction before something is fitted."""

    def refit(self, rows: Float[Tensor, "some d"], *, seed: int) -> Float[Tensor, "found d"]:
        """Not without labels."""
        raise UserError("labels cannot be found again in other rows: give --sae or --pca")


@dataclass(frozen=True)
class Latents:
    """Latents of an SAE; a feature is on where its latent is not 0."""

    sae: SAE | LoadedSAE
    """Of one instance."""
    which: tuple[int, ...] | None = None
    """Latents; None chooses `count` of those that are on often enough."""
    count: int = 10
    """How many are chosen where none is named."""
    family: str = "sae"
    """In tables."""
    supervised: bool = False
    """It was trained without labels."""

    def fit(self, rows: Float[Tensor, "some d"], *, seed: int) -> Self:
        """Itself, latents chosen at random among those on in RARE of the rows or more, if none was named.

        Raises:
            UserError: the SAE has another width than the hook, or not so many latents.
        """
        width, d = self.sae.W_dec.shape[1:]
        require(
            d == rows.shape[1],
            f"the SAE reads rows of {d} numbers and the hook holds {rows.shape[1]}: it was trained on another hook"
            + _trained_on(self.sae),
        )
        if self.which is not None:
            wrong = [latent for latent in self.which if not 0 <= latent < width]
            require(not wrong, f"latent {wrong[0] if wrong else ''} is not there: the SAE has 0 to {width - 1}")
            return self
        rate = self._on(rows, torch.arange(width)).mean(0)
        often = np.flatnonzero((rate >= RARE) & (rate <= 1 - RARE))
        require(len(often) > 0, f"no latent of the SAE is on in {RARE:.0%} to {1 - RARE:.0%} of the rows: name latents")
        chosen = np.random.default_rng([seed, 113]).permutation(often)[: self.count]
        return replace(self, which=tuple(sorted(int(latent) for latent in chosen)))

    def labels(self, reading: Reading, activations: Float[Tensor, "rows d"]) -> dict[str, Int[np.ndarray, " rows"]]:
        """Where each is on."""
        which = self._which()
        on = self._on(activations, torch.tensor(which)).astype(int)
        return {f"sae:{latent}": on[:, column] for column, latent in enumerate(which)}

    def directions(self) -> Float[Tensor, "features d"]:
        """Decoder rows."""
        return self.sae.W_dec[0, list(self._which())].detach().float()

    def refit(self, rows: Float[Tensor, "some d"], *, seed: int) -> Float[Tensor, "found d"]:
        """Decoder rows of a topk SAE on other rows: REFIT_WIDTH latents at most, as many of them on as here."""
        return refitted(rows, self.width, self.mean_l0(rows), seed=seed).W_dec[0]

    @property
    def width(self) -> int:
        """Of what `refit` trains."""
        return min(REFIT_WIDTH, self.sae.W_dec.shape[1])

    def mean_l0(self, rows: Float[Tensor, "some d"]) -> int:
        """Latents on at once in these rows, rounded, and at most a quarter of `width`."""
        on = self._on(rows[:AT_ONCE], torch.arange(self.sae.W_dec.shape[1])).sum(1).mean()
        return int(np.clip(round(float(on)), 1, self.width // 4))

    def _which(self) -> tuple[int, ...]:
        require(self.which is not None, "latents are chosen on rows: call fit first")
        assert self.which is not None
        return self.which

    @torch.no_grad()
    def _on(self, rows: Float[Tensor, "some d"], which: Int[Tensor, " some"]) -> Any:
        """Whether each latent is on, (rows, latents)."""
        parts = [self.sae.encode(some[None].float())[0][:, which] > 0 for some in rows.split(AT_ONCE)]
        return torch.cat(parts).cpu().numpy()


def refitted(rows: Float[Tensor, "some d"], width: int, k: int, *, seed: int) -> SAE:
    """The small SAE that controls train, alike on every kind of rows: topk, of the rows less their mean."""
    mean = rows.mean(0)
    scale = float((rows - mean).square().sum(1).mean().clamp(min=1e-30).rsqrt()) * rows.shape[1] ** 0.5
    config = SAEConfig(architecture="topk", width=width, k=k, steps=REFIT_STEPS, batch=1024)
    return fit_sae((rows - mean) * scale, config, seed=seed).unscaled(mean, scale)


def _trained_on(sae: SAE | LoadedSAE) -> str:
    hook = sae.metadata.get("hook_name")
    return f", {hook}" if hook else ""


@dataclass(frozen=True)
class Principal:
    """The first principal directions; a feature is on where its coordinate is above the median."""

    count: int
    """How many."""
    vectors: Float[Tensor, "count d"] | None = None
    """Once fitted, by falling variance."""
    medians: Float[Tensor, " count"] | None = None
    """Of the coordinates, where they were fitted."""
    family: str = "pca"
    """In tables."""
    supervised: bool = False
    """It has no labels."""

    def fit(self, rows: Float[Tensor, "some d"], *, seed: int) -> Self:
        """Directions of rows that are not judged.

        Raises:
            UserError: more directions than dimensions.
        """
        require(1 <= self.count <= rows.shape[1], f"--pca {self.count}: the hook has 1 to {rows.shape[1]} directions")
        vectors = self.refit(rows, seed=seed)
        return replace(self, vectors=vectors, medians=(rows.float() @ vectors.mT).median(0).values)

    def labels(self, reading: Reading, activations: Float[Tensor, "rows d"]) -> dict[str, Int[np.ndarray, " rows"]]:
        """Where each coordinate is above its median."""
        assert self.vectors is not None
        assert self.medians is not None
        on = (activations.float() @ self.vectors.mT > self.medians).numpy().astype(int)
        return {f"pca:{number + 1}": on[:, number] for number in range(self.count)}

    def directions(self) -> Float[Tensor, "features d"] | None:
        """Themselves."""
        return self.vectors

    def refit(self, rows: Float[Tensor, "some d"], *, seed: int) -> Float[Tensor, "found d"]:
        """Of other rows."""
        X = (rows - rows.mean(0)).double()
        vectors = torch.linalg.eigh(X.mT @ X / len(X)).eigenvectors
        found = vectors.flip(1)[:, : self.count].mT  # (d, d) by falling variance -> (count, d)
        largest = found.gather(1, found.abs().argmax(1, keepdim=True))
        return (found * largest.sign()).float()  # a direction and its opposite are one: the largest entry is positive


@dataclass(frozen=True)
class ReadOuts:
    """Features that functions of activations name: fitted probes, thresholds, whatever says 0 or 1 of each row.

    ReadOuts((("verb", lambda rows: probe.predict(rows) == "VERB"),))
    """

    functions: tuple[tuple[str, Callable[[np.ndarray], Any]], ...]
    """Name, and activations (rows, d) -> (rows,) of 0 and 1."""
    family: str = "read-outs"
    """In tables."""
    supervised: bool = True
    """Labels stand behind them."""

    def fit(self, rows: Float[Tensor, "some d"], *, seed: int) -> Self:
        """Itself: they were fitted elsewhere, on other rows as their owner has to see to."""
        return self

    def labels(self, reading: Reading, activations: Float[Tensor, "rows d"]) -> dict[str, Int[np.ndarray, " rows"]]:
        """What the functions say.

        Raises:
            UserError: something else than a 0 or 1 for each row.
        """
        found = {}
        for name, function in self.functions:
            said = np.asarray(function(activations.numpy()))
            require(
                said.shape == (len(activations),) and bool(np.isin(said, (0, 1)).all()),
                f"read-out {name!r} gives {said.dtype} of shape {said.shape}: expected 0 or 1 for each of "
                f"{len(activations)} rows",
            )
            found[name] = said.astype(int)
        return found

    def directions(self) -> None:
        """None: a function has no direction."""

    def refit(self, rows: Float[Tensor, "some d"], *, seed: int) -> Float[Tensor, "found d"]:
        """Not without labels."""
        raise UserError("read-outs cannot be found again in other rows: give --sae or --pca")


def ranges(text: str) -> tuple[int, ...]:
    """Latents of "0:200", "3,8,12" or both.

    Raises:
        UserError: something else.
    """
    found = list[int]()
    for part in text.split(","):
        first, colon, last = part.strip().partition(":")
        require(
            first.isdecimal() and (last.isdecimal() if colon else True) and (not colon or int(last) > int(first)),
            f"--latents {text!r}: expected numbers and ranges, such as 0:200 or 3,8,12",
        )
        some = range(int(first), int(last)) if colon else range(int(first), int(first) + 1)
        require(some.stop <= MOST_LATENTS, f"--latents {text!r}: no SAE has {some.stop:,} latents")
        found += some
    return tuple(dict.fromkeys(found))


def named(finders: Sequence[Finder]) -> dict[str, Finder]:
    """Finders by family.

    Raises:
        UserError: two of one family.
    """
    require(bool(finders), "no finder was given: nothing to judge")
    families = [finder.family for finder in finders]
    require(len(set(families)) == len(families), f"two finders are called {families}: give one of each kind")
    return dict(zip(families, finders, strict=True))

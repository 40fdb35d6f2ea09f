"""An audit made ready: text read, activations taken, features named, the rest of the network and null networks there.

```python
prepare(load_model(), "blocks.2.hook_resid_post", [Labels.of("upos=VERB")], FOLDER, BUDGETS["quick"], seed=0).case
```
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.budgets import Spending
from controls.case import Case, activations_at
from controls.finders import Finder, Labels, Latents, named
from controls.model_weights import drawn_anew
from controls.reading import Reading, read
from controls.subject import FEWEST_DOCUMENTS, Subject, halves, units
from controls.worlds import NULL_KINDS
from toolkit.checkpoints import DamagedError, load_sealed, save_sealed
from toolkit.downstream import LanguageDownstream
from toolkit.errors import UserError, require
from toolkit.language import LanguageModel
from toolkit.sae import LoadedSAE
from toolkit.sweep import one_thread

MANY_DOCUMENTS = 3 * FEWEST_DOCUMENTS
"""At least so many are read where there are as many: of longer ones, their beginnings."""
SELECTION = 0.1
"""Of the documents, those on which finders choose and learn; they are not judged."""
ACTIVATIONS = "activations.safetensors"
"""Of all rows, in the folder of an unfinished run."""


@dataclass(frozen=True)
class Prepared:
    """An audit's ground."""

    case: Case
    """Everything that is asked about."""
    notes: tuple[str, ...]
    """What a reader of the audit has to know."""


def prepare(
    model: LanguageModel,
    hook: str,
    finders: Sequence[Finder],
    source: str,
    bought: Spending,
    *,
    seed: int,
    kept: Path | None = None,
) -> Prepared:
    """Read, run and name.

    Args:
        source: a corpus, labelled where labels are asked for.
        kept: a folder that keeps the activations for other processes and for going on.

    Raises:
        UserError: an unknown hook, an SAE of another width, a label that never or always occurs, too few documents.
    """
    model.check_hook(hook)
    by_family = named(finders)
    labels = [name for finder in finders if isinstance(finder, Labels) for name in finder.names]
    learning = any(not isinstance(finder, Labels) for finder in finders)
    wanted = int(bought.rows * (1 + SELECTION * learning))
    reading = read(model, source, labels, rows=wanted, per_document=max(1, wanted // MANY_DOCUMENTS), seed=seed)
    notes = _of_another_hook(finders, hook) + _of_other_weights(finders, model)
    X = _activations(model, hook, reading, kept)
    chosen, judged = _split(reading.groups, SELECTION if learning else 0.0, seed=seed)
    with one_thread():  # as workers have it: a label at its threshold is the same in each
        fitted = {family: finder.fit(X[chosen], seed=seed) for family, finder in by_family.items()}
        reading, X = reading.part(judged), X[torch.from_numpy(judged)]
        found, families, left = _labels(fitted, reading, X)
        subject = _subject(model, hook, reading, X, found, families, bought, seed=seed)
    notes += left
    case = Case(model, hook, reading, subject, fitted, seed, bought.draws, max(1, bought.dear), bought.null_rows)
    return Prepared(case, tuple(notes))


def _of_another_hook(finders: Sequence[Finder], hook: str) -> list[str]:
    """What SAEs say that they were trained on, where it is not this hook."""
    said = [(finder.family, finder.sae.metadata.get("hook_name")) for finder in finders if isinstance(finder, Latents)]
    return [f"{family} was trained on {its}, not on {hook}" for family, its in said if its not in (None, hook)]


def processing(finders: Sequence[Finder]) -> dict[str, Any]:
    """What SAEs say was done to the weights of the model they were trained on, as options of `load_model`."""
    loaded = [finder.sae for finder in finders if isinstance(finder, Latents) and isinstance(finder.sae, LoadedSAE)]
    return {name: True for sae in loaded for name in sae.processing}


def _of_other_weights(finders: Sequence[Finder], model: LanguageModel) -> list[str]:
    wanted, has = processing(finders).keys(), set(model.processing)
    missing, beyond = ", ".join(sorted(wanted - has)), ", ".join(sorted(has - wanted))
    loaded = any(isinstance(finder, Latents) and isinstance(finder.sae, LoadedSAE) for finder in finders)
    notes = [f"the SAE's model had {missing}, this one has not: load it so"] if missing else []
    return notes + ([f"this model has {beyond}, the SAE's had not: load it so"] if loaded and beyond else [])


def _activations(model: LanguageModel, hook: str, reading: Reading, kept: Path | None) -> Float[Tensor, "rows d"]:
    file = None if kept is None else kept / ACTIVATIONS
    if file is not None and file.exists():
        with suppress(DamagedError):  # then taken anew: the same numbers
            kept_rows = load_sealed(file)["rows"]
            require(len(kept_rows) == len(reading.rows), f"{file} is of another text: delete its folder and begin anew")
            return kept_rows
    X = activations_at(model, hook, reading.tokens, reading.rows)
    require(bool(torch.isfinite(X).all()), f"{hook} of {model.name} holds numbers that are not finite on this text")
    if file is not None and file.parent.is_dir():  # a worker on another machine may not have the folder
        save_sealed({"rows": X}, file)
    return X


def _split(groups: Int[np.ndarray, " rows"], share: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the documents that finders learn on, and of those that are judged."""
    documents = int(groups.max()) + 1
    needed = FEWEST_DOCUMENTS + int(np.ceil(share * FEWEST_DOCUMENTS / (1 - share)))
    require(
        documents >= needed,
        f"the text has {documents} documents with rows, and intervals by document need {needed}: give more documents",
    )
    aside = np.random.default_rng([seed, 109]).permutation(documents)[: int(np.ceil(share * documents))]
    held = np.isin(groups, aside)
    return np.flatnonzero(held), np.flatnonzero(~held)


def _labels(
    finders: Mapping[str, Finder], reading: Reading, X: Float[Tensor, "rows d"]
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Labels by feature, the family of each, and which ones were left out."""
    found, families, notes = dict[str, np.ndarray](), dict[str, str](), list[str]()
    for family, finder in finders.items():
        given = finder.labels(reading, X)
        constant = [name for name, y in given.items() if y.min() == y.max()]
        if finder.supervised and constant:
            word = "always" if given[constant[0]].all() else "never"
            raise UserError(
                f"label {constant[0]!r} {word} occurs in {len(X):,} rows of this text: nothing can be told of it"
            )
        if constant:
            notes.append(f"{len(constant)} of {len(given)} of {family} are always or never on here and left out")
        twice = sorted(set(found) & set(given))
        require(not twice, f"two finders name a feature {twice[0] if twice else ''!r}: give them names of their own")
        found |= {name: y for name, y in given.items() if name not in constant}
        families |= {name: family for name in given if name not in constant}
    require(bool(found), "no feature is left: every one is always or never on in this text")
    return found, families, notes


def _subject(
    model: LanguageModel,
    hook: str,
    reading: Reading,
    X: Float[Tensor, "rows d"],
    labels: Mapping[str, np.ndarray],
    families: Mapping[str, str],
    bought: Spending,
    *,
    seed: int,
) -> Subject:
    at = chosen_places(np.stack(list(labels.values()), 1), reading.groups, bought.places, seed=seed)
    some = reading.part(at)
    null_rows = _whole_documents(reading.groups, bought.null_rows, seed=seed)
    nulls_at = reading.part(null_rows)

    def null(kind: str) -> Callable[[int], Tensor]:
        def draw(number: int) -> Tensor:
            network = drawn_anew(model, kind, seed=number, until=hook)
            return activations_at(network, hook, nulls_at.tokens, nulls_at.rows)

        return draw

    return Subject(
        activations=X,
        labels=labels,
        groups=reading.groups,
        tokens=reading.ids,
        places=at,
        downstream=LanguageDownstream(model, hook, some.tokens, some.rows, activations=X[torch.from_numpy(at)]),
        targets=dict.fromkeys(labels),
        nulls={kind: null(kind) for kind in NULL_KINDS},
        null_rows=null_rows,
        families=families,
        weigh=by_probability,
    )


def by_probability(values: Float[Tensor, "rows outputs"]) -> Float[Tensor, " outputs"]:
    """From log-probabilities, sqrt of each token's mean probability: squared distances are then about twice a KL."""
    return values.exp().mean(0).sqrt()


def chosen_places(
    Y: Int[np.ndarray, "rows features"], groups: Int[np.ndarray, " rows"], count: int, *, seed: int
) -> Int[np.ndarray, " places"]:
    """Half of the places in the third of the documents where directions are tried, half in the others.

    In each, features take turns to add a row where they are on and one where they are off, so that rare ones are tried.
    """
    tried = halves(units(groups, seed=seed), 3, seed=seed) == 2
    rng, found = np.random.default_rng([seed, 101]), set[int]()
    for part in (tried, ~tried):
        order = rng.permutation(np.flatnonzero(part))
        queues = [iter(order[Y[order, f] == value]) for f in range(Y.shape[1]) for value in (1, 0)]
        most = len(found) + min(count // 2, len(order))
        while queues and len(found) < most:
            queues = [queue for queue in queues if _add(found, queue, most)]
    return np.array(sorted(found))


def _add(found: set[int], queue: Iterator[int], most: int) -> bool:
    """Add the next one that is not there; False where the queue is at its end."""
    if len(found) >= most:
        return False
    for row in queue:
        if int(row) not in found:
            found.add(int(row))
            return True
    return False


def _whole_documents(groups: Int[np.ndarray, " rows"], rows: int, *, seed: int) -> Int[np.ndarray, " some"]:
    """Rows of documents in a random order, `rows` of them at least where there are as many."""
    order = np.random.default_rng([seed, 107]).permutation(int(groups.max()) + 1)
    ends = np.bincount(groups)[order].cumsum()
    kept = order[: max(FEWEST_DOCUMENTS, int(np.searchsorted(ends, rows)) + 1)]
    return np.flatnonzero(np.isin(groups, kept))

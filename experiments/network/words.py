"""What experiments on words work on: a model's activations at the words of a labelled corpus, layer by layer."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int, Shaped

from experiments.network.networks import network
from toolkit.activations import harvest
from toolkit.alignment import token_labels
from toolkit.corpora import Document
from toolkit.errors import require
from toolkit.labelled import Labelled, read_labelled
from toolkit.text_files import CONLLU

LAYER = "upos"
"""Universal parts of speech."""
FEWEST = 5
"""Words of a part of speech that folds can share."""


class Given(Protocol):
    """The settings that decide what is read."""

    @property
    def model(self) -> str:
        """Hub name or folder."""

    @property
    def corpus(self) -> str:
        """CoNLL-U, a file or a folder."""

    @property
    def replicates(self) -> int:
        """Parts of the corpus, without a document in common."""

    @property
    def rows(self) -> int:
        """Words in each, up to whole documents."""

    @property
    def words(self) -> int:
        """Of each document at most, up to whole sentences."""

    @property
    def layers(self) -> int:
        """Blocks read, evenly spaced, the last among them."""


@dataclass(frozen=True)
class Words:
    """Rows of several layers for the same words."""

    layers: dict[int, Float[np.ndarray, "rows d"]]
    """By depth: 0 for the token embedding, i for the output of block i, counted from 1; float32."""
    labels: Shaped[np.ndarray, " rows"]
    """Parts of speech."""
    types: Shaped[np.ndarray, " rows"]
    """The words as they are written."""
    documents: Int[np.ndarray, " rows"]
    """Documents."""


def lacking(corpus: str) -> str:
    """Why a corpus will not do, in one line; "" where it will, or none is given."""
    path = Path(corpus)
    if not corpus or any(file.name.endswith(CONLLU) for file in (path, *path.rglob("*"))):
        return ""
    return f"{corpus} has no parts of speech: --corpus takes Universal Dependencies, a folder or file of .conllu"


def read_words(settings: Given, arm: str, replicate: int, seed: int) -> Words:
    """The words of one part of the corpus, with rows of the model as it is ("trained") or before training ("random").

    A word's row is that of its last token, where a model that reads from left to right has read all of it. Sentences
    are read one at a time. Parts of speech with fewer than FEWEST words in the part are left out.

    Raises:
        UserError: the corpus is no CoNLL-U or too small, the model cannot be read or has no tokenizer.
    """
    labelled = _labelled(settings.corpus)
    model = network(settings.model, arm, seed=997 * seed + replicate)
    require(model.tokenizer is not None, f"{model.name} has no tokenizer: words cannot be turned into its tokens")
    texts = texts_of(labelled, settings, replicate, seed)
    found = token_labels(labelled, model.tokenizer, LAYER)
    kept = np.isin(found.texts, texts)
    depth = int(model.bridge.cfg.n_layers)
    depths = np.unique(np.linspace(0, depth, settings.layers + 1).round().astype(int)).tolist()
    hooks = {place: f"blocks.{place - 1}.hook_resid_post" if place else "hook_embed" for place in depths}
    rows = harvest(model, [Document(str(t), labelled.texts[t]) for t in texts], hooks.values())
    length = 1 + max(rows.positions.max(), found.positions.max())
    places = rows.documents * length + rows.positions  # rising: rows stand in the order of the text
    at = np.searchsorted(places, np.searchsorted(texts, found.texts[kept]) * length + found.positions[kept])
    require(bool((rows.tokens[at] == found.ids[kept]).all()), f"{model.name} reads other tokens than its words have")
    words, codes = np.array(labelled.words)[found.words[kept]], found.codes[kept]
    often = np.bincount(codes)[codes] >= FEWEST
    layers = {place: rows.rows(hook)[at[often]].astype(np.float32) for place, hook in hooks.items()}
    return Words(layers, np.array(found.values)[codes[often]], words[often], found.documents[kept][often])


def texts_of(labelled: Labelled, settings: Given, replicate: int, seed: int) -> Int[np.ndarray, " texts"]:
    """The sentences of one part: documents in a random order are dealt out until each part has its words.

    Raises:
        UserError: the corpus has too few words.
    """
    sizes = np.diff(labelled.starts)
    first = np.unique(labelled.documents, return_index=True)[1]  # sentences of a document follow one another
    before = sizes.cumsum() - sizes
    early = before - before[first][labelled.documents] < settings.words
    held = np.bincount(labelled.documents, sizes * early)
    order = np.random.default_rng([seed, 53]).permutation(len(held))
    total, wanted = int(held.sum()), settings.replicates * settings.rows
    require(total >= wanted, f"{settings.corpus} has {total} words in the beginnings of its documents: {wanted} needed")
    part = np.empty(len(held), int)
    part[order] = (held[order].cumsum() - held[order]) // settings.rows
    return np.flatnonzero(early & (part[labelled.documents] == replicate) & (sizes > 0))


@lru_cache(maxsize=1)
def _labelled(corpus: str) -> Labelled:
    return read_labelled(corpus)

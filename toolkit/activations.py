"""Activations of a language model at named hooks, streamed over documents into memory-mapped float16 files.

```python
model = load_model("tiny-gpt2")
found = harvest(model, documents("nltk:movie_reviews"), ["blocks.2.hook_resid_post"], cache=Path("activations"))
found.rows("blocks.2.hook_resid_post")    # (rows, d) float16; found.documents, .positions, .tokens say which
```
"""

import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toolkit.activation_cache import FORMAT, ActivationCache, corpus_hash, key_of, open_cache
from toolkit.corpora import Document
from toolkit.descent import Progress
from toolkit.errors import UserError, require
from toolkit.folder_lock import let_go_on_failure
from toolkit.forward import Forward, check_hooks, forward_to
from toolkit.language import LanguageModel
from toolkit.windows import Counted, Cutting, batches_of

CONTEXT = 256
"""Tokens in a window: SAEs are commonly trained on 128 to 1,024."""
BATCH = 4096
"""Tokens in a forward pass: two cores gain nothing beyond; a GPU wants more."""
LARGEST = 65504.0
"""The largest float16."""


class Batch(NamedTuple):
    """Windows side by side."""

    tokens: Int[Tensor, "windows positions"]
    """Padding on the right, a beginning token on the left where the tokenizer has one."""
    mask: Bool[Tensor, "windows positions"]
    """True for tokens of the text: not padding, not special."""


@dataclass(frozen=True)
class Activations:
    """Activations of a corpus and where each row comes from. Rows stand in the order of the text."""

    model: str
    """Whose they are."""
    hooks: tuple[str, ...]
    """Where they were read."""
    counted: Counted
    """Documents, windows, rows, tokens masked as special, places of padding."""
    cutting: Cutting
    """How the text was cut."""
    cache: ActivationCache
    """The files."""
    read: bool
    """True where every row came from the cache and the model was not run."""
    kept: Any = None
    """The temporary folder, where there is no other; it goes when this object goes."""

    def rows(self, hook: str) -> Float[np.ndarray, "rows d"]:
        """The rows of a hook, float16, memory-mapped and read-only."""
        require(hook in self.hooks, f"{hook} was not harvested: there are {', '.join(self.hooks)}")
        return np.load(self.cache.file(hook), mmap_mode="r")

    @property
    def documents(self) -> Int[np.ndarray, " rows"]:
        """Each row's document, as its place in the corpus."""
        return self.cache.arrays["documents"]

    @property
    def positions(self) -> Int[np.ndarray, " rows"]:
        """Each row's token as a place in its document, special tokens counted too."""
        return self.cache.arrays["positions"]

    @property
    def tokens(self) -> Int[np.ndarray, " rows"]:
        """Each row's token."""
        return self.cache.arrays["tokens"]

    def batches(
        self, documents: Iterable[int] | None = None, *, batch: int | None = None, places: int | None = None
    ) -> list[Batch]:
        """The windows again, as tokens and mask: all, or those of some documents, in the order given.

        Args:
            batch: tokens side by side at most, by default as many as in the harvest.
            places: stop with the window that reaches this many tokens.
        """
        windows, lead = self.cache.arrays["windows"], self.cutting.lead
        chosen = np.arange(len(windows)) if documents is None else self._windows_of(documents)
        lengths = windows[chosen, 1] + lead
        if places is not None:
            chosen = chosen[: int(np.searchsorted(lengths.cumsum(), places)) + 1]
        order = batches_of(lengths[: len(chosen)], batch or self.cutting.batch)
        return [_batch(self.cache, self.cutting, chosen[some]) for some in order]

    def _windows_of(self, documents: Iterable[int]) -> Int[np.ndarray, " windows"]:
        """Windows that hold rows of some documents, one document after another."""
        firsts = self.cache.arrays["windows"][:, 2]
        found = [np.zeros(0, dtype=np.int64)]
        for document in documents:
            start, stop = np.searchsorted(self.documents, [document, document + 1])
            if stop > start:
                found.append(np.arange(np.searchsorted(firsts, start, side="right") - 1, np.searchsorted(firsts, stop)))
        return np.concatenate(found)


def harvest(
    model: LanguageModel,
    documents: Iterable[Document],
    hooks: Iterable[str],
    *,
    context: int = CONTEXT,
    batch: int = BATCH,
    rows: int = 0,
    cache: Path | None = None,
    progress: Callable[[int], AbstractContextManager[Progress]] | None = None,
) -> Activations:
    """Run a model over documents and keep its activations at some hooks, a row for each token of the text.

    A document longer than the context is cut into windows. Each window is read from its beginning token on, where
    the tokenizer has one; that row, other special tokens and padding are masked. Values are rounded to float16: 11
    bits, a relative error of at most 4.9e-4. Memory does not grow with the corpus beyond the documents themselves,
    which may be any collection that can be gone through twice.

    Args:
        documents: texts; `toolkit.corpora.documents` reads them from files, corpora by name, data sets.
        context: tokens in a window, its beginning token included; at most what the model takes.
        batch: tokens in a forward pass, padding included.
        rows: stop after the document in which this many rows are reached; 0: never.
        cache: folder of caches, to be read by later runs; without it a temporary folder is used and removed.
        progress: called with the number of blocks to be computed; a context that gives what is called with blocks done.

    Raises:
        UserError: an unknown hook or one without a row for each token, no tokenizer, no text, a value that float16
            cannot hold (named with its document: clipped it would be a false row, and infinite one that spoils means).
    """
    hooks = tuple(dict.fromkeys(hooks))
    check_hooks(model, hooks)
    require(bool(hooks), "no hook was named: give one such as blocks.0.hook_resid_post")
    require(model.tokenizer is not None, f"{model.name} has no tokenizer: text cannot be turned into its tokens")
    require(iter(documents) is not documents, "documents are gone through twice: give a list, not an iterator")
    cutting = Cutting(model.tokenizer, min(context, model.context), batch, rows)
    require(
        cutting.context > cutting.lead, f"context={context} leaves no room for text: it counts the beginning token too"
    )
    require(batch > 0, f"batch must be positive, got {batch}: tokens in a forward pass")
    _refuse_changed(model)
    settings = _settings(model, corpus_hash(documents), cutting, hooks)
    kept = tempfile.TemporaryDirectory(prefix="activations-") if cache is None else None
    root = Path(kept.name) if kept is not None else Path(cache or "")
    folder = root / key_of(settings)
    forward = None if folder.is_dir() else forward_to(model, hooks)  # refuses hooks before the corpus is cut
    try:
        with let_go_on_failure(folder):
            store = open_cache(folder, settings, documents, cutting)
            require(store.counted.rows > 0, "the corpus holds no text: there is no token to harvest")
            store.verify(hooks)
            missing = store.missing(hooks)
            if missing:
                with progress(len(missing)) if progress else nullcontext(lambda done: None) as tell:
                    _compute(store, forward or forward_to(model, hooks), cutting, missing, tell)
    except OSError as error:
        raise UserError(f"cannot keep activations in {root}: {error.strerror or error}") from error
    return Activations(model.name, hooks, store.counted, cutting, store, not missing, kept)


def _refuse_changed(model: LanguageModel) -> None:
    """Rows of a model with hooks on it would be kept under the name of the model without."""
    hooked = [name for name, point in model.bridge.hook_dict.items() if getattr(point, "fwd_hooks", None)]
    require(not hooked, f"{model.name} has hooks on it, first at {hooked[0] if hooked else ''}: harvest without them")


def _settings(model: LanguageModel, corpus: str, cutting: Cutting, hooks: tuple[str, ...]) -> dict[str, Any]:
    """Everything that decides the bytes of a harvest, as JSON values; its hash names the folder."""
    return {
        "format": FORMAT,
        "model": model.name,
        "weights": model.weights_hash,
        "architecture": sha256(model.bridge.original_model.config.to_json_string().encode()).hexdigest(),
        "processing": list(model.processing),
        "corpus": corpus,
        **cutting.settings(),
        "hooks": sorted(hooks),
        "dtype": "float16",
    }


def _compute(store: ActivationCache, forward: Forward, cutting: Cutting, blocks: list[int], tell: Progress) -> None:
    """Blocks one after another; while one is computed the last is hashed and written."""
    with ThreadPoolExecutor(1) as writer:
        written: Future[None] | None = None
        for block in blocks:
            rows = _block(store, forward, cutting, block)
            if written is not None:
                written.result()
            written = writer.submit(store.write, block, rows)
            tell(1)
        if written is not None:
            written.result()


def _block(store: ActivationCache, forward: Forward, cutting: Cutting, block: int) -> dict[str, np.ndarray]:
    """A block's rows at every hook, in the order of the text."""
    first, last = (int(window) for window in store.arrays["blocks"][block : block + 2])
    start, stop = store.span(block)
    found = {hook: np.empty((stop - start, forward.widths[hook]), np.float16) for hook in forward.hooks}
    lengths = store.arrays["windows"][first:last, 1] + cutting.lead
    for some in batches_of(lengths, cutting.batch):
        batch = _batch(store, cutting, first + some)
        places = _places(store, first + some, batch.mask) - start
        for hook, values in forward(batch.tokens).items():
            found[hook][places] = _half(values[batch.mask.to(values.device)], hook, store, places + start)
    return found


def _batch(store: ActivationCache, cutting: Cutting, windows: np.ndarray) -> Batch:
    """Windows by number, the longest first, padded to it."""
    spans = store.arrays["windows"][windows]
    lead, widest = cutting.lead, int(spans[:, 1].max())
    tokens = np.full((len(windows), lead + widest), cutting.beginning or 0, dtype=np.int64)
    real = np.zeros(tokens.shape, dtype=bool)
    for row, (start, length, _) in enumerate(spans.tolist()):
        tokens[row, lead : lead + length] = store.arrays["ids"][start : start + length]
        real[row, lead : lead + length] = True
    real &= ~np.isin(tokens, cutting.special)
    return Batch(torch.from_numpy(tokens), torch.from_numpy(real))


def _places(store: ActivationCache, windows: np.ndarray, mask: Tensor) -> Int[np.ndarray, " kept"]:
    """The row of each token that is kept, in the order in which a mask picks them."""
    counts = mask.sum(1).numpy()
    firsts = store.arrays["windows"][windows, 2]
    within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return np.repeat(firsts, counts) + within


def _half(values: Tensor, hook: str, store: ActivationCache, rows: np.ndarray) -> Float[np.ndarray, "rows d"]:
    """Values as float16, refused where it cannot hold them."""
    halves = values.to(torch.float16)
    bad = (~halves.isfinite()).any(1)
    if bool(bad.any()):
        at = int(bad.int().argmax())
        reached = float(values[at].abs().nan_to_num(nan=float("inf")).max())
        document = int(store.arrays["documents"][rows[at]])
        raise UserError(
            f"{hook} reaches {reached:g} in document {document}, and float16 ends at {LARGEST:g}: choose another hook"
        )
    return halves.cpu().numpy()

"""Harvesting activations against a bare Hugging Face forward pass to the same layer, on the same batches."""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM

from benchmarks.timing import show
from toolkit.activations import Activations, Batch, harvest
from toolkit.corpora import Document
from toolkit.forward import forward_to
from toolkit.language import LanguageModel, load_model
from toolkit.model_files import find_model

ROUNDS = 5
CHARACTERS = {"small": 200_000, "large": 24_000}
"""Text for models below and above fifty million weights: some seconds each on two cores."""
GROWTH = 4
"""How much larger the second corpus is whose memory is measured."""
CONTEXT = 256


def report(model: str | None) -> None:
    """Print tokens a second of a bare pass and of ours, the cost of the cache, and peak memory at two sizes."""
    name = model or "tiny-gpt2"
    loaded = load_model(name)
    size = sum(weight.numel() for weight in loaded.bridge.original_model.base_model.parameters())
    characters = CHARACTERS["small" if size < 50e6 else "large"]
    hook = f"blocks.{loaded.bridge.cfg.n_layers // 2}.hook_resid_post"
    with tempfile.TemporaryDirectory() as folder:
        found = harvest(loaded, texts(characters), [hook], context=CONTEXT, cache=Path(folder))
        title = f"{hook} of {name}, {found.counted.rows:,} rows, medians of {ROUNDS} rounds"
        show(title, HEAD, rates(loaded, hook, found, texts(characters)))
        start = time.perf_counter()
        assert harvest(loaded, texts(characters), [hook], context=CONTEXT, cache=Path(folder)).read
        print(f"reading the cache again, every checksum: {time.perf_counter() - start:.3f} s")
    sizes = (characters, GROWTH * characters)
    peaks = [peak(name, hook, some) for some in sizes]
    print("peak memory:", ", ".join(f"{p:.3f} GB at {c:,} characters" for p, c in zip(peaks, sizes, strict=True)))


HEAD = ("pass", "tokens / s", "over the bare pass", "its range", "by processor time")


def texts(characters: int) -> list[Document]:
    """The repository's own source, over and over: text that is always there."""
    files = sorted((Path(__file__).parents[1] / "toolkit").glob("*.py"))
    found: list[Document] = []
    while sum(len(document.text) for document in found) < characters:
        path = files[len(found) % len(files)]
        found.append(Document(f"{len(found)} {path.name}", path.read_text()))
    return found


def rates(model: LanguageModel, hook: str, found: Activations, documents: list[Document]) -> list[tuple[str, ...]]:
    """A line a way; the ways take turns, so that whatever else the machine does slows all alike."""
    batches = found.batches()
    bare = bare_pass(model, hook)
    ours = forward_to(model, [hook])
    ways: dict[str, Callable[[], object]] = {
        "bare Hugging Face": lambda: [bare(batch.tokens) for batch in batches],
        "TransformerBridge": lambda: [bridged_pass(model, hook, batch) for batch in batches],
        "forward_to": lambda: [ours(batch.tokens) for batch in batches],
        "harvest, all of it": lambda: anew(model, hook, documents),
    }
    wall: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, way in ways.items():
            start, used = time.perf_counter(), time.process_time()
            way()
            wall[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - used)
    lines = []
    for name in ways:
        ratios, used_ratios = (sorted(over(taken, name)) for taken in (wall, processor))
        rate = f"{found.counted.rows / median(wall[name][1:]):,.0f}"
        spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        lines.append((name, rate, f"{median(ratios):.3f}", spread, f"{median(used_ratios):.3f}"))
    return lines


def over(taken: dict[str, list[float]], name: str) -> list[float]:
    """Speed over the bare pass, round by round; the first round warms up."""
    return [bare / ours for bare, ours in zip(taken["bare Hugging Face"][1:], taken[name][1:], strict=True)]


class _EnoughError(Exception):
    pass


def bare_pass(model: LanguageModel, hook: str) -> Callable[[torch.Tensor], object]:
    """The Hugging Face model as loaded, ended after the block of a hook by an exception."""
    files = find_model(model.name, model.revision)
    network = AutoModelForCausalLM.from_pretrained(files.name, dtype=torch.float32).eval().base_model

    def end(*_: object) -> None:
        raise _EnoughError

    blocks = next(part for part in network.children() if isinstance(part, torch.nn.ModuleList))
    blocks[int(hook.split(".")[1])].register_forward_hook(end)

    @torch.inference_mode()
    def run(tokens: torch.Tensor) -> None:
        with suppress(_EnoughError):
            network(input_ids=tokens, use_cache=False)

    return run


def bridged_pass(model: LanguageModel, hook: str, batch: Batch) -> object:
    """The same through TransformerBridge, stopped after the layer."""
    layer = int(hook.split(".")[1])
    with torch.no_grad():
        return model.bridge.run_with_cache(batch.tokens, names_filter=hook, stop_at_layer=layer + 1)


def anew(model: LanguageModel, hook: str, documents: list[Document]) -> None:
    """A whole harvest: hashing text, tokenising, the pass, rounding, writing, checksums; weights are hashed before."""
    with tempfile.TemporaryDirectory() as folder:
        harvest(model, documents, [hook], context=CONTEXT, cache=Path(folder))


PEAK = """
import sys
from pathlib import Path
from benchmarks.harvest import CONTEXT, peak_here, texts
from toolkit.activations import harvest
from toolkit.language import load_model
model = load_model(sys.argv[1])
harvest(model, texts(int(sys.argv[3])), [sys.argv[2]], context=CONTEXT)
print(peak_here())
"""


def peak_here() -> float:
    """Peak resident memory of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak(model: str, hook: str, characters: int) -> float:
    """Peak memory of a process that harvests so much text, in GB."""
    words = [sys.executable, "-c", PEAK, model, hook, str(characters)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])

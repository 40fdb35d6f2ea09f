"""The explorer at 10,000 latents: seconds to compute its pages and to write them, first paint in headless Chromium.

A random topk SAE on Gaussian rows stands for a trained one: as many latents on, contexts as long, files as large.
"""

import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import show
from experiments.explorer import write_explorers
from toolkit.language import load_model
from toolkit.latent_logits import logit_effects
from toolkit.latent_pages import FOLDER, TOKENS, Text, write_latents
from toolkit.sae import SAE, SAEConfig

LATENTS, ROWS, K, DOCUMENT = 10_000, 200_000, 32, 500
PAINTS = 5


def report() -> None:
    """Print a table: what each step takes, how large the files are."""
    with tempfile.TemporaryDirectory() as kept:
        run = Path(kept) / "activations-tiny-gpt2-gaussian" / "001"
        run.mkdir(parents=True)
        begun = time.perf_counter()
        plant(run)
        computed = time.perf_counter()
        found, _ = write_explorers(Path(kept), Path(kept) / "report.html")
        written = time.perf_counter()
        files = [path.stat().st_size for path in found[0].page.parent.iterdir()]
        lines = [
            ("compute and write latents/", f"{computed - begun:.1f} s"),
            ("write the explorer", f"{written - computed:.1f} s"),
            ("its files", f"{sum(files) / 2**20:.0f} MiB in {len(files)}"),
            ("index.html", f"{found[0].page.stat().st_size / 2**20:.1f} MiB"),
        ]
        show(f"Explorer of {LATENTS:,} latents from {ROWS:,} rows", ("", ""), lines + paints(found[0].page))


def plant(run: Path) -> None:
    """A run's result and its pages of latents."""
    model, draw = load_model(), torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(LATENTS, model.d_model, generator=draw), dim=1)
    parameters = {"W_enc": decoder[None], "W_dec": decoder[None], "b_enc": torch.zeros(1, LATENTS),
                  "b_dec": torch.zeros(1, model.d_model)}  # fmt: skip
    sae = SAE(SAEConfig(width=LATENTS, k=K), "random", parameters, torch.zeros(1, 1))
    places = np.arange(ROWS)
    tokens = np.random.default_rng(0).integers(0, model.vocabulary, ROWS)
    text = Text(places // DOCUMENT, places % DOCUMENT, tokens, places < ROWS // 10)
    rows = (torch.randn(2**14, model.d_model, generator=draw) for _ in range(-(-ROWS // 2**14)))
    exact = (piece[: min(len(piece), ROWS - 2**14 * at)] for at, piece in enumerate(rows))
    effects = logit_effects(model, decoder, TOKENS)
    write_latents(run / FOLDER, sae, exact, text, model.tokenizer, effects, seed=0)
    part = {"model": "tiny-gpt2", "hook": "gaussian", "corpus": "random tokens", "sae": ""}
    config = {"activations": part, "sae": {"architecture": "topk", "width": LATENTS}}
    (run / "result.json").write_text(json.dumps({"config": config, "metrics": {}}))


def paints(page: Path) -> list[tuple[str, str]]:
    """Of the page and of a deep link to its last latent, medians of a few fresh loads: first contentful paint, and
    when a latent's own page stands, seen from outside."""
    from playwright.sync_api import sync_playwright

    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        return [("first paint", "no chromium here")]
    lines = []
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        for name, place in (("first paint", ""), ("first paint, last latent", f"#{LATENTS - 1}")):
            both = [_paint(chromium, page.as_uri() + place) for _ in range(PAINTS)]
            painted, whole = (sorted(seconds)[PAINTS // 2] for seconds in zip(*both, strict=True))
            lines.append((name, f"{painted:.2f} s, its latent {whole:.2f} s"))
        chromium.close()
    return lines


def _paint(chromium, url: str) -> tuple[float, float]:
    context = chromium.new_context()
    tab = context.new_page()
    begun = time.perf_counter()
    tab.goto(url, timeout=120_000)
    tab.locator("main h1").wait_for(timeout=120_000)
    whole = time.perf_counter() - begun
    milliseconds = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    context.close()
    return milliseconds / 1000, whole

"""What tests share: checked annotations, the data folder, a real and a tiny language model, the command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# Set before torch and the hub's client are imported: they read their environment once. Threads that wait asleep
# change no number, and on a machine with other work they spare the tests most of their time.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
DEFAULT_MODEL = Path.home() / ".cache" / "smollm2-135m"

HOOKED = (
    "activation_cache",
    "activation_report",
    "activations",
    "alignment",
    "attribution",
    "bits",
    "block_step",
    "boolean",
    "certified_codes",
    "circularity",
    "code_length",
    "cluster_scores",
    "control_tasks",
    "corpora",
    "descent",
    "devices",
    "discriminants",
    "downstream",
    "figures",
    "fit_activations",
    "fit_embedding",
    "fit_tms",
    "heads",
    "held_out",
    "forward",
    "frozen_decoder",
    "groups",
    "hierarchies",
    "interaction_basis",
    "interactions",
    "interventions",
    "jumps",
    "label_permutations",
    "labelled",
    "language",
    "latent_events",
    "latent_logits",
    "latent_moves",
    "latent_pages",
    "lbfgs",
    "logistic",
    "maps",
    "matched_scale",
    "metrics",
    "mid_stream",
    "model_files",
    "modular_addition",
    "motifs",
    "movements",
    "networks",
    "nltk_corpora",
    "path_gradient",
    "permutation_null",
    "phase_transition",
    "phases",
    "planted_embedding",
    "plateau_curves",
    "plateaus",
    "pretrain_data",
    "pretrain_folder",
    "pretrain_job",
    "pretrain_optimiser",
    "pretraining",
    "processes",
    "random_rows",
    "row_changes",
    "runs",
    "probe_search",
    "sae",
    "sae_losses",
    "sae_scores",
    "sae_training",
    "same_norm",
    "scoring",
    "selectivity_interval",
    "selectivity_limits",
    "sensitivity",
    "shallow",
    "sources",
    "sparse_coding",
    "spectra",
    "sphere_search",
    "splicing",
    "splits",
    "steering",
    "steering_effects",
    "steering_program",
    "steering_results",
    "superposed_circuits",
    "superposition_error",
    "text_files",
    "token_baselines",
    "token_loss",
    "toy",
    "trained_circuits",
    "tying",
    "type_ceilings",
    "unigrams",
    "weight_processing",
    "windows",
)
"""Modules whose annotations, shapes included, are checked at each call. Those with compiled code cannot be, and
contexts refuses wrong values in a line of its own."""

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An int is good where a float is asked for, as PEP 484 has it."""

assert not any(f"toolkit.{name}" in sys.modules for name in HOOKED), "the import hook comes too late to check anything"
CONTROLS = (
    "asked_each",
    "audit_page",
    "best_directions",
    "finder_nulls",
    "half_moments",
    "initialised",
    "input_nulls",
    "label_nulls",
    "label_searches",
    "model_weights",
    "natural_moves",
    "network_matrices",
    "noise_property",
    "perturbations",
    "random_text",
    "refits",
    "steering_nulls",
    "surrogates",
    "weight_nulls",
    "weights",
    "world_and_circuit",
    "world_bystander",
    "world_circuits",
    "world_documents",
    "world_dormant",
    "world_four_kinds",
    "world_read_and_idle",
    "world_spectral",
    "world_token_identity",
    "worlds",
)
"""The same for modules of controls."""
install_import_hook(
    [*(f"toolkit.{name}" for name in HOOKED), *(f"controls.{name}" for name in CONTROLS)], "conftest.checked"
)


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def data():
    """The folder of corpora that TOOLKIT_TEST_DATA names, by default shared/data beside the checkout."""
    folder = Path(os.environ.get("TOOLKIT_TEST_DATA", SHARED / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}: set TOOLKIT_TEST_DATA to the folder that holds text/ and nltk/")
    return folder


@pytest.fixture(scope="session")
def real_model():
    """A folder with a pretrained model: TOOLKIT_TEST_MODEL, or SmolLM2 where it is kept or can be had."""
    if "TOOLKIT_TEST_MODEL" in os.environ:
        folder = Path(os.environ["TOOLKIT_TEST_MODEL"])
        if not _is_complete(folder):
            pytest.skip(f"TOOLKIT_TEST_MODEL={folder} lacks model.safetensors or tokenizer.json")
        return folder
    if not _is_complete(DEFAULT_MODEL):
        script = SHARED / "tools" / "get_smollm2.py"
        if not script.is_file():
            pytest.skip(f"no model in {DEFAULT_MODEL} and no {script} to write it: set TOOLKIT_TEST_MODEL to a folder")
        command = [sys.executable, str(script), "--out", str(DEFAULT_MODEL)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0 or not _is_complete(DEFAULT_MODEL):
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            pytest.skip(f"{script.name} did not write {DEFAULT_MODEL}: {reason}")
    return DEFAULT_MODEL


def _is_complete(folder):
    return all((folder / name).is_file() for name in ("model.safetensors", "tokenizer.json"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a random GPT-2 of one layer, 16 wide, and a byte-level tokenizer with a few merges."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny"
    end = "<|endoftext|>"
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[end], initial_alphabet=letters, show_progress=False)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trained.train_from_iterator(["the cat sat on the mat, the cat sat", "on a mat"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, unk_token=end, eos_token=end, bos_token=end)

    size = {"vocab_size": len(tokenizer), "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tms():
    """Flags of a run on toy models that takes about a second."""
    return ("--target", "tms", "--quiet", "--instances", "3", "--toy-steps", "200", "--toy-batch", "64",
            "--steps", "120", "--batch", "64", "--dead-after", "20")  # fmt: skip


@pytest.fixture(scope="session")
def tiny_embedding(tiny_model):
    """Flags of a run on the tiny model's embedding."""
    return ("--target", "embedding", "--model", str(tiny_model), "--quiet", "--width", "32", "--k", "4",
            "--steps", "120", "--batch", "64")  # fmt: skip


@pytest.fixture(scope="session")
def fit():
    """Run the command in this process, to its end; returns the folder it wrote."""
    from toolkit.sae_fit import main

    def run(*argv):
        assert main([str(word) for word in argv]) == 0
        done = Path(argv[argv.index("--out") + 1]).glob("*/*/result.json")
        return max(done, key=lambda path: path.stat().st_mtime_ns).parent

    return run


@pytest.fixture(scope="session")
def tms_run(fit, tiny_tms, tmp_path_factory):
    """The folder of one run on toy models."""
    return fit(*tiny_tms, "--out", tmp_path_factory.mktemp("tms"))


@pytest.fixture(scope="session")
def embedding_run(fit, tiny_embedding, tmp_path_factory):
    """The folder of one run on the tiny model's embedding."""
    return fit(*tiny_embedding, "--out", tmp_path_factory.mktemp("embedding"))


@pytest.fixture(scope="session")
def result_of():
    """Read a folder's result.json, by a parser that takes no NaN."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return lambda folder: json.loads((folder / "result.json").read_text(), parse_constant=refuse)


@pytest.fixture
def run_main(capfd):
    """Run the command in this process."""
    from toolkit.sae_fit import main

    def run(*argv):
        capfd.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code
        return Ended(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def dask_cluster():
    """A Dask cluster of two processes on this machine."""
    distributed = pytest.importorskip("distributed", reason="needs the extra 'cluster'")
    import dask

    # What is set for its workers, one thread each, stays in this process's environment, where commands would find it.
    nothing_set = dask.config.set({"distributed.nanny.pre-spawn-environ": {}})
    size = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    with nothing_set, distributed.LocalCluster(**size, host="127.0.0.1", dashboard_address=None) as started:
        yield started


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def run_command():
    """Run the command in a process of its own, or `program` with the same arguments."""

    def run(*argv, program=None, environment=None):
        start = ["-m", "toolkit.sae_fit"] if program is None else ["-c", program]
        command = [sys.executable, *start, *[str(word) for word in argv]]
        settings = {**os.environ, **(environment or {})}
        done = subprocess.run(command, check=False, cwd=ROOT, env=settings, capture_output=True, text=True)
        return Ended(done.returncode, done.stdout, done.stderr)

    return run

"""A cache is read instead of computed, resumed to the same bytes, and never trusted where a byte has changed."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import DOCUMENTS, write_small

from toolkit import activation_cache, activations
from toolkit.activations import harvest
from toolkit.corpora import Document
from toolkit.errors import UserError
from toolkit.language import load_model

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
SIZES = {"context": 16, "batch": 16}
FILES = [*(f"{name}.npy" for name in ("ids", "windows", "tokens", HOOKS[0])), "manifest.json", "journal.txt"]


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    return write_small("gpt2", tiny_model, tmp_path_factory.mktemp("cached") / "gpt2")


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


def run(model, cache, documents=DOCUMENTS, hooks=HOOKS, **changed):
    return harvest(model, documents, hooks, cache=cache, **{**SIZES, **changed})


def content(found):
    return {path.name: path.read_bytes() for path in found.cache.folder.glob("*.npy")}


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """An undisturbed harvest."""
    found = run(model, tmp_path_factory.mktemp("whole"))
    assert found.cache.blocks >= 3
    return content(found)


@pytest.fixture
def is_run(monkeypatch):
    """A list that grows with each block that a model is run for."""
    computed, compute = [], activations._block
    monkeypatch.setattr(activations, "_block", lambda *a: (computed.append(a[3]), compute(*a))[1])
    return computed


def test_a_second_run_reads_and_does_not_call_the_model(model, tmp_path, monkeypatch, whole):
    first = run(model, tmp_path)

    def called(*_):
        raise AssertionError("the model was called")

    monkeypatch.setattr(activations, "forward_to", called)
    monkeypatch.setattr(activation_cache, "cut", called)
    second = run(model, tmp_path)
    assert (first.read, second.read) == (False, True)
    assert content(second) == whole
    assert second.counted == first.counted
    with pytest.raises(AssertionError, match="called"):  # that it would have been seen
        run(model, tmp_path, context=20)


def test_the_files_are_plain_arrays_that_cannot_be_written_to(model, tmp_path):
    found = run(model, tmp_path)
    rows = found.rows(HOOKS[1])
    assert isinstance(rows, np.memmap)
    assert np.array_equal(np.load(found.cache.folder / f"{HOOKS[1]}.npy"), rows)
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 0
    with pytest.raises(UserError, match="not harvested"):
        found.rows("blocks.2.hook_resid_post")


@pytest.mark.parametrize(
    "changed",
    [
        {"documents": [*DOCUMENTS[:-1], Document(DOCUMENTS[-1].name, "the cat sat")]},
        {"documents": [*DOCUMENTS[:-1], replace(DOCUMENTS[-1], name="renamed")]},
        {"documents": [DOCUMENTS[1], DOCUMENTS[0], *DOCUMENTS[2:]]},
        {"hooks": HOOKS[:1]},
        {"context": 12},
        {"batch": 32},
        {"rows": 20},
    ],
    ids=["text", "name", "order", "hooks", "context", "batch", "rows"],
)
def test_other_settings_are_another_cache(changed, model, tmp_path):
    first, other, again = run(model, tmp_path), run(model, tmp_path, **changed), run(model, tmp_path)
    assert not other.read
    assert again.read
    assert len({found.cache.folder for found in (first, other, again)}) == 2


def test_other_weights_processing_or_name_are_another_cache(model, folder, tmp_path):
    moved = load_model(folder)
    with torch.no_grad():
        next(iter(moved.bridge.original_model.parameters()))[0, 0] += 1e-6
    others = [moved, load_model(folder, fold_layer_norm=True), replace(model, name="another")]
    assert len({run(one, tmp_path).cache.folder for one in [model, *others]}) == 4
    assert run(load_model(folder), tmp_path).read


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_an_interrupted_harvest_goes_on_to_the_same_bytes(blocks, model, tmp_path, monkeypatch, whole, is_run):
    block = activations._block

    def interrupted(*given):
        if len(is_run) == blocks:
            raise KeyboardInterrupt
        return block(*given)

    with monkeypatch.context() as patch:
        patch.setattr(activations, "_block", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(model, tmp_path)
    assert is_run == list(range(blocks))
    found = run(model, tmp_path)
    assert is_run == list(range(found.cache.blocks))  # none twice
    assert content(found) == whole


KILLED = """
import os, signal, sys
from pathlib import Path
from small_models import DOCUMENTS
from toolkit import activation_cache, activations
from toolkit.language import load_model
folder, cache, hooks, at, where = sys.argv[1], Path(sys.argv[2]), sys.argv[3].split(), int(sys.argv[4]), sys.argv[5]
if where == "cut":
    activation_cache.key_of = lambda content: os.kill(os.getpid(), signal.SIGKILL) if "counted" in content else "0"
written = []
write = activation_cache.ActivationCache.write
def killed(self, block, rows):
    if len(written) == at:
        with self.file(hooks[0]).open("r+b") as file:   # a block torn in the middle
            file.seek(140 + 32 * self.span(block)[0])
            file.write(b"torn")
        with (self.folder / "journal.txt").open("a") as journal:
            journal.write(f"{block} 16 0123")
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(block)
    write(self, block, rows)
activation_cache.ActivationCache.write = killed
activations.harvest(load_model(folder), DOCUMENTS, hooks, cache=cache, context=16, batch=16)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("at", "where"), [(1, "write"), (2, "write"), (0, "cut")])
def test_a_killed_harvest_goes_on_to_the_same_bytes(at, where, folder, model, tmp_path, whole, is_run):
    words = [folder, str(tmp_path), " ".join(HOOKS), str(at), where]
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words],
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = run(model, tmp_path)
    assert is_run == list(range(at, found.cache.blocks))
    assert content(found) == whole


def flipped(at):
    def change(path):
        raw = bytearray(path.read_bytes())
        raw[round(at * (len(raw) - 1))] ^= 1
        path.write_bytes(raw)

    return change


CHANGES = {
    "first byte": flipped(0),
    "header": flipped(0.02),
    "middle byte": flipped(0.6),
    "last byte": flipped(1),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_cache_is_noticed_and_rebuilt(name, change, model, tmp_path, whole, caplog, is_run):
    found = run(model, tmp_path)
    change(found.cache.folder / name)
    is_run.clear()
    with caplog.at_level(logging.WARNING):
        again = run(model, tmp_path)
    assert content(again) == whole
    if name == "journal.txt":  # it is believed only where the rows agree, so it cannot do harm
        assert len(is_run) <= again.cache.blocks
    elif (name, change) != ("manifest.json", CHANGES["deleted"]):
        harmless = name == "manifest.json" and change is CHANGES["longer"]
        assert harmless or "is damaged" in caplog.text
        assert all("\n" not in record.getMessage() for record in caplog.records)
    caplog.clear()
    assert run(model, tmp_path).read
    assert caplog.text == ""


def test_only_damaged_blocks_are_computed_again(model, tmp_path, is_run, whole):
    found = run(model, tmp_path)
    start, stop = found.cache.span(1)
    rows = np.load(found.cache.file(HOOKS[0]), mmap_mode="r+")
    rows[(start + stop) // 2, 3] += 1
    rows.flush()
    is_run.clear()
    assert content(run(model, tmp_path)) == whole
    assert is_run == [1]


def test_a_manifest_that_lies_about_its_counts_is_not_believed(model, tmp_path, caplog, whole):
    found = run(model, tmp_path)
    path = found.cache.folder / "manifest.json"
    told = json.loads(path.read_text())
    told["counted"]["rows"] -= 5
    path.write_text(json.dumps(told))
    assert content(run(model, tmp_path)) == whole
    assert "manifest.json fails its checksum" in caplog.text


def test_without_a_folder_the_rows_are_the_same_and_go_with_the_object(model, whole):
    found = run(model, None)
    assert content(found) == whole
    folder = found.cache.folder
    assert folder.is_dir()
    found.kept.cleanup()
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_one_line(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot keep activations in") as refused:
        run(model, tmp_path / "file")
    assert "\n" not in str(refused.value)


def test_a_full_disk_is_one_line_and_what_was_written_is_kept(model, tmp_path, monkeypatch, whole, is_run):
    write = activation_cache.ActivationCache.write

    def full(self, block, rows):
        if block == 2:
            raise OSError(28, "No space left on device")
        write(self, block, rows)

    with monkeypatch.context() as patch:
        patch.setattr(activation_cache.ActivationCache, "write", full)
        with pytest.raises(UserError, match="No space left on device"):
            run(model, tmp_path)
    is_run.clear()
    found = run(model, tmp_path)
    assert content(found) == whole
    assert is_run[0] == 2


def test_a_model_changed_in_place_is_another_model(folder, tmp_path, is_run):
    model = load_model(folder)
    before = run(model, tmp_path)
    with torch.no_grad():
        next(model.bridge.original_model.parameters()).mul_(1.5)
    is_run.clear()
    after = run(model, tmp_path)
    assert is_run
    assert not after.read
    assert after.cache.folder != before.cache.folder


def test_the_same_weights_in_another_architecture_are_another_model(folder, tmp_path):
    keys = []
    for function in ("gelu_new", "relu"):
        config = json.loads((Path(folder) / "config.json").read_text())
        other = tmp_path / function / "model"
        shutil.copytree(folder, other)
        (other / "config.json").write_text(json.dumps({**config, "activation_function": function}))
        model = replace(load_model(str(other)), name="model")
        found = run(model, tmp_path / "cache")
        assert not found.read
        keys.append(found.cache.folder.name)
    assert keys[0] != keys[1]


def test_a_model_with_hooks_on_it_is_not_harvested(folder, tmp_path):
    model = load_model(folder)
    doubled = [(HOOKS[0], lambda value, hook: 2 * value)]
    with model.bridge.hooks(fwd_hooks=doubled), pytest.raises(UserError, match="has hooks on it, first at"):
        run(model, tmp_path)
    assert run(model, tmp_path).counted.rows > 0


def test_a_hook_without_rows_leaves_nothing_behind(folder, tmp_path):
    with pytest.raises(UserError, match="hook_pattern"):
        run(load_model(folder), tmp_path, hooks=["blocks.0.attn.hook_pattern"])
    assert list(tmp_path.iterdir()) == []

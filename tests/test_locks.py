"""Two processes at one folder: the second is kept out, or waits, and a dead one keeps nobody out."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_models import DOCUMENTS, write_small

from toolkit import folder_lock, pretrain_folder
from toolkit.activations import harvest
from toolkit.errors import UserError
from toolkit.folder_lock import LOCK, lock
from toolkit.language import load_model
from toolkit.runs import open_run

ROOT = Path(__file__).parents[1]
CONFIG = {"seed": 3}
HOOK = "blocks.0.hook_resid_post"

HOLDER = """
import sys, time
from pathlib import Path
from toolkit.folder_lock import lock
held = lock(Path(sys.argv[1]))
print("held" if held else "refused", flush=True)
time.sleep(600)
"""


@pytest.fixture
def elsewhere():
    """Ask for a folder's lock in a process of its own, which then stays; returns the process and what it got."""
    started = []

    def ask(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield ask
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def kill(process):
    process.kill()
    assert process.wait() == -signal.SIGKILL


def content(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_a_folder_is_held_by_one_process_until_it_dies(elsewhere, tmp_path):
    holder, got = elsewhere(tmp_path)
    assert got == "held"
    assert lock(tmp_path) is None
    assert elsewhere(tmp_path)[1] == "refused"
    kill(holder)
    assert (tmp_path / LOCK).exists()  # stale, and in nobody's way
    assert lock(tmp_path) is not None


def test_a_process_does_not_keep_itself_out_and_lets_others_in_when_it_is_done(elsewhere, tmp_path):
    mine = lock(tmp_path)
    assert lock(tmp_path) is mine
    assert elsewhere(tmp_path)[1] == "refused"
    mine.release()
    holder, got = elsewhere(tmp_path)
    assert got == "held"
    assert lock(tmp_path) is None
    kill(holder)
    again = lock(tmp_path)
    assert again is not mine
    del again  # nobody refers to it any more
    assert elsewhere(tmp_path)[1] == "held"


def test_a_folder_that_is_finished_while_its_lock_is_asked_for_is_gone(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    locked = folder_lock._locked

    def renamed(descriptor, wait):
        if (tmp_path / "a").exists():
            (tmp_path / "a").rename(tmp_path / "b")
        return locked(descriptor, wait)

    monkeypatch.setattr(folder_lock, "_locked", renamed)
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "a")
    assert lock(tmp_path / "b") is not None


def test_a_run_that_another_process_is_writing_is_not_resumed(elsewhere, tmp_path):
    run = open_run(str(tmp_path), "fit", CONFIG, resume=False)
    assert elsewhere(run.folder)[1] == "refused"  # from its first moment on
    run.lock.release()
    holder, _ = elsewhere(run.folder)
    before = content(run.folder)
    with pytest.raises(UserError, match=r"\.001\.unfinished is in use") as refused:
        open_run(str(tmp_path), "fit", CONFIG, resume=True)
    assert "\n" not in str(refused.value)
    assert content(run.folder) == before
    assert open_run(str(tmp_path), "fit", CONFIG, resume=False).folder.name == ".002.unfinished"
    kill(holder)
    (tmp_path / "fit" / ".002.unfinished").rename(tmp_path / "elsewhere")
    assert open_run(str(tmp_path), "fit", CONFIG, resume=True).folder == run.folder


def test_a_run_that_is_finished_while_it_is_to_be_resumed_is_followed_by_another(tmp_path, monkeypatch):
    run = open_run(str(tmp_path), "fit", CONFIG, resume=False)
    run.lock.release()
    locked = folder_lock._locked

    def finished(descriptor, wait):
        if run.folder.exists():
            run.finish({}, {}, [])
        return locked(descriptor, wait)

    monkeypatch.setattr(folder_lock, "_locked", finished)
    assert open_run(str(tmp_path), "fit", CONFIG, resume=True).folder.name == ".002.unfinished"


def test_a_number_that_was_finished_between_the_list_and_the_claim_is_not_given_again(tmp_path, monkeypatch):
    open_run(str(tmp_path), "fit", CONFIG, resume=False).finish({}, {}, [])
    iterdir, seen = Path.iterdir, []

    def late(self):
        seen.append(self)
        return iter(()) if len(seen) == 1 else iterdir(self)

    monkeypatch.setattr(Path, "iterdir", late)
    assert open_run(str(tmp_path), "fit", CONFIG, resume=False).folder.name == ".002.unfinished"
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "fit").iterdir()) == [".002.unfinished", "001"]


def test_a_finished_run_holds_no_lock_and_a_dropped_one_leaves_no_folder(elsewhere, tmp_path):
    done = open_run(str(tmp_path), "fit", CONFIG, resume=False).finish({}, {}, [])
    assert sorted(path.name for path in done.iterdir()) == ["result.json", "run.json", "tensors.safetensors"]
    open_run(str(tmp_path), "fit", CONFIG, resume=False).drop()
    open_run(str(tmp_path), "other", CONFIG, resume=False).drop()
    assert [path.name for path in tmp_path.iterdir()] == ["fit"]
    assert [path.name for path in (tmp_path / "fit").iterdir()] == ["001"]


def test_a_command_says_in_one_line_that_the_run_is_in_use(tiny_tms, run_main, elsewhere, tmp_path):
    assert run_main(*tiny_tms, "--lr", "1e30", "--out", tmp_path).code == 2
    folder = tmp_path / "tms-pentagon" / ".001.unfinished"
    holder, got = elsewhere(folder)
    assert got == "held"  # the command that ended in this process has let it go
    before = content(folder)
    ended = run_main(*tiny_tms, "--lr", "1e30", "--resume", "--out", tmp_path)
    assert ended.code == 2
    assert ended.err == f"error: {folder} is in use: another command is at work in it; wait for its end\n"
    assert content(folder) == before
    kill(holder)
    assert "diverged" in run_main(*tiny_tms, "--lr", "1e30", "--resume", "--out", tmp_path).err


def test_a_training_that_another_process_is_writing_is_left_alone(elsewhere, tmp_path):
    done = tmp_path / "model"
    folder = pretrain_folder.open_folder(done, {"a": 1}, ())
    assert elsewhere(folder.path)[1] == "refused"
    folder.lock.release()
    holder, _ = elsewhere(folder.path)
    with pytest.raises(UserError, match="is in use"):
        pretrain_folder.refuse_existing(done, resume=True)
    with pytest.raises(UserError, match="is in use"):
        pretrain_folder.open_folder(done, {"a": 1}, ())
    kill(holder)
    pretrain_folder.refuse_existing(done, resume=True)
    assert pretrain_folder.open_folder(done, {"a": 1}, ()).lock is not None


def test_a_model_finished_meanwhile_is_not_trained_again(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="exists: choose another folder"):
        pretrain_folder.open_folder(tmp_path / "model", {"a": 1}, ())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.fixture(scope="module")
def small(tiny_model, tmp_path_factory):
    return write_small("gpt2", tiny_model, tmp_path_factory.mktemp("locked") / "gpt2")


def rows_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def test_a_harvest_waits_for_the_one_at_work_and_reads_what_it_left(small, elsewhere, tmp_path, caplog):
    model = load_model(small)
    given = {"context": 16, "batch": 16, "cache": tmp_path}
    whole = harvest(model, DOCUMENTS, [HOOK], **given)
    folder, found = whole.cache.folder, []
    holder, got = elsewhere(folder)
    assert got == "held"  # a harvest that is whole lets others in
    with caplog.at_level(logging.WARNING):
        waiting = threading.Thread(target=lambda: found.append(harvest(model, DOCUMENTS, [HOOK], **given)))
        waiting.start()
        while "waiting for it" not in caplog.text:
            time.sleep(0.01)
        assert found == []
        kill(holder)
        waiting.join()
    assert found[0].read
    assert rows_of(folder) == rows_of(found[0].cache.folder)
    assert len(caplog.records) == 1


HARVESTS = """
import sys
from pathlib import Path
from small_models import DOCUMENTS
from toolkit.activations import harvest
from toolkit.language import load_model
model = load_model(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
found = harvest(model, DOCUMENTS, [sys.argv[3]], cache=Path(sys.argv[2]), context=16, batch=16)
print("read" if found.read else "computed", flush=True)
"""


def together(program, *arguments, count=2):
    """Several processes that begin at the same moment; their lines after it, exit codes and errors."""
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    every = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, **pipes) for _ in range(count)
    ]
    for process in every:
        assert process.stdout.readline() == "ready\n"
    for process in every:
        process.stdin.write("\n")
        process.stdin.flush()
    return [(*process.communicate(), process.returncode) for process in every]


@pytest.mark.slow
def test_two_harvests_into_one_new_folder_give_the_bytes_of_one(small, tmp_path):
    ended = together(HARVESTS, small, tmp_path / "two", HOOK)
    assert sorted(out.strip() for out, _, _ in ended) == ["computed", "read"], ended
    whole = harvest(load_model(small), DOCUMENTS, [HOOK], cache=tmp_path / "one", context=16, batch=16)
    (folder,) = (tmp_path / "two").iterdir()
    assert rows_of(folder) == rows_of(whole.cache.folder)


OPENS = """
import sys
from toolkit.runs import open_run
print("ready", flush=True)
sys.stdin.readline()
for _ in range(10):
    run = open_run(sys.argv[1], "fit", {"seed": 0}, resume=False)
    print(run.finish({}, {}, []).name, flush=True)
"""


@pytest.mark.slow
def test_fresh_runs_of_several_processes_never_share_a_number(tmp_path):
    ended = together(OPENS, tmp_path, count=3)
    assert [code for *_, code in ended] == [0, 0, 0], ended
    numbers = [name for out, *_ in ended for name in out.split()]
    assert sorted(numbers) == sorted({path.name for path in (tmp_path / "fit").iterdir()})
    assert len(set(numbers)) == 30


RESUMES = """
import sys
from toolkit import runs
checkpoint = runs.Run.checkpoint
runs.Run.checkpoint = lambda run, stage: checkpoint(run, stage, every=0.0)
from toolkit.sae_fit import main
print("ready", flush=True)
sys.stdin.readline()
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_of_two_commands_that_resume_one_run_one_is_refused_and_the_other_ends_in_the_same_numbers(
    tiny_tms, fit, run_main, result_of, tmp_path
):
    whole = fit(*tiny_tms, "--out", tmp_path / "whole")
    argv = (*tiny_tms, "--out", str(tmp_path / "two"))
    run = open_run(str(tmp_path / "two"), "tms-pentagon", result_of(whole)["config"], resume=False)
    run.lock.release()
    ended = together(RESUMES, *argv, "--resume")
    assert sorted(code for *_, code in ended) == [0, 2], ended
    (refused,) = [err for _, err, code in ended if code == 2]
    assert refused == f"error: {run.folder} is in use: another command is at work in it; wait for its end\n"
    (done,) = (tmp_path / "two").glob("*/*/result.json")
    assert json.loads(done.read_text())["metrics"] == result_of(whole)["metrics"]
    first, second = (load_file(folder / "tensors.safetensors") for folder in (whole, done.parent))
    assert all(torch.equal(first[name], second[name]) for name in first)

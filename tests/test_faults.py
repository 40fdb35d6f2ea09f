"""What can happen to a long command, and what is left: kills, bits that flip, a full disk, dead workers, a clock."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import faults
from controls import one_control
from controls.__main__ import main as controls_main
from experiments import running
from experiments.__main__ import main as experiments_main
from tests.planted_faults import told
from toolkit import runs
from toolkit.checkpoints import DamagedError, FileCheckpoint, load_sealed, save_sealed
from toolkit.errors import UserError
from toolkit.runs import open_run, writing
from toolkit.sweep import sweep

ROOT = Path(__file__).parents[1]
CELLS = [{"x": x, "seconds": 0} for x in range(4)]
TENSORS = {"W": torch.arange(3.0).view(3, 1), "done": torch.tensor(7), "on": torch.tensor([True]), "no": torch.ones(0)}


def flip(path, bit):
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


# Files that change


def test_a_flipped_bit_is_found_in_whatever_byte_it_is(tmp_path):
    path = tmp_path / "kept.safetensors"
    save_sealed(TENSORS, path)
    assert same(load_sealed(path), TENSORS)
    missed = []
    for bit in (8 * byte + byte % 8 for byte in range(path.stat().st_size)):
        flip(path, bit)
        try:
            if not same(load_sealed(path), TENSORS):
                missed.append(bit)
        except DamagedError:
            pass
        flip(path, bit)
    assert missed == []
    assert same(load_sealed(path), TENSORS)


@pytest.mark.parametrize("size", [0, 7, 40, -1])
def test_a_file_cut_short_is_found(size, tmp_path):
    path = tmp_path / "kept.safetensors"
    save_sealed(TENSORS, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedError):
        load_sealed(path)


def test_a_checkpoint_whose_last_bit_flipped_is_one_line_that_says_what_to_do(tmp_path):
    checkpoint = FileCheckpoint(tmp_path / "checkpoint_sae.safetensors", every=0.0)
    checkpoint.save(lambda: {"W": torch.ones(4)})
    flip(checkpoint.path, 8 * checkpoint.path.stat().st_size - 1)
    with pytest.raises(UserError, match=r"checkpoint_sae\.safetensors is damaged.*delete this file") as told_of:
        checkpoint.load()
    assert "\n" not in str(told_of.value)
    checkpoint.path.unlink()
    assert checkpoint.load() is None


def test_a_cell_whose_bit_flipped_is_named_and_measured_again_to_the_same_number(tmp_path):
    whole = sweep(told, str(tmp_path), CELLS, seed=0, folder=tmp_path)
    kept = tmp_path / "checkpoint_cell_00002.safetensors"
    flip(kept, 8 * kept.stat().st_size - 1)
    with pytest.raises(UserError, match=r"checkpoint_cell_00002\.safetensors is damaged.*delete this file") as told_of:
        sweep(told, str(tmp_path), CELLS, seed=0, folder=tmp_path)
    assert "\n" not in str(told_of.value)
    kept.unlink()
    again = sweep(told, str(tmp_path), CELLS, seed=0, folder=tmp_path)
    assert all(same(one, other) for one, other in zip(again, whole, strict=True))


# A disk that fills


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a small disk of so many kilobytes, or gives it another size; returns where it is."""
    folder, mounted = tmp_path / "disk", []
    folder.mkdir()

    def size(kilobytes):
        how = ["-o", f"{'remount,' if mounted else ''}size={kilobytes}k"]
        done = subprocess.run(
            ["mount", "-t", "tmpfs", *how, "tmpfs", str(folder)], check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
        mounted.append(kilobytes)
        return folder

    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    yield size
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_on_a_full_disk_a_checkpoint_keeps_the_state_before(small_disk):
    checkpoint = FileCheckpoint(small_disk(64) / "checkpoint_a.safetensors", every=0.0)
    checkpoint.save(lambda: {"W": torch.ones(1000)})
    with pytest.raises(UserError, match=r"No space left on device.*make room"), writing(checkpoint.path.parent):
        checkpoint.save(lambda: {"W": torch.ones(100_000)})
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["checkpoint_a.safetensors"]
    assert torch.equal(checkpoint.load()["W"], torch.ones(1000))


def test_a_run_that_meets_a_full_disk_goes_on_once_there_is_room(
    small_disk, tiny_tms, fit, run_main, result_of, tmp_path
):
    whole, out = fit(*tiny_tms, "--out", tmp_path / "whole"), small_disk(40)
    ended = run_main(*tiny_tms, "--out", out)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "make room and use --resume" in ended.err
    assert [path.name for path in (out / "tms-pentagon").iterdir()] == [".001.unfinished"]
    small_disk(40_000)
    folder = fit(*tiny_tms, "--resume", "--out", out)
    assert folder.name == "001"
    assert result_of(folder)["metrics"] == result_of(whole)["metrics"]
    assert faults.differences(whole, folder) == []


# Workers

PARENT = """
import sys
from pathlib import Path
from tests.planted_faults import told
from toolkit.sweep import sweep
folder = Path(sys.argv[1])
cells = [{"x": x, "seconds": float(sys.argv[2])} for x in range(4)]
sweep(told, str(folder), cells, seed=0, folder=folder, workers=2)
"""


def started(folder, seconds):
    """A sweep on two workers in a process of its own, once both are at work; the process and the workers' numbers."""
    words = [sys.executable, "-c", PARENT, str(folder), str(seconds)]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while len(workers := [int(path.name[4:]) for path in folder.glob("pid-*")]) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    return process, workers


def alive(number):
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")
def test_the_workers_of_a_killed_command_end_too(tmp_path):
    process, workers = started(tmp_path, 600)
    assert all(alive(worker) for worker in workers)
    process.kill()
    process.communicate()
    for _ in range(600):
        if not any(alive(worker) for worker in workers):
            return
        time.sleep(0.2)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    pytest.fail("workers live on without the command that started them")


@pytest.mark.slow
def test_a_killed_worker_is_one_line_and_its_cells_are_measured_again(tmp_path):
    process, workers = started(tmp_path, 600)
    os.kill(workers[0], signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 1  # the sweep alone, without the command that turns this into a line
    assert said.strip().splitlines()[-1].startswith("toolkit.errors.UserError: a worker died")
    (tmp_path / "enough").touch()
    again = sweep(told, str(tmp_path), CELLS, seed=0, folder=tmp_path)
    (tmp_path / "whole").mkdir()
    whole = sweep(told, str(tmp_path), CELLS, seed=0, folder=tmp_path / "whole")
    assert all(same(one, other) for one, other in zip(again, whole, strict=True))


# A clock that jumps


@pytest.fixture
def jumping(monkeypatch):
    """The clock on the wall goes a day back each time that somebody looks at it."""
    looks = []

    def look():
        looks.append(0)
        return 2e9 - 86_400 * len(looks)

    monkeypatch.setattr(time, "time", look)
    monkeypatch.setattr("tqdm.std.time", look)
    return looks


def test_a_clock_that_is_set_back_changes_no_number_order_or_progress(jumping, tmp_path, capsys):
    config = {"seed": 0}
    first = open_run(str(tmp_path), "fit", config, resume=False)
    second = open_run(str(tmp_path), "fit", config, resume=False)
    assert second.started < first.started  # by that clock
    assert [run.folder.name for run in (first, second)] == [".001.unfinished", ".002.unfinished"]
    os.utime(second.folder, (0, 0))
    again = open_run(str(tmp_path), "fit", config, resume=True)
    assert again.folder == second.folder
    checkpoint = again.checkpoint("sae", every=1000.0)
    checkpoint.save(lambda: {"step": torch.tensor(1)})
    checkpoint.save(lambda: pytest.fail("kept again at once"))
    done = again.finish({}, {}, [])
    assert 0 <= json.loads((done / "result.json").read_text())["seconds"] < 600
    found = sweep(told, str(tmp_path), CELLS, seed=0, folder=tmp_path, quiet=False, label="cells")
    assert len(found) == 4
    assert "4/4" in capsys.readouterr().err
    assert len(jumping) > 3


# Refusals and interruptions


def test_a_refused_experiment_leaves_no_folder(tmp_path, monkeypatch, capsys):
    def refused(*given):
        raise UserError("refused")

    monkeypatch.setattr(running, "compute", refused)
    words = ["run", "pentagon", "--scale", "smoke", "--workers", "1", "--quiet", "--out"]
    assert experiments_main([*words, str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: refused\n"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_control_does_not_say_that_it_can_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(job, kept):
        raise KeyboardInterrupt

    monkeypatch.setattr(one_control, "ground", interrupted)
    words = ["--hook", "blocks.2.hook_resid_post", "--corpus", "nowhere", "--pca", "1", "--out", str(tmp_path)]
    assert controls_main(["run", "weights.init", *words]) == 130
    assert capsys.readouterr().err == "interrupted: nothing was kept; give it again\n"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("controls.audit_run.ground", interrupted)
    assert controls_main(["audit", *words]) == 130
    assert "--resume goes on from the finished parts" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "audit").iterdir()] == [".001.unfinished"]


def test_a_run_killed_before_it_has_its_name_still_has_its_checkpoints(tmp_path, monkeypatch):
    run = open_run(str(tmp_path), "fit", {"seed": 0}, resume=False)
    run.checkpoint("sae").save(lambda: {"W": torch.ones(2)})
    monkeypatch.setattr(runs.Path, "rename", lambda path, to: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.finish({}, {}, [])
    assert same(run.checkpoint("sae").load(), {"W": torch.ones(2)})


# Kills at random moments


def test_what_differs_between_two_runs_is_found(tmp_path):
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 1.0 + 2**-20)):
        run = open_run(str(tmp_path / name), "fit", {"seed": 0}, resume=False)
        run.finish({"fvu": value}, {"W": torch.tensor([value])}, [])
    (tmp_path / "c" / "more.txt").touch()
    assert faults.differences(tmp_path / "a", tmp_path / "b") == []
    assert faults.differences(tmp_path / "a", tmp_path / "c") == [
        "more.txt is in one only",
        "fit/001/result.json differs",
        "fit/001/tensors.safetensors differs",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy SAEs", "pretraining"])
def test_commands_killed_at_random_moments_end_in_the_numbers_of_one_left_alone(name, tmp_path):
    (command,) = [one for one in faults.commands(tmp_path) if one.name == name]
    found = faults.injected(command, tmp_path / "runs", kills=3, seed=1)
    assert found.differences == ()
    assert found.kills == 3
    assert found.ended > 0

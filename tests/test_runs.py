"""A run folder is whole or absent: numbering, finishing, resuming, and files replaced in one move."""

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit import runs, toy
from toolkit.errors import DivergenceError, UserError
from toolkit.runs import FileCheckpoint, open_run, plain, write_json, writing

ROOT = Path(__file__).parents[1]
CONFIG = {"seed": 3, "sae": {"width": 8}}


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def opened(folder, *, resume=False, config=CONFIG):
    return open_run(str(folder), "fit", config, resume=resume)


def test_runs_are_numbered_in_turn_and_hidden_until_they_finish(tmp_path):
    first, second = opened(tmp_path), opened(tmp_path)
    assert [run.folder.name for run in (first, second)] == [".001.unfinished", ".002.unfinished"]
    assert visible(tmp_path / "fit") == []
    assert second.finish({}, {}, []).name == "002"
    assert opened(tmp_path).folder.name == ".003.unfinished"
    assert first.finish({}, {}, []).name == "001"
    assert visible(tmp_path / "fit") == ["001", "002"]


def test_the_next_number_follows_the_largest_whatever_else_lies_there(tmp_path):
    for name in ("009", "notes", ".040.unfinished", "1000"):
        (tmp_path / "fit" / name).mkdir(parents=True)
    assert opened(tmp_path).folder.name == ".1001.unfinished"


def test_runs_opened_at_once_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = [run.folder for run in pool.map(lambda _: opened(tmp_path), range(40))]
    assert len(set(folders)) == 40
    assert all((folder / "run.json").is_file() for folder in folders)


def test_finish_writes_the_result_and_drops_the_checkpoints(tmp_path):
    run = opened(tmp_path)
    run.checkpoint("sae").save(lambda: {"W": torch.ones(2)})
    assert (run.folder / "checkpoint_sae.safetensors").is_file()
    transposed = torch.arange(6.0).view(2, 3).T
    done = run.finish({"fvu": math.nan, "l0": (1, 2)}, {"W": transposed}, [{"claim": "holds", "passed": True}])
    assert done == tmp_path / "fit" / "001"
    assert not run.folder.exists()
    assert visible(done) == ["result.json", "run.json", "tensors.safetensors"]
    result = json.loads((done / "result.json").read_text())
    assert result["metrics"] == {"fvu": None, "l0": [1, 2]}
    assert result["checks"] == [{"claim": "holds", "passed": True}]
    assert (result["name"], result["config"], result["seeds"]) == ("fit", CONFIG, [3])
    assert datetime.fromisoformat(result["started"]).timestamp() == pytest.approx(run.started, abs=1)
    assert torch.equal(load_file(done / "tensors.safetensors")["W"], transposed)


def test_resume_takes_up_the_newest_unfinished_run(tmp_path):
    opened(tmp_path).finish({}, {}, [])
    opened(tmp_path)
    newest = opened(tmp_path)
    again = opened(tmp_path, resume=True)
    assert (again.folder, again.started, again.config) == (newest.folder, newest.started, CONFIG)


def test_the_newest_is_found_past_a_thousand_runs(tmp_path):
    for name in (".999.unfinished", ".1000.unfinished"):
        folder = tmp_path / "fit" / name
        folder.mkdir(parents=True)
        write_json(folder / "run.json", {"config": CONFIG, "started": 0.0})
    assert opened(tmp_path, resume=True).folder.name == ".1000.unfinished"


def test_resume_starts_a_run_where_none_is_unfinished(tmp_path):
    assert opened(tmp_path, resume=True).folder.name == ".001.unfinished"
    assert opened(tmp_path, resume=True).finish({}, {}, []).name == "001"
    assert opened(tmp_path, resume=True).folder.name == ".002.unfinished"


def test_resume_with_another_configuration_names_what_differs(tmp_path):
    opened(tmp_path)
    with pytest.raises(UserError, match=r"sae\.width: 8 -> 16$"):
        opened(tmp_path, resume=True, config={**CONFIG, "sae": {"width": 16}})


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", "3", "{}", '{"started": 1.0}', json.dumps({"config": CONFIG})]
)
def test_a_damaged_run_json_is_one_clear_line(tmp_path, content):
    path = opened(tmp_path).folder / "run.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=r"cannot resume .*\.001\.unfinished"):
        opened(tmp_path, resume=True)


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "fit").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write to .*fit.*--out"):
        opened(tmp_path)


def test_a_checkpoint_gives_back_what_was_saved(tmp_path):
    checkpoint = FileCheckpoint(tmp_path / "checkpoint_a.safetensors", every=0.0)
    assert checkpoint.load() is None
    for step in (1, 2):
        checkpoint.save(lambda step=step: {"W": torch.full((2, 3), float(step)).T, "done": torch.tensor(step)})
    state = checkpoint.load()
    assert torch.equal(state["W"], torch.full((3, 2), 2.0))
    assert state["done"].item() == 2
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_a.safetensors"]


def test_a_checkpoint_can_be_told_from_any_other_object(tmp_path):
    assert isinstance(FileCheckpoint(tmp_path / "a", every=0.0), toy.Checkpoint)
    assert not isinstance(tmp_path, toy.Checkpoint)


def test_a_checkpoint_is_kept_at_once_and_then_not_before_its_time(tmp_path):
    checkpoint = FileCheckpoint(tmp_path / "checkpoint_a.safetensors", every=1000.0)
    checkpoint.save(lambda: {"step": torch.tensor(1)})
    checkpoint.save(lambda: pytest.fail("the state was asked for too early"))
    checkpoint.last -= 1001
    checkpoint.save(lambda: {"step": torch.tensor(2)})
    assert checkpoint.load()["step"].item() == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_state_that_is_not_finite_never_replaces_a_good_one(tmp_path, value):
    checkpoint = FileCheckpoint(tmp_path / "checkpoint_a.safetensors", every=0.0)
    checkpoint.save(lambda: {"W": torch.ones(2)})
    checkpoint.save(lambda: {"W": torch.tensor([1.0, value])})
    assert torch.equal(checkpoint.load()["W"], torch.ones(2))


@pytest.mark.parametrize("damage", [lambda raw: raw[:-3], lambda raw: b"", lambda raw: b"\xff" * len(raw)])
def test_a_damaged_checkpoint_is_one_clear_line(tmp_path, damage):
    path = tmp_path / "checkpoint_a.safetensors"
    save_file({"W": torch.ones(4)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"checkpoint .*checkpoint_a\.safetensors is damaged") as caught:
        FileCheckpoint(path, every=0.0).load()
    assert "\n" not in str(caught.value)


def test_a_failed_write_and_a_divergence_become_user_errors_and_bugs_stay_bugs(tmp_path):
    with pytest.raises(UserError, match=r"cannot write to .*No space left on device.*--resume"), writing(tmp_path):
        raise OSError(28, os.strerror(28))
    with pytest.raises(UserError, match=r"at step 7.*nothing was reached yet"), writing(tmp_path):
        raise DivergenceError("the SAE", 7)
    (tmp_path / "checkpoint_sae.safetensors").touch()
    with pytest.raises(UserError, match=r"at step 7.*last good checkpoint"), writing(tmp_path):
        raise DivergenceError("the SAE", 7)
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("a bug")


@pytest.mark.parametrize("value", [{"a": math.nan}, {"a": object()}], ids=["nan", "object"])
def test_a_failed_write_of_json_leaves_no_file_and_keeps_the_old_one(tmp_path, value):
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", value)
    assert not (tmp_path / "a.json").exists()
    write_json(tmp_path / "a.json", {"kept": True})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == {"kept": True}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_numbers_of_numpy_and_torch_are_json_too(tmp_path):
    write_json(tmp_path / "a.json", {"seed": np.int64(3), "rate": np.float32(0.5), "on": torch.tensor(2)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"seed": 3, "rate": 0.5, "on": 2}


def test_a_refused_resume_lets_go_of_the_folder(tmp_path):
    opened(tmp_path).lock.release()
    with pytest.raises(UserError, match="another configuration") as refused:
        opened(tmp_path, resume=True, config={**CONFIG, "seed": 4})
    folder = tmp_path / "fit" / ".001.unfinished"
    program = f"from pathlib import Path\nfrom toolkit.folder_lock import take\ntake(Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    assert refused.value is not None  # the traceback is alive until here


def test_plain_values_are_json_whatever_is_nested_in_them():
    nested = {"a": (1, [math.inf, {"b": math.nan}]), "c": -math.inf, "d": "text", "e": None, "f": True, "g": 0.5}
    assert plain(nested) == {"a": [1, [None, {"b": None}]], "c": None, "d": "text", "e": None, "f": True, "g": 0.5}


def test_versions_are_those_installed(monkeypatch):
    found = runs.versions()
    assert {"torch", "numpy", "numba", "sae-lens", "transformer-lens", "safetensors"} <= set(found)
    assert found["torch"] == torch.__version__
    assert all(metadata.version(package) == version for package, version in found.items())
    monkeypatch.setattr(runs, "_RECORDED", ("no-such-package",))
    assert runs.versions() == {"no-such-package": "not installed"}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the toolkit is not in a git checkout")
def test_the_commit_is_that_of_the_toolkit_wherever_it_is_run(tmp_path, monkeypatch):
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    expected = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    author = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    for arguments in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "another repository"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    monkeypatch.chdir(tmp_path)
    found = runs.commit()
    assert found["commit"] == expected
    assert isinstance(found["dirty"], bool)


def test_a_toolkit_that_is_no_checkout_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "toolkit" / "runs.py"))
    assert runs.commit() == {"commit": None, "dirty": None}


def test_a_changed_file_makes_the_commit_dirty(tmp_path, monkeypatch):
    author = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    (tmp_path / "toolkit").mkdir()
    (tmp_path / "toolkit" / "runs.py").write_text("old")
    for arguments in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "toolkit" / "runs.py"))
    assert runs.commit()["dirty"] is False
    (tmp_path / "toolkit" / "runs.py").write_text("new")
    assert runs.commit()["dirty"] is True

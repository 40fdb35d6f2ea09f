"""Audits, calibrations and experiments on a Dask cluster: the result of worker processes, to the last digit."""

import json

import pytest
from safetensors.torch import load_file
from small_trees import write_trees

from controls import audit_run, budgets
from controls.__main__ import main as controls
from experiments.__main__ import main as experiments
from tests import sparing

HOOK = "blocks.2.hook_resid_post"
NOBODY = "tcp://127.0.0.1:9"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(dask_cluster):
    return dask_cluster.scheduler_address


@pytest.fixture
def _sparing(monkeypatch):
    monkeypatch.setitem(budgets.BUDGETS, "quick", sparing.SMALL)
    monkeypatch.setattr(audit_run, "measure", sparing.measure)
    monkeypatch.setattr(audit_run, "paid", lambda bought: ["labels.iid"])
    monkeypatch.setattr(audit_run, "check_draws", lambda alpha, bought: None)  # two null networks can rank nothing
    audit_run.ground.cache_clear()
    yield
    audit_run.ground.cache_clear()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_trees(tmp_path_factory.mktemp("trees") / "small.conllu.gz")


def both_ways(main, words, address, out):
    """The result.json and the tensors of two worker processes, and of the cluster."""
    kept = []
    for name, how in (("workers", ["--workers", "2"]), ("cluster", ["--cluster", address])):
        assert main([*words, *how, "--quiet", "--out", str(out / name)]) in (0, 1)  # 1: a bar is missed by so few seeds
        (result,) = (out / name).glob("*/*/result.json")
        found = json.loads(result.read_text())
        found["metrics"].get("audit", {}).pop("seconds", None)
        kept.append((found, load_file(result.parent / "tensors.safetensors")))
    return kept


def assert_alike(kept):
    (by_workers, tensors), (by_cluster, again) = kept
    assert by_workers["metrics"]
    assert by_cluster["metrics"] == by_workers["metrics"]
    assert by_cluster["checks"] == by_workers["checks"]
    assert again.keys() == tensors.keys()
    assert all((again[name] == tensors[name]).all() or (again[name] != again[name]).any() for name in tensors)


@pytest.mark.usefixtures("_sparing")
def test_an_audit(address, source, tmp_path):
    words = ["audit", "--hook", HOOK, "--corpus", source, "--labels", "upos=VERB,Number=Plur", "--budget", "quick"]
    kept = both_ways(controls, words, address, tmp_path)
    assert_alike(kept)
    assert [one["feature"] for one in kept[1][0]["metrics"]["features"]] == ["upos=VERB", "Number=Plur"]


def test_a_calibration(address, tmp_path):
    words = ["calibrate", "--world", "token-identity", "--seeds", "3", "--rows", "1000"]
    assert_alike(both_ways(controls, words, address, tmp_path))


def test_an_experiment(address, tmp_path):
    assert_alike(both_ways(experiments, ["run", "pentagon", "--scale", "smoke"], address, tmp_path))


@pytest.mark.usefixtures("_sparing")
@pytest.mark.parametrize("command", ["audit", "calibrate", "experiment"])
def test_nobody_at_an_address_is_one_line_and_leaves_nothing(command, source, tmp_path, capfd):
    main, words = {
        "audit": (
            controls,
            ["audit", "--hook", HOOK, "--corpus", source, "--labels", "upos=VERB", "--budget", "quick"],
        ),
        "calibrate": (controls, ["calibrate", "--world", "token-identity", "--seeds", "2", "--rows", "1000"]),
        "experiment": (experiments, ["run", "pentagon", "--scale", "smoke"]),
    }[command]
    assert main([*words, "--cluster", NOBODY, "--quiet", "--out", str(tmp_path)]) == 2
    said = capfd.readouterr().err
    assert f"--cluster {NOBODY}: no Dask scheduler answers there" in said
    assert said.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

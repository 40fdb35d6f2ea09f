"""Sweeps: the same numbers anywhere, finished cells kept, a worker that dies, a cluster."""

import os

import pytest
import torch

from tests.planted import failing, killed_once, mortal, squares
from toolkit.errors import UserError
from toolkit.sweep import sweep

CELLS = [{"x": x} for x in range(5)]
BEFORE = os.environ.get("OMP_NUM_THREADS")


def numbers(found):
    return [{name: value.item() for name, value in cell.items()} for cell in found]


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return numbers(sweep(squares, None, CELLS, seed=3, folder=tmp_path_factory.mktemp("serial")))


def test_cells_come_back_in_order(serial):
    assert [cell["square"] for cell in serial] == [0, 1, 4, 9, 16]
    assert {cell["seed"] for cell in serial} == {3}


def test_two_processes_give_the_numbers_of_one(serial, tmp_path):
    assert numbers(sweep(squares, None, CELLS, seed=3, folder=tmp_path, workers=2)) == serial


@pytest.mark.slow
def test_a_cluster_gives_the_numbers_of_one_process(serial, dask_cluster, tmp_path):
    found = sweep(squares, None, CELLS, seed=3, folder=tmp_path, cluster=dask_cluster.scheduler_address)
    assert numbers(found) == serial


@pytest.mark.slow
def test_a_worker_of_the_cluster_that_is_killed_changes_nothing(serial, dask_cluster, tmp_path):
    cells = [{"x": x, "spared": str(tmp_path / "spared")} for x in range(5)]
    found = sweep(killed_once, 2, cells, seed=3, folder=tmp_path, cluster=dask_cluster.scheduler_address)
    assert (tmp_path / "spared").exists()
    assert numbers(found) == serial


@pytest.mark.slow
def test_a_cell_that_kills_every_worker_of_the_cluster_is_one_line_and_loses_no_finished_cell(dask_cluster, tmp_path):
    spared, trace = tmp_path / "spared", tmp_path / "trace"
    cells = [{"x": x, "spared": str(spared), "trace": str(trace)} for x in range(3)]
    with pytest.raises(UserError, match="killed its workers"):
        sweep(mortal, 2, cells, seed=0, folder=tmp_path, cluster=dask_cluster.scheduler_address)
    assert len(list(tmp_path.glob("checkpoint_cell_*.safetensors"))) == 2
    spared.touch()
    trace.unlink()
    assert [cell["square"] for cell in numbers(sweep(mortal, 2, cells, seed=0, folder=tmp_path))] == [0, 1, 4]
    assert trace.read_text().split() == ["2"]


@pytest.mark.slow
def test_a_worker_that_dies_is_one_line_and_loses_no_finished_cell(tmp_path):
    spared, trace = tmp_path / "spared", tmp_path / "trace"
    cells = [{"x": x, "spared": str(spared), "trace": str(trace)} for x in range(4)]
    with pytest.raises(UserError, match=r"a worker died.*--resume goes on"):
        sweep(mortal, 3, cells, seed=0, folder=tmp_path, workers=2)
    kept = len(list(tmp_path.glob("checkpoint_cell_*.safetensors")))
    assert kept >= 2
    spared.touch()
    assert [cell["square"] for cell in numbers(sweep(mortal, 3, cells, seed=0, folder=tmp_path))] == [0, 1, 4, 9]
    assert len(trace.read_text().split()) <= 4 + (3 - kept)  # what was kept was not measured again


def test_a_finished_cell_is_not_measured_again(tmp_path):
    trace = tmp_path / "trace"
    cells = [{"x": x, "trace": str(trace)} for x in range(3)]
    first = numbers(sweep(squares, None, cells, seed=0, folder=tmp_path))
    (tmp_path / "checkpoint_cell_00001.safetensors").unlink()
    assert numbers(sweep(squares, None, cells, seed=0, folder=tmp_path)) == first
    assert trace.read_text().split() == ["0", "1", "2", "1"]


def test_threads_are_as_they_were(tmp_path):
    before = torch.get_num_threads()
    sweep(squares, None, CELLS[:1], seed=0, folder=tmp_path)
    assert torch.get_num_threads() == before


def test_a_damaged_cell_and_an_absent_scheduler_are_one_line(tmp_path):
    sweep(squares, None, CELLS[:1], seed=0, folder=tmp_path)
    (tmp_path / "checkpoint_cell_00000.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"checkpoint_cell_00000.*delete this file"):
        sweep(squares, None, CELLS[:1], seed=0, folder=tmp_path)


@pytest.mark.slow
def test_an_absent_scheduler_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--cluster tcp://127\.0\.0\.1:9: no Dask scheduler answers there"):
        sweep(squares, None, CELLS, seed=0, folder=tmp_path, cluster="tcp://127.0.0.1:9")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mistake_in_the_program_keeps_its_traceback(workers, tmp_path):
    with pytest.raises(ZeroDivisionError, match="cell"):
        sweep(failing, None, CELLS, seed=0, folder=tmp_path, workers=workers)


def test_a_cluster_leaves_no_number_of_threads_behind(dask_cluster):
    assert dask_cluster.scheduler_info["workers"]
    assert os.environ.get("OMP_NUM_THREADS") == BEFORE

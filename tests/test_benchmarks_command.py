"""`python -m benchmarks` and `python -m benchmarks.faults`: what they run, and mistakes in one line."""

import pytest

import benchmarks.__main__ as command
from benchmarks import faults


@pytest.fixture
def ran(monkeypatch):
    """What would have been run, with which model."""
    found = []
    for name in command.REPORTS:
        monkeypatch.setitem(command.REPORTS, name, lambda name=name: found.append(name))
    for name in command.OF_A_MODEL:
        monkeypatch.setitem(command.OF_A_MODEL, name, lambda model, name=name: found.append((name, model)))
    return found


def test_named_benchmarks_run_in_their_order(ran):
    assert command.main(["sparse", "toy", "--model", "tiny-gpt2"]) == 0
    assert ran == [("sparse", "tiny-gpt2"), "toy"]


def test_without_a_name_all_run_once(ran):
    assert command.main([]) == 0
    assert len(ran) == len(command.REPORTS) + len(command.OF_A_MODEL)


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (command.main, ["toy", "spase"], "unknown benchmark 'spase': did you mean 'sparse'? valid: toy, "),
        (faults.main, ["toy SAE"], "unknown command 'toy SAE': did you mean 'toy SAEs'? valid: embedding SAE, "),
        (faults.main, ["audit", "--kills", "0"], "--kills must be at least 1, got 0"),
    ],
    ids=["benchmark", "fault", "kills"],
)
def test_a_mistake_is_one_line(main, words, said, ran, capsys):
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"error: {said}")
    assert (told.err.count("\n"), told.out, ran) == (1, "", [])

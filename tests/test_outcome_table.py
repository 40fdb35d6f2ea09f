"""An outcome's table is printed below the checks and kept in the result."""

import json
from dataclasses import replace

import pytest

from experiments import registry
from experiments.__main__ import _show
from experiments.running import How, run


@pytest.mark.parametrize("table", ["", "k    1    2\nours .5   .25"])
def test_a_table_is_printed_and_kept_where_there_is_one(table, tmp_path, capsys):
    outcome = registry.Outcome("Said so.", (), table=table)
    pentagon = registry.chosen(["pentagon"])[0]
    made = replace(pentagon, cells=lambda settings: [], summarise=lambda *_: outcome)
    finished = run(made, How(scale="smoke", out=str(tmp_path), quiet=True))
    metrics = json.loads((finished.folder / "result.json").read_text())["metrics"]
    assert metrics.get("table", []) == table.splitlines()
    _show("made", finished)
    printed = capsys.readouterr().out
    assert "Said so." in printed
    assert (f"\n\n{table}\n\nSaid so." in printed) == bool(table)

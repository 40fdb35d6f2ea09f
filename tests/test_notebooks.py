"""Notebooks: what they say of themselves, and each executed as a reader would, in a kernel of its own."""

import ast
import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="notebooks are read by jupytext: pip install -e .[test]")

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "notebooks").glob("*.py"))
LONGEST = 900
"""Seconds that a cell may take, on a machine with other work."""
each = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def test_there_are_notebooks() -> None:
    assert len(FILES) >= 4


@each
def test_each_is_a_percent_script_with_a_title_and_prose(file: Path) -> None:
    text = file.read_text()
    notebook = jupytext.reads(text, fmt="py:percent")
    assert notebook.metadata["jupytext"]["text_representation"]["format_name"] == "percent"
    first = notebook.cells[0]
    assert (first.cell_type, first.source[:2]) == ("markdown", "# ")
    titles = [cell for cell in notebook.cells if re.match("# ", cell.source) and cell.cell_type == "markdown"]
    assert len(titles) == 1
    prose = sum(cell.cell_type == "markdown" for cell in notebook.cells)
    assert prose >= 5
    assert len(notebook.cells) == len(re.findall(r"^# *%%", text, flags=re.MULTILINE)), "text outside of any cell"
    body = text.split("# ---\n", maxsplit=2)[2]
    assert jupytext.writes(notebook, fmt="py:percent").endswith(body), "jupytext would write it otherwise"


@each
def test_each_ends_in_assertions_of_what_it_showed(file: Path) -> None:
    last = jupytext.reads(file.read_text(), fmt="py:percent").cells[-1]
    assert last.cell_type == "code"
    claims = [node for node in ast.walk(ast.parse(last.source)) if isinstance(node, ast.Assert)]
    assert len(claims) >= 5
    assert not any(isinstance(claim.test, ast.Constant) for claim in claims)


@each
def test_each_takes_only_public_names(file: Path) -> None:
    taken = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in taken if (node.module or "").split(".")[0] in ("toolkit", "controls", "experiments")]
    assert ours
    assert not [name.name for node in ours for name in node.names if name.name.startswith("_")]


def test_the_readme_names_each_and_no_other() -> None:
    named = set(re.findall(r"notebooks/(\w+\.py)", (ROOT / "README.md").read_text()))
    there = {file.name for file in FILES}
    assert not there - named, f"README does not name {sorted(there - named)}"
    assert not named - there, f"README names {sorted(named - there)}, and there is no such notebook"


@pytest.mark.slow
@each
def test_each_runs_to_its_end_in_a_kernel(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = jupytext.reads(file.read_text(), fmt="py:percent")
    run(notebook, tmp_path, monkeypatch)
    images = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert len(images) >= 3
    assert notebook.cells[-1].execution_count is not None


@pytest.mark.slow
def test_a_premise_taken_away_fails_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "notebooks" / "superposition_in_ten_minutes.py").read_text()
    sparse = "ToyModel(features=5, hidden=2, density=0.05"
    assert sparse in text
    notebook = jupytext.reads(text.replace(sparse, sparse.replace("0.05", "1.0")), fmt="py:percent")
    with pytest.raises(Exception, match="no pentagon"):
        run(notebook, tmp_path, monkeypatch)
    assert notebook.cells[-1].execution_count is not None, "it is the last cell that fails"


def run(notebook, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute every cell, in an empty folder, by this interpreter and the code of this checkout."""
    nbclient = pytest.importorskip("nbclient", reason="notebooks are executed by nbclient: pip install -e .[test]")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # this interpreter's kernel, not one of the user's
    there = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=LONGEST, resources=there).execute()
    assert not list(folder.iterdir()), "a notebook leaves nothing behind"

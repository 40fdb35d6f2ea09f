"""The README's code is run, and what it says about the house is true."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from test_command import CLASSES

from controls import audit_run
from controls.calibrate import Job
from experiments.running import How
from toolkit.flags import flag_of
from toolkit.pretrain_config import PretrainConfig, PretrainRun

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("code", BLOCKS, ids=[f"block-{i}" for i in range(len(BLOCKS))])
def test_each_code_block_runs_and_asserts_its_own_claim(code: str, tmp_path: Path) -> None:
    assert "assert " in code
    script = tmp_path / "example.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", ["toolkit", "controls", "experiments"])
def test_the_map_names_every_file_of_a_room_and_no_other(folder: str) -> None:
    part = re.search(rf"^{folder}/\n((?:  .*\n)+)", README, flags=re.MULTILINE)
    assert part is not None
    mapped = set(re.findall(r"^  (\w+\.py) ", part.group(1), flags=re.MULTILINE))
    assert mapped == {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py", "__main__.py"}


def test_the_commands_shown_are_flags_that_exist() -> None:
    classes = (*CLASSES, How, PretrainConfig, PretrainRun, Job, audit_run.Job)
    known = {flag_of(field.name) for cls in classes for field in fields(cls)} | {"--help", "--to", "--set", "--draws"}
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert shown <= known

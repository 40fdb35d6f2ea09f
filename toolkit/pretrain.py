"""The command that pretrains a small GPT-2 on text.

```
python -m toolkit.pretrain --corpus nltk:inaugural nltk:state_union --layers 4 --width 128 --out DIR
torchrun --nproc-per-node 2 -m toolkit.pretrain ...   several processes, each its share of every batch
```
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit import flags
from toolkit.commands import exit_code
from toolkit.errors import require
from toolkit.pretrain_config import PretrainConfig, PretrainRun

PROG = "python -m toolkit.pretrain"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 after a mistake that one line explains)."""
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: _work(given), less="lower them", kept="last checkpoint")


def _work(argv: Sequence[str]) -> int:
    settings = settings_from(argv)
    from toolkit.pretrain_job import work

    work(settings["model"], settings["run"])
    return 0


def settings_from(argv: Sequence[str]) -> dict[str, Any]:
    """Parse the command line into a PretrainConfig (`model`) and a PretrainRun (`run`).

    Raises:
        UserError: an unknown flag or value, settings that contradict each other, no corpus, no place to write to, or
            one that is taken.
    """
    parsed = flags.parse(
        argv,
        {"model": PretrainConfig(), "run": PretrainRun()},
        prog=PROG,
        description="Pretrain a small GPT-2, with its tokenizer, checkpoints from step 0 on, baselines and a card.",
    )
    model, run = parsed["model"], parsed["run"]
    require(bool(run.corpus), "--corpus is missing: name a text file, a folder, nltk:NAME or hf:NAME, one or several")
    require(bool(run.out), "--out is missing: name a new folder for the model")
    require(not Path(run.out).exists(), f"{run.out} exists: choose another folder with --out, or move it away")
    require(
        not (run.randomise_rows and model.freeze_embedding != "none"),
        "--randomise-rows and --freeze-embedding random contradict each other: the one trains rows, the other none",
    )
    require(
        not run.norms_from or model.freeze_embedding == "random",
        "--norms-from belongs to --freeze-embedding random: leave it out, or draw the rows at random",
    )
    return parsed


if __name__ == "__main__":
    sys.exit(main())

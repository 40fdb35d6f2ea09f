"""The command: python -m experiments list | run NAME... | report."""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.commands import exit_code
from toolkit.errors import unknown
from toolkit.flags import OneLineParser

if TYPE_CHECKING:
    from experiments.running import Finished

PROG = "python -m experiments"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 where a check failed, 2 after a mistake that one line explains."""
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: _work(given), less="take a smaller --scale or fewer --workers", kept="finished cells")


def _work(argv: Sequence[str]) -> int:
    chosen = _parse(argv)
    return int(chosen.action(chosen))


def _parse(argv: Sequence[str]) -> Namespace:
    parser = OneLineParser(prog=PROG, description="Questions about models, with numbers that pass or fail.")
    actions = parser.add_subparsers(title="commands", required=True, dest="command")
    listing = actions.add_parser("list", help="every experiment: name, claim, time at each scale")
    listing.set_defaults(action=_list)
    running = actions.add_parser("run", help="run experiments by name or pattern")
    running.set_defaults(action=_run)
    running.add_argument("names", nargs="+", metavar="NAME", help="a name, a pattern such as 'toy/*', or all")
    running.add_argument("--scale", default="default", help="smoke, default or paper (default: default)")
    running.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: every core)")
    running.add_argument("--cluster", default="", metavar="ADDRESS", help="a Dask scheduler, in place of processes")
    running.add_argument("--seed", type=int, default=0, help="every draw follows from it (default: 0)")
    running.add_argument("--resume", action="store_true", help="go on with the newest unfinished run of each")
    running.add_argument("--quiet", action="store_true", help="no progress bars")
    running.add_argument("--model", default="", metavar="MODEL", help="folder or hub name (default: tiny-gpt2)")
    running.add_argument("--frequencies", default="", metavar="FILE", help="text (.txt, .txt.gz) to count tokens in")
    running.add_argument(
        "--corpus",
        default="",
        metavar="TEXT",
        help="file, folder, nltk:NAME or hf:NAME to train on, or .conllu to read",
    )
    running.add_argument(
        "--hook", default="", metavar="NAME", help="where a model is asked, such as blocks.2.hook_resid_post"
    )
    running.add_argument("--sae", default="", metavar="SOURCE", help="a folder in sae-lens's format, or release:id")
    running.add_argument(
        "--set",
        default=[],
        action="append",
        dest="given",
        metavar="NAME=VALUE",
        help="a setting by name; repeat for more",
    )
    reporting = actions.add_parser("report", help="one page over everything that has run")
    reporting.set_defaults(action=_report)
    reporting.add_argument("--to", default="", metavar="FILE", help="the page (default: report.html in --out)")
    for action in (running, reporting):
        action.add_argument("--out", default="runs", metavar="FOLDER", help="folder of the runs (default: runs)")
    chosen, rest = parser.parse_known_args(list(argv))
    for stray in rest:
        flags = [flag for action in (running, reporting) for flag in action._option_string_actions if flag[:2] == "--"]
        raise unknown("flag", stray.split("=")[0], dict.fromkeys(flags))
    return chosen


def _list(chosen: Namespace) -> int:
    from experiments.registry import SCALES, experiments

    known = experiments()
    width = max(len(e.name) for e in known)
    print(f"{'':4}{'name':{width}}  {'  '.join(f'{scale:>7}' for scale in SCALES)}  claim")
    for e in known:
        times = "  ".join(f"{duration(e.seconds[scale]):>7}" for scale in SCALES)
        print(f"{e.row:4}{e.name:{width}}  {times}  {e.claim}")
    print(
        "\nTimes on two cores. Rows E and N are about tiny-gpt2 unless --model MODEL names another; E6, E7 and N1 "
        "to N9 need --corpus, N1 and N2 one of .conllu."
    )
    print("At scale paper rows E and N need --model: E1 to E4 are timed for 49,152 x 576, others for GPT-2 on one GPU.")
    print(f"{PROG} run NAME --scale smoke | default | paper")
    return 0


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"


def _run(chosen: Namespace) -> int:
    from experiments.running import How, run, runnable

    settings = {name: getattr(chosen, name) for name in How.__dataclass_fields__}
    how = How(**{**settings, "given": tuple(chosen.given)})
    wanted, left_out = runnable(chosen.names, how)
    for why in dict.fromkeys(left_out.values()):
        print(f"left out, {', '.join(name for name in left_out if left_out[name] == why)}: {why}")
    if how.scale == "paper" or len(wanted) > 1:
        total = sum(e.seconds[how.scale] for e, _ in wanted)
        print(f"{len(wanted)} at scale {how.scale}: about {duration(total)} on two cores")
    ended = []
    for experiment, its in wanted:
        finished = run(experiment, its)
        _show(experiment.name, finished)
        ended.append((experiment.name, finished))
    failed = [name for name, finished in ended if not finished.passed]
    if len(ended) > 1:
        print(
            f"{len(ended) - len(failed)} of {len(ended)} passed" + (f"; failed: {', '.join(failed)}" if failed else "")
        )
    return 1 if failed else 0


def _show(name: str, finished: "Finished") -> None:
    rows = [("", "claim", "expected", "measured [95% interval]", "over")]
    rows += [
        ("passed" if c.passed else "FAILED", c.claim, c.expected, c.spread, str(c.values))
        for c in finished.outcome.checks
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    print(f"\n{name}")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if finished.outcome.table:
        print(f"\n{finished.outcome.table}\n")
    print(f"{finished.outcome.conclusion}\n{finished.seconds:.0f} s; {finished.folder}", flush=True)


def _report(chosen: Namespace) -> int:
    from experiments.report import write

    path = Path(chosen.to) if chosen.to else Path(chosen.out) / "report.html"
    count, explorers = write(Path(chosen.out), path)
    print(f"{count} experiments and {explorers} explorers of SAEs in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

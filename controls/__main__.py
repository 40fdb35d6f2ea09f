"""The command: python -m controls audit | run | list | calibrate."""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence

from controls import commands
from toolkit.commands import exit_code
from toolkit.errors import require, unknown
from toolkit.flags import OneLineParser

PROG = "python -m controls"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 where an error rate misses its bar, 2 after a mistake that one line explains."""
    given = sys.argv[1:] if argv is None else argv
    kept = "" if given[:1] == ["run"] else "finished parts"
    return exit_code(lambda: _work(given), less="ask for less, or take fewer --workers", kept=kept)


def _work(argv: Sequence[str]) -> int:
    chosen = _parse(argv)
    return int(chosen.action(chosen))


def _parse(argv: Sequence[str]) -> Namespace:
    parser = OneLineParser(prog=PROG, description="Is it a feature of the model, or of the data?")
    actions = parser.add_subparsers(title="commands", required=True, dest="command")
    commands.add_to(actions)
    one = actions.add_parser(
        "calibrate", allow_abbrev=False, help="error rates of the verdicts on worlds whose truth is known"
    )
    one.set_defaults(action=_calibrate)
    one.add_argument("--world", default="all", metavar="NAME", help="a world, package.module:ClassName, or all six")
    one.add_argument("--seeds", type=int, default=300, help="networks and data sets of each world")
    one.add_argument("--rows", type=int, default=4000, help="rows of each")
    one.add_argument("--power", type=int, default=0, metavar="SEEDS", help="of each point of the curves of power")
    one.add_argument("--alpha", type=float, default=0.05, help="error rate asked for")
    one.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    one.add_argument("--cluster", default="", metavar="ADDRESS", help="a Dask scheduler, in place of processes")
    one.add_argument("--seed", type=int, default=0, help="every draw follows from it")
    one.add_argument("--out", default="runs", metavar="FOLDER", help="folder of the runs")
    one.add_argument("--resume", action="store_true", help="go on with the newest unfinished run of each world")
    one.add_argument("--quiet", action="store_true", help="no progress bars")
    chosen, rest = parser.parse_known_args(list(argv))
    for stray in rest:
        flags = [flag for flag in actions.choices[chosen.command]._option_string_actions if flag[:2] == "--"]
        raise unknown("flag", stray.split("=")[0], flags)
    return chosen


def _calibrate(chosen: Namespace) -> int:
    from controls.calibrate import Job, calibrate, missed, table
    from controls.worlds import WORLDS

    for name in ("seeds", "rows", "workers"):
        require(getattr(chosen, name) >= 1, f"--{name} must be at least 1, got {getattr(chosen, name)}")
    require(chosen.power >= 0, f"--power must not be negative, got {chosen.power}")
    require(0 < chosen.alpha < 1, f"--alpha must lie between 0 and 1, got {chosen.alpha}")
    require(0 <= chosen.seed < 2**31, f"--seed must be a whole number in [0, 2**31), got {chosen.seed}")
    bad = 0
    for world in WORLDS if chosen.world == "all" else [chosen.world]:
        asked = {name: getattr(chosen, name) for name in Job.__dataclass_fields__ if name != "world"}
        job = Job(world, **asked)
        done = calibrate(job, out=chosen.out, resume=chosen.resume, quiet=chosen.quiet)
        print(f"\n{world}: {chosen.seeds} seeds of {chosen.rows:,} rows\n{table(done)}")
        print(f"{done.seconds:.0f} s; {done.folder}", flush=True)
        bad += bool(missed(done.found))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

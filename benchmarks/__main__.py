"""python -m benchmarks [NAME ...] [--model FOLDER_OR_NAME]: prints a table for each.

What compares numbers instead of times stands by itself: python -m benchmarks.faults.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

# As the command sets it, and before torch is imported; see toolkit/sae_fit.py.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from benchmarks import (
    audit,
    embedding_saes,
    explorer,
    harvest,
    permutations,
    perturbations,
    pretraining,
    quadrature,
    scale,
    sparse_codes,
    toy_saes,
    toy_training,
)
from toolkit.commands import exit_code
from toolkit.errors import unknown

REPORTS: dict[str, Callable[[], object]] = {
    "toy": toy_training.report,
    "quadrature": quadrature.report,
    "toy-saes": toy_saes.report,
    "pretraining": pretraining.report,
    "permutations": permutations.report,
    "scale": scale.report,
    "explorer": explorer.report,
}
"""Those that need no model."""
OF_A_MODEL: dict[str, Callable[[str | None], object]] = {
    "embedding": embedding_saes.report,
    "sparse": sparse_codes.report,
    "harvest": harvest.report,
    "audit": audit.report,
    "perturbations": perturbations.report,
}
"""Those that read one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named benchmarks, or all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    every = [*REPORTS, *OF_A_MODEL]
    parser.add_argument("names", nargs="*", help=f"{', '.join(every)}; without any, all")
    parser.add_argument("--model", help="model that is read; without one, Gaussian rows or tiny-gpt2")
    options = parser.parse_args(argv)
    return exit_code(lambda: _work(options.names or every, options.model), less="close other programs", kept="")


def _work(names: Sequence[str], model: str | None) -> int:
    for name in names:
        if name not in REPORTS and name not in OF_A_MODEL:
            raise unknown("benchmark", name, [*REPORTS, *OF_A_MODEL])
    for name in names:
        if name in REPORTS:
            REPORTS[name]()
        else:
            OF_A_MODEL[name](model)
    return 0


if __name__ == "__main__":
    sys.exit(main())

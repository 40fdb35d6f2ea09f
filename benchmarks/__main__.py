"""python -m benchmarks [NAME ...] [--model FOLDER_OR_NAME]: prints a table for each."""

import argparse
import os

# As the command sets it, and before torch is imported; see toolkit/sae_fit.py.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from benchmarks import (
    audit,
    embedding_saes,
    explorer,
    faults,
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

NAMES = ["toy", "quadrature", "toy-saes", "embedding", "sparse", "pretraining", "harvest", "permutations", "audit",
         "perturbations", "scale", "explorer"]  # fmt: skip


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, "faults", []], default=[])
    parser.add_argument("--model", help="model that is read; without one, Gaussian rows or tiny-gpt2")
    options = parser.parse_args()
    names = options.names or NAMES
    if "toy" in names:
        toy_training.report()
    if "quadrature" in names:
        quadrature.report()
    if "toy-saes" in names:
        toy_saes.report()
    if "embedding" in names:
        embedding_saes.report(options.model)
    if "sparse" in names:
        sparse_codes.report(options.model)
    if "pretraining" in names:
        pretraining.report()
    if "harvest" in names:
        harvest.report(options.model)
    if "permutations" in names:
        permutations.report()
    if "audit" in names:
        audit.report(options.model)
    if "perturbations" in names:
        perturbations.report(options.model)
    if "scale" in names:
        scale.report()
    if "explorer" in names:
        explorer.report()
    if "faults" in names:  # by name only: it compares numbers, not times, and takes as long as all the rest
        faults.report([], faults.KILLS)


if __name__ == "__main__":
    main()

"""Seconds a call takes, and how tables are printed."""

import time
from collections.abc import Callable


def best_of(call: Callable[[], object], *, repeats: int = 3) -> float:
    """Least seconds of `repeats` calls after one that warms up: the least disturbed by whatever else runs."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def show(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table with right-aligned columns."""
    widths = [max(len(row[c]) for row in [head, *rows]) for c in range(len(head))]
    print(f"\n{title}")
    for row in [head, tuple("-" * width for width in widths), *rows]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), flush=True)

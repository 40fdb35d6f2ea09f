"""How every command ends: an exit code, and one line for what a user can mend."""

import io
import os
import sys
from collections.abc import Callable

from toolkit.errors import UserError


def exit_code(action: Callable[[], int], *, less: str, kept: str) -> int:
    """Run a command's action: its own code, 2 after a mistake that one line explains, 130 where it was interrupted.

    To be called before torch is imported: idle threads of its pool that spin keep the cores from numba's, and on a busy
    machine a step becomes twenty times slower; some microseconds of spinning cost nothing on a quiet one. GNU OpenMP
    reads this when torch is first imported. Where a number of threads is asked for, numba keeps to it too: its first
    parallel loop would else set torch's to its own, and sums be taken in another order from there on.

    Args:
        less: what to ask less of where memory ran out.
        kept: what --resume goes on from; empty where a command has no such flag.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    if threads := os.environ.get("OMP_NUM_THREADS", ""):
        os.environ.setdefault("NUMBA_NUM_THREADS", threads)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without Unicode gets escapes, not a traceback
            stream.reconfigure(errors="backslashreplace")
    try:
        return action()
    except UserError as error:
        # Of torchrun's processes the first one of each machine speaks.
        if "0" in (os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK")):
            print(f"error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        # torch has errors of its own: a class for the GPU's memory, a bare RuntimeError for the CPU's.
        of_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
        if not (isinstance(error, MemoryError) or of_torch):
            raise
        told = (str(error).splitlines() or [""])[0]
        print(f"error: not enough memory for these sizes ({told}): {less}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        on = f"the same command with --resume goes on from the {kept}" if kept else "nothing was kept; give it again"
        print(f"interrupted: {on}", file=sys.stderr)
        return 130

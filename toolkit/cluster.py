"""joblib's Dask backend, with two gaps mended: small clusters are used, and a task Dask gives up on ends the sweep."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from distributed import Client
from distributed.scheduler import KilledWorker
from joblib._dask import DaskDistributedBackend

from toolkit.errors import UserError


class _Backend(DaskDistributedBackend):
    """joblib 1.6 tells its callback of results alone; an error of Dask itself never reaches an unordered generator."""

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        # At one, joblib would leave the cluster alone and work in this process; a worker that restarts is not counted.
        return max(2, super().effective_n_jobs(n_jobs))

    def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> Any:
        future = super().submit(func, callback)
        future.add_done_callback(lambda done: callback(done) if callback and done.exception() else None)
        return future

    def retrieve_result_callback(self, out: Any) -> Any:
        if isinstance(out, Future):
            raise out.exception() or RuntimeError("a Dask task ended without a result")
        return super().retrieve_result_callback(out)


@contextmanager
def dask_backend(address: str) -> Iterator[dict[str, Any]]:
    """What `joblib.parallel_config` needs to use the cluster whose scheduler is at `address`.

    Raises:
        UserError: no scheduler answers, or a cell killed every worker it was given to.
    """
    try:
        client = Client(address, timeout="10s")  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise UserError(f"--cluster {address}: no Dask scheduler answers there ({error})") from None
    with client:
        try:
            yield {"backend": _Backend(client=client)}
        except KilledWorker as error:
            raise UserError(f"a cell killed its workers again and again ({error}); --resume keeps the others") from None

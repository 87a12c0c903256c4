"""Cells of work spread over processes of this machine, or over a Ray cluster.

A cell is one call of a function, which hands out rows as it computes them. They stream back to the caller, so a worker
that is killed costs what it had not sent. A cell that fails is tried again, on whatever worker is free.
"""

import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from tqdm import tqdm

from layerswap.errors import UserError, one_line

ENVIRONMENT = ("LAYERSWAP_DATA", "HF_HOME", "HF_HUB_OFFLINE")  # variables that workers on other nodes need too
ATTEMPTS = 4  # of a cell: it is tried again three times, then named
# Workers of this machine are forked from one process that has imported what they need, where forking is safe.
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
PRELOADED = ["layerswap.run.scores", "layerswap.experts.finetune"]
Row = dict[str, Any]
Item = TypeVar("Item")
RAY: Literal["ray"] = "ray"
Workers = int | Literal["ray"]


@dataclass(frozen=True)
class Cell:
    """One piece of work.

    Attributes:
        name: what an error calls it.
        work: called with a function that takes rows; it and what it holds can be pickled.
    """

    name: str
    work: Callable[[Callable[[Row], None]], object]


class Event(NamedTuple):
    """What a worker says of the cell with index ``cell``: a row, or that it has ended, with an error or without."""

    cell: int
    row: Row | None = None
    error: Exception | None = None


class Pool(Protocol):
    """Workers to which cells are given."""

    @property
    def n_workers(self) -> int:
        """Cells that can run at once."""
        ...

    def has_room(self) -> bool:
        """Whether ``submit`` may be called."""
        ...

    def submit(self, i: int, cell: Cell) -> None:
        """Start the cell with index ``i``."""
        ...

    def events(self) -> list[Event]:
        """Wait for what the workers have to say."""
        ...

    def cancel(self) -> None:
        """Stop what is running."""
        ...


def run_cells(cells: Sequence[Cell], pool: Pool) -> Iterator[Row]:
    """Run cells on a pool.

    Yields:
        Rows, as they come.

    Raises:
        UserError: that of a cell, or a cell failed ``ATTEMPTS`` times; the others are stopped.
    """
    attempts, waiting, n_running = [0] * len(cells), deque(range(len(cells))), 0
    try:
        while waiting or n_running:
            while waiting and pool.has_room():
                i = waiting.popleft()
                attempts[i] += 1
                n_running += 1
                pool.submit(i, cells[i])
            for event in pool.events():
                if event.row is not None:
                    yield event.row
                    continue
                n_running -= 1
                if isinstance(event.error, UserError):
                    raise event.error
                if event.error is not None and attempts[event.cell] == ATTEMPTS:
                    raise UserError(f"{cells[event.cell].name}: failed {ATTEMPTS} times: {one_line(event.error)}")
                if event.error is not None:
                    waiting.append(event.cell)
    finally:
        if n_running:
            pool.cancel()


def split_groups(groups: Sequence[Sequence[Item]], n_workers: int) -> list[tuple[int, Sequence[Item]]]:
    """Groups cut into pieces: (which group, its piece).

    What belongs to one group has a start in common, such as models that are loaded. Pieces become smaller, so that all
    workers end at about the same time (Polychronopoulos and Kuck, "Guided self-scheduling", 1987): each is at most half
    of a worker's part of what is left.
    """
    pieces, n_left = [], sum(map(len, groups))
    for i, group in enumerate(groups):
        start = 0
        while start < len(group):
            piece = group[start : start + -(-n_left // (2 * n_workers))]
            pieces.append((i, piece))
            start, n_left = start + len(piece), n_left - len(piece)
    return pieces


def make_pool(workers: Workers, threads: int, gpus: int = 0) -> Pool:
    """The pool of a profile's ``workers``; the same one for the same arguments.

    Args:
        workers: processes on this machine, or "ray".
        threads: CPU threads of a worker.
        gpus: GPUs of a worker.

    Raises:
        UserError: more workers than there are GPUs for, or Ray is not installed or not there.
    """
    return RayPool(threads, gpus) if workers == RAY else process_pool(workers, threads, gpus)


# --- processes of this machine ----------------------------------------------------------------------------------------


def preload(workers: Workers) -> None:
    """Begin to import what workers of this machine need, beside what the caller does until it has work for them."""
    if workers not in (1, RAY) and START_METHOD == "forkserver":
        multiprocessing.get_context(START_METHOD).set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()


def serve(connection: Connection, threads: int, variables: dict[str, str]) -> None:
    """The life of a worker process: take cells, send rows; it ends with the process that started it."""
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is for the caller, who stops the workers
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore that nobody removes
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch  # here: whoever plans a training needs none

    torch.set_num_threads(threads)
    while True:
        try:
            i, cell = connection.recv()
        except EOFError:  # the process that started it has ended
            return
        try:
            cell.work(lambda row, i=i: connection.send(Event(i, row=row)))
            connection.send(Event(i))
        except UserError as error:
            connection.send(Event(i, error=error))
        except Exception as error:  # it may hold what cannot be pickled
            connection.send(Event(i, error=RuntimeError(f"{type(error).__name__}: {one_line(error)}")))


class ProcessPool:
    """Processes of this machine, each of which stays from cell to cell; one that dies is replaced by a new one.

    More workers than GPUs share them: one worker with a small model leaves most of a GPU idle.
    """

    def __init__(self, n_workers: int, threads: int, gpus: int) -> None:
        self.n, self.threads, self.gpus, self.n_gpus = n_workers, threads, gpus, 1
        if gpus:
            import torch

            self.n_gpus = torch.cuda.device_count()
            if gpus > 1 and gpus * n_workers > self.n_gpus:
                raise UserError(f"workers is {n_workers}, each with {gpus} GPUs, but there are {self.n_gpus}")
        preload(n_workers)
        self.context: Any = multiprocessing.get_context(START_METHOD)  # threads and GPUs do not survive a plain fork
        self.processes: dict[int, tuple[Any, Connection]] = {}  # which worker -> its process and the end of its pipe
        self.running: dict[int, int] = {}  # which worker -> its cell

    @property
    def n_workers(self) -> int:
        """As in ``Pool``."""
        return self.n

    def has_room(self) -> bool:
        """As in ``Pool``."""
        return len(self.running) < self.n

    def submit(self, i: int, cell: Cell) -> None:
        """As in ``Pool``."""
        worker = next(worker for worker in range(self.n) if worker not in self.running)
        self.running[worker] = i
        if worker not in self.processes:
            self.start(worker)
        try:
            self.processes[worker][1].send((i, cell))
        except OSError:  # it died idle
            self.start(worker)
            self.processes[worker][1].send((i, cell))

    def start(self, worker: int) -> None:
        """Start a worker's process."""
        own_end, other_end = self.context.Pipe()
        variables = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        if self.gpus:
            gpus = (str((worker * self.gpus + i) % self.n_gpus) for i in range(self.gpus))
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        process = self.context.Process(target=serve, args=(other_end, self.threads, variables), daemon=True)
        process.start()
        other_end.close()  # so that the pipe ends with the process
        self.processes[worker] = process, own_end

    def events(self) -> list[Event]:
        """As in ``Pool``."""
        events = []
        connections = {self.processes[worker][1]: worker for worker in self.running}
        for connection in wait(list(connections)):
            assert isinstance(connection, Connection)
            worker = connections[connection]
            try:
                event = connection.recv()
            except (EOFError, OSError):
                process, _ = self.processes.pop(worker)
                process.join()
                event = Event(self.running[worker], error=RuntimeError(f"its worker ended ({process.exitcode})"))
            if event.row is None:
                del self.running[worker]
            events.append(event)
        return events

    def cancel(self) -> None:
        """As in ``Pool``."""
        for worker in list(self.running):
            process, connection = self.processes.pop(worker)
            process.kill()
            process.join()
            connection.close()
        self.running = {}


process_pool = cache(ProcessPool)


# --- Ray --------------------------------------------------------------------------------------------------------------


class RayPool:
    """The cluster at RAY_ADDRESS, or one of this machine alone; Ray decides where a cell runs.

    Project, experts and data lie in the same folders on all nodes.
    """

    def __init__(self, threads: int, gpus: int) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("workers is 'ray', which is not installed: pip install 'layerswap[cluster]'") from None
        self.ray = ray
        variables = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | {
            "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }  # fmt: skip
        if not ray.is_initialized():
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": variables})
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UserError(f"Ray at {os.environ.get('RAY_ADDRESS', 'this machine')}: {one_line(error)}") from None
        self.remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(rows_of)
        self.threads, self.gpus = threads, gpus
        self.running: dict[Any, int] = {}  # generator of rows -> its cell

    @property
    def n_workers(self) -> int:
        """As in ``Pool``, by the cluster's cores and GPUs."""
        resources = self.ray.cluster_resources()
        n = resources.get("CPU", 1) // self.threads
        return max(1, int(min(n, resources.get("GPU", 0) // self.gpus) if self.gpus else n))

    def has_room(self) -> bool:
        """As in ``Pool``: Ray holds what waits."""
        return True

    def submit(self, i: int, cell: Cell) -> None:
        """As in ``Pool``."""
        self.running[self.remote.remote(cell, self.threads)] = i

    def events(self) -> list[Event]:
        """As in ``Pool``."""
        ready, _ = self.ray.wait(list(self.running), num_returns=1)
        events = []
        for generator in ready:
            i = self.running[generator]
            try:
                events.append(Event(i, row=self.ray.get(next(generator))))
            except StopIteration:
                events.append(Event(i))
            except self.ray.exceptions.RayTaskError as error:
                events.append(Event(i, error=error.cause))
            except self.ray.exceptions.RayError as error:  # a worker or a node was lost
                events.append(Event(i, error=error))
            if events[-1].row is None:
                del self.running[generator]
        return events

    def cancel(self) -> None:
        """As in ``Pool``."""
        for generator in self.running:
            self.ray.cancel(generator, force=True)
        self.running = {}


def rows_of(cell: Cell, threads: int) -> Iterator[Row]:
    """The rows of a cell, as they come; its errors are raised."""
    import torch

    rows: queue.Queue[Row | None] = queue.Queue()
    errors: list[BaseException] = []

    def work() -> None:
        torch.set_num_threads(threads)
        try:
            cell.work(rows.put)
        except BaseException as error:
            errors.append(error)
        rows.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (row := rows.get()) is not None:
        yield row
    if errors:
        raise errors[0]

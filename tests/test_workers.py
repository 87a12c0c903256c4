"""Cells on worker processes and on Ray: rows come as they are computed, and what is lost is computed again."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from layerswap.errors import UserError
from layerswap.workers import RAY, Cell, ProcessPool, make_pool, process_pool, run_cells


def write_rows(n, send, pause=0.0):
    for i in range(n):
        send({"i": i, "process": os.getpid()})
        time.sleep(pause)


def send_gpus(send):
    time.sleep(0.5)  # both workers get a cell
    send({"gpus": os.environ["CUDA_VISIBLE_DEVICES"], "process": os.getpid()})


def die_once(marker, send):
    """Send a row, and be killed, unless that was before."""
    send({"i": 0, "process": os.getpid()})
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    send({"i": 1, "process": os.getpid()})


def fail(error, log, send):
    with open(log, "a") as file:
        file.write("tried\n")
    raise error


def raise_unpicklable(send):
    class LocalError(Exception):
        pass

    raise LocalError("only here")


@pytest.fixture(params=["processes", RAY])
def pool(request):
    if request.param == RAY:
        pytest.importorskip("ray")
        return make_pool(RAY, 1)
    return process_pool(2, 1, 0)


def test_rows_of_all_cells_come(pool):
    cells = [Cell(f"cell {n}", partial(write_rows, n)) for n in (3, 0, 5, 1)]
    rows = list(run_cells(cells, pool))
    assert sorted(row["i"] for row in rows) == [0, 0, 0, 1, 1, 2, 2, 3, 4]
    assert os.getpid() not in {row["process"] for row in rows}


def test_rows_come_before_their_cell_has_ended(pool):
    started, first = time.monotonic(), None
    for _ in run_cells([Cell("slow", partial(write_rows, 4, pause=0.5))], pool):
        first = first or time.monotonic()
    assert time.monotonic() - first > 1 > 0 < first - started


def test_a_cell_whose_worker_is_killed_is_tried_again(pool, tmp_path):
    cells = [Cell("dies", partial(die_once, tmp_path / "marker")), Cell("other", partial(write_rows, 2))]
    rows = list(run_cells(cells, pool))
    assert sorted(row["i"] for row in rows) in ([0, 0, 0, 1, 1], [0, 0, 1, 1]), "its first row may be lost"
    assert (tmp_path / "marker").exists()


def test_a_worker_that_died_between_cells_is_replaced():
    pool = ProcessPool(1, 1, 0)
    (row,) = run_cells([Cell("one", partial(write_rows, 1))], pool)
    os.kill(row["process"], signal.SIGKILL)
    pool.processes[0][0].join()
    (again,) = run_cells([Cell("one", partial(write_rows, 1))], pool)
    assert again["process"] != row["process"]


def test_an_error_of_the_user_is_raised_at_once(pool, tmp_path):
    log = tmp_path / "log"
    cells = [
        Cell("bad", partial(fail, UserError("a: bad folder"), log)),
        Cell("long", partial(write_rows, 99, pause=1)),
    ]
    with pytest.raises(UserError, match="^a: bad folder$"):
        list(run_cells(cells, pool))
    assert log.read_text() == "tried\n"
    assert len(list(run_cells([Cell("later", partial(write_rows, 2))], pool))) == 2, "the pool goes on"


def test_other_errors_are_tried_again_and_named(pool, tmp_path):
    log = tmp_path / "log"
    with pytest.raises(UserError, match="^cell of sw: failed 4 times: .*no luck"):
        list(run_cells([Cell("cell of sw", partial(fail, ValueError("no luck"), log))], pool))
    assert log.read_text() == "tried\n" * 4


def test_an_error_that_cannot_be_sent_is_named():
    with pytest.raises(UserError, match="failed 4 times: .*LocalError: only here"):
        list(run_cells([Cell("odd", raise_unpicklable)], process_pool(2, 1, 0)))


def test_workers_end_with_the_process_that_started_them(tmp_path):
    program = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import test_workers as t\n"
        "if __name__ == '__main__':\n"
        "    cells = [t.Cell('long', t.partial(t.write_rows, 99, pause=0.2))]\n"
        "    for row in t.run_cells(cells, t.ProcessPool(1, 1, 0)):\n"
        "        print(row['process'], flush=True)\n"
    )
    (tmp_path / "driver.py").write_text(program)
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    driver = subprocess.Popen([sys.executable, tmp_path / "driver.py"], stdout=subprocess.PIPE, env=environment)
    worker = int(driver.stdout.readline())
    driver.kill()
    driver.wait()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists() or "(zombie)" in Path(f"/proc/{worker}/status").read_text():
            return
        time.sleep(0.1)
    pytest.fail("the worker lives on")


def test_without_ray_a_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        UserError, match=r"^workers is 'ray', which is not installed: pip install 'layerswap\[cluster\]'$"
    ):
        make_pool(RAY, 1)


def test_more_workers_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    with pytest.raises(UserError, match="^workers is 2, each with 2 GPUs, but there are 3$"):
        make_pool(2, 1, gpus=2)


def test_more_workers_than_gpus_share_them(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    rows = list(run_cells([Cell(str(i), send_gpus) for i in range(2)], ProcessPool(2, 1, gpus=1)))
    assert len({row["process"] for row in rows}) == 2
    assert {row["gpus"] for row in rows} == {"0"}

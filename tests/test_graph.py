"""The graph of stages on executors that a notebook cannot bring: Dask with a killed worker, submitit, a killed run."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from aufacs_nb.experiments.graph import GraphError, Stage, open_executor, run

TOY = '''
import os, time
from pathlib import Path

def count(out, n, pause=0.0):
    "Write the numbers below n, slowly."
    while os.environ.get("HOLD") and list(out.parent.glob("count-*")):
        time.sleep(0.02)  # another count is done: wait here to be killed
    for i in range(n):
        (out / f"{i}.txt").write_text(str(i * i))
        time.sleep(pause)

def add(out, pause=0.0, **parts):
    "The sum of all numbers of all parts."
    time.sleep(pause)
    (out / "sum.txt").write_text(str(sum(int(p.read_text()) for f in parts.values() for p in f.glob("*.txt"))))

def dies_once(out, marker):
    "Kill the process that does this, the first time."
    if not Path(marker).exists():
        Path(marker).write_text("")
        os._exit(1)
    (out / "0.txt").write_text("7")
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The folder of a module `toy`, importable here and in every process that this one starts."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    return tmp_path


def tree(pause=0.0, **more):
    """A sum over four counts."""
    parts = {f"part{n}": Stage("count", "toy:count", dict(n=n, pause=pause)) for n in (3, 4, 5, 6)}
    return Stage("add", "toy:add", needs={**parts, **more})


def result(folder):
    """The sum, and everything that lies in the folders, as one comparable thing."""
    return (folder / "sum.txt").read_text(), sorted(p.relative_to(folder.parent).as_posix() for p in folder.parent.rglob("*.txt"))


@pytest.fixture
def serial(toy):
    """What the tree gives one by one in this process."""
    return result(run([tree()], toy / "serial", progress=False)[0])


def test_two_processes_give_what_one_gives(toy, serial):
    with open_executor("processes:2") as executor:
        assert result(run([tree()], toy / "two", executor, progress=False)[0]) == serial


def test_dask_with_a_worker_killed_in_the_middle_gives_what_serial_gives(toy):
    distributed = pytest.importorskip("distributed")
    stage = tree(0.02, extra=Stage("dies", "toy:dies_once", dict(marker=str(toy / "marker"))))
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None, worker_dashboard_address=None) as cluster:
        executor = open_executor(f"dask:{cluster.scheduler_address}")
        by_dask = result(run([stage], toy / "dask", executor, progress=False)[0])
        distributed.default_client().close()
    assert (toy / "marker").exists()
    assert by_dask == result(run([stage], toy / "serial", progress=False)[0])


def test_submitit_gives_what_serial_gives(toy, serial):
    pytest.importorskip("submitit")
    options = toy / "slurm.json"
    options.write_text(json.dumps({"cluster": "local", "folder": str(toy / "logs"), "timeout_min": 2}))
    assert result(run([tree()], toy / "slurm", open_executor(f"slurm:{options}"), progress=False)[0]) == serial


def test_a_killed_run_goes_on_and_makes_nothing_twice(toy, serial):
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from test_graph import tree; "
            "from aufacs_nb.experiments.graph import run; run([tree()], sys.argv[2], progress=False)")
    environment = dict(os.environ, HOLD="1", PYTHONPATH=os.pathsep.join([str(toy), os.path.dirname(__file__)]))
    child = subprocess.Popen([sys.executable, "-c", code, str(toy), str(toy / "killed")], env=environment)
    deadline = time.time() + 300
    while not list((toy / "killed").glob("count-*")) and time.time() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = {p.name: p.stat().st_mtime_ns for p in (toy / "killed").glob("count-*")}
    assert len(done) == 1
    assert result(run([tree()], toy / "killed", progress=False)[0])[0] == serial[0]
    assert {name: (toy / "killed" / name).stat().st_mtime_ns for name in done} == done


def test_a_second_try_does_not_keep_the_error_of_the_first(toy, monkeypatch):
    monkeypatch.setenv("TRIES", "1")
    (toy / "once.py").write_text("import os\ndef work(out): (out / os.environ.pop('TRIES', '')).rmdir() "
                                 "if 'TRIES' in os.environ else (out / '0.txt').touch()\n")
    stage = Stage("once", "once:work")
    with pytest.raises(GraphError, match="FileNotFound"):
        run([stage], toy / "runs", progress=False)
    assert (toy / "runs" / f".{stage.folder(toy).name}.part" / "error.txt").is_file()
    (folder,) = run([stage], toy / "runs", progress=False)
    assert sorted(path.name for path in folder.iterdir()) == ["0.txt", "stage.json"]
    assert not list((toy / "runs").glob(".*"))

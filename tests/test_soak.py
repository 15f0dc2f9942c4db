"""The judge of tools/soak.py: what stays, grows or fails is named, a run that comes back is not blamed; and what it found."""
import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools import soak

FIRST = {"seconds": 0, "kernels": 1, "kernels MB": 700, "largest MB": 700, "server MB": 450, "open files": 14,
         "threads": 4, "temporary files": 1, "connection files": 1, "round ended": 0}
GONE = FIRST | {"kernels": 0, "kernels MB": 0, "temporary files": 0, "connection files": 0}
SERVED = [SimpleNamespace(wrong=[])]


@pytest.mark.parametrize("last, people, log, words", [
    (GONE, SERVED, "", []),
    (GONE | {"kernels": 2}, SERVED, "", ["2 kernels stay"]),
    (GONE | {"temporary files": 1, "connection files": 3}, SERVED, "",
     ["1 temporary files stay", "3 connection files"]),
    (GONE | {"server MB": 450 + soak.LEAK + 1}, SERVED, "", ["grew from 450"]),
    (GONE | {"open files": 60}, SERVED, "", ["open files grew from 14 to 60"]),
    (GONE, SERVED, "fine\nKeyError: 'x'\n", ["in the log: KeyError"]),
    (GONE, [SimpleNamespace(wrong=["visitor 1, live: Timeout"])], "", ["visitor 1, live: Timeout"])])
def test_what_stays_grows_or_fails_is_named(last, people, log, words):
    found = soak.faults(pd.DataFrame([FIRST, last]), people, log)
    assert len(found) == len(words) and all(word in line for word, line in zip(words, found))


@pytest.mark.parametrize("ends, words", [((480, 490), []), ((455, 455 + soak.MORE + 1), ["last round"]), ((480,), [])])
def test_what_every_round_takes_is_told_from_what_the_first_loads(ends, words):
    rows = [FIRST, *(GONE | {"server MB": end, "round ended": k} for k, end in enumerate(ends, 1)), GONE | {"server MB": ends[-1]}]
    found = soak.faults(pd.DataFrame(rows), SERVED, "")
    assert len(found) == len(words) and all(word in line for word, line in zip(words, found))


def test_files_of_connections_are_told_from_what_an_upload_left(tmp_path):
    for name in ("voila_x/kernel-1.json", "kernel-2.json", ".aufacs_upload.7.tmp/upload.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    connections, others = soak.Server.files(SimpleNamespace(temporary=tmp_path))
    assert (sorted(connections), others) == (["kernel-1.json", "kernel-2.json"], ["upload.jpg"])


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries give back by themselves, or cannot be asked")
def test_what_visits_leave_free_goes_back_to_the_system():
    "Blocks below one that is still held: glibc keeps them for this process, for ever."
    script = """
import psutil
from aufacs_nb.apps.live import _tidy
_tidy()  # what it loads itself
used = lambda: psutil.Process().memory_info().rss / 1e6
blocks = [b"x" * 100_000 for _ in range(2000)]
full, blocks = used(), blocks[-1:]
kept = used()
_tidy()
print(full - kept, kept - used())
"""
    by_itself, tidied = map(float, subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())
    assert by_itself + tidied > 150, "what was freed is gone"
    assert tidied > 100 or by_itself > 150


def test_kernels_share_one_logger_of_events():
    "Each had its own, and Python keeps what `logging.getLogger` made as long as the process lives."
    pytest.importorskip("voila")
    from aufacs_nb.apps import live
    from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
    from tornado.web import Application
    from voila.app import Voila

    async def loggers():
        server = live._server_class(live.NAMES, lambda address: None)()
        server.app, server.kernel_manager = Application(), AsyncMappingKernelManager(parent=server)
        server.listen()
        make = lambda: server.kernel_manager.kernel_manager_factory(parent=server.kernel_manager).event_logger
        first, before = make(), len(logging.Logger.manager.loggerDict)
        return {id(make()) for _ in range(5)} == {id(first)}, len(logging.Logger.manager.loggerDict) - before

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Voila, "listen", lambda self: None)
        assert asyncio.run(loggers()) == (True, 0)

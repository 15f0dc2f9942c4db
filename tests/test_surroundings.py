"""The package in surroundings that are not a workstation's: folders that cannot be written, processes that were forked."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

import aufacs_nb

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="users and forks of POSIX")
READ_ONLY = """
import os, sys
os.access = lambda path, mode, able=os.access: "geometry" not in str(path) and able(path, mode)
if "after" in sys.argv:
    import aufacs_nb
import numba.core.caching as caching
in_tree = getattr(caching, "InTreeCacheLocator", None) or caching._InTreeCacheLocator  # its name up to numba 0.61
in_tree.from_function = classmethod(lambda *_: None)  # as if the package could not be written
from aufacs_nb.geometry.rasterize import _weights
print(_weights._cache.cache_path)
"""
FORKED = """
import os, signal
import torch
import aufacs_nb
torch.set_num_threads(2)
image, kernel = torch.ones(8, 32, 64, 64), torch.ones(32, 32, 3, 3)
torch.nn.functional.conv2d(image, kernel)
if not (child := os.fork()):
    signal.alarm(15)  # ends a child that waits for threads it does not have
    torch.nn.functional.conv2d(image, kernel)
    os._exit(torch.get_num_threads())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads())
"""


def said(code, *words, **environment):
    """What a fresh interpreter prints."""
    own = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "OMP_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code, *words], env={**own, **environment}, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.parametrize("word", ["before", "after"])
def test_compiled_loops_find_a_place_where_nothing_can_be_written(word, tmp_path):
    nowhere = tmp_path / "file"
    nowhere.touch()  # a home that nobody can make folders in, root included
    place = Path(said(READ_ONLY, word, HOME=str(nowhere), XDG_CACHE_HOME="", TMPDIR=str(tmp_path)))
    assert place.parent == tmp_path / f"aufacs_nb-loops-{os.getuid()}"
    assert place.parent.stat().st_mode & 0o777 == 0o700


def test_compiled_loops_stay_where_they_are_elsewhere(tmp_path):
    code = "import aufacs_nb, os; print(os.environ.get('NUMBA_CACHE_DIR'))"
    assert said(code, TMPDIR=str(tmp_path)) == "None"
    assert said(code, NUMBA_CACHE_DIR="/mine") == "/mine"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_can_write_to_is_not_trusted(tmp_path):
    mine = Path(aufacs_nb._private_folder(str(tmp_path)))
    assert aufacs_nb._private_folder(str(tmp_path)) == str(mine)
    mine.chmod(0o777)
    assert aufacs_nb._private_folder(str(tmp_path)) is None
    mine.rmdir()
    (tmp_path / "theirs").mkdir()
    mine.symlink_to(tmp_path / "theirs")
    assert aufacs_nb._private_folder(str(tmp_path)) is None
    assert aufacs_nb._private_folder(str(tmp_path / "none")) is None


def test_a_forked_process_computes_and_its_parent_keeps_its_threads():
    assert said(FORKED) == "1 2"

"""The judge of tools/soak.py: what stays, grows or fails is named; a run that comes back is not blamed."""
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

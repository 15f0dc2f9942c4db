"""The short form of tools/torture.py: a command is killed, run again, and leaves the bytes of a whole run."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "torture.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="commands are forked")
def test_killed_trainings_go_on_to_the_same_bytes():
    done = subprocess.run([sys.executable, TOOL, "train-classifiers", "--kills", "3"], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert "kills 4, equal 3, different 0, errors 0" in done.stdout and not done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="commands are forked")
def test_a_difference_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(TOOL.parent)
    from torture import differences

    from tools.contents import contents

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "same").write_text("1")
    whole = contents(tmp_path)
    (tmp_path / "a" / ".same.7.tmp").write_text("1")
    assert differences(contents(tmp_path), whole, set()) == ["a/.same.7.tmp"]
    (tmp_path / "a" / "same").write_text("2")
    assert differences(contents(tmp_path), whole, {"a/.same.7.tmp"}) == ["a/same"]

"""The short form of tools/fuzz.py: bad inputs for every command end in a message that names them, or rightly."""
import gc
import os
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
CASES = 520
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices are among the inputs")


@pytest.fixture(scope="module")
def fuzz():
    "The tool, as a module; what it changes in this process is set back."
    sys.path.insert(0, str(TOOLS))
    threshold = gc.get_threshold()
    import fuzz

    yield fuzz
    gc.set_threshold(*threshold)
    sys.path.remove(str(TOOLS))


def test_corpus_of_bad_inputs(fuzz, tmp_path):
    fuzz.prepare(tmp_path)
    cases = fuzz.corpus(tmp_path, CASES)
    every = {command for command, *_ in fuzz._options()}
    assert len(cases) == CASES and every <= {case.command for case in cases}
    rows = fuzz.try_all(cases, tmp_path)
    print(fuzz.summary(rows))
    assert not [fuzz.told(*row) for row in rows if row[1] not in fuzz.RIGHT]


def outcome(fuzz, code, said, megabytes=0):
    "An outcome of no time."
    return fuzz.Outcome(code, said, 0.0, megabytes)


def test_faults_are_noticed(fuzz):
    case = fuzz.Case("media", "x", ("predict", "cut.png"), ("cut.png",))
    judged = {("aufacs: cut.png: truncated", 2): "refused", ("12 of 12 rows → au.csv", 0): "wrong success",
              ("aufacs: truncated", 2): "not named", ("Traceback (most recent call last):", 1): "traceback",
              ("cut.png", 139): "exit code", ("cut.png \x1b[31m", 2): "escape",
              ("it took more than 60 s", None): "hang"}
    assert {key: fuzz.judge(case, outcome(fuzz, key[1], key[0])) for key in judged} == judged
    assert fuzz.judge(case, outcome(fuzz, 2, "cut.png"), kept=False) == "destroyed"
    assert fuzz.judge(case, outcome(fuzz, 2, "cut.png", 10**5)) == "memory"
    may = fuzz.Case("names", "x", ("predict", "a.png"), ("a.png",), fuzz.DONE)
    assert fuzz.judge(may, outcome(fuzz, 2, "a.png: no")) == "wrong refusal"


def test_a_command_that_breaks_is_noticed(fuzz, tmp_path, monkeypatch):
    "One guard is taken out; the corpus names the case."
    import aufacs_nb.apps.cli as cli

    def broken(words):
        "As if the guard of pictures were gone."
        raise KeyError(words[1])

    monkeypatch.setattr(cli, "main", broken)
    [(_, verdict, done)] = fuzz.try_all([fuzz.Case("media", "x", ("predict", "cut.png"), ("cut.png",))], tmp_path)
    assert verdict == "traceback" and "KeyError: 'cut.png'" in done.said

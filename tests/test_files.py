"""Guards of outputs: what is not ours stays as it is, one process writes, names do no harm."""
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from aufacs_nb.files import (OutputError, WriteError, check_folder, check_output, lock, made_here, remove_leftovers, safe_cell,
                             shown, stoppable, temporary_name, write_atomically)
from aufacs_nb.folders import FolderError, only_one
from aufacs_nb.generation.synthesis import save_animation
from aufacs_nb.pictures import save_synthetic


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "=\x1b[2J.png", "\udcff.png", "a\r\nb", "\u202egnp.exe"])
def test_no_name_acts_in_a_table_or_a_terminal(text):
    for made in (shown(text), safe_cell(text)):
        assert made.encode() and not any(ord(one) < 32 or one in "\x7f\x9b\u202e" for one in made)
    assert safe_cell(text)[0] not in "=+-@" and safe_cell("a=b-1.png") == "a=b-1.png"


def test_an_input_is_never_the_output(tmp_path):
    source = tmp_path / "film.mp4"
    source.write_bytes(b"aufacs_nb made this film, and it is still a source")
    (tmp_path / "soft.mp4").symlink_to(source)
    (tmp_path / "hard.mp4").hardlink_to(source)
    for name in ("film.mp4", "soft.mp4", "hard.mp4", f"../{tmp_path.name}/film.mp4"):
        with pytest.raises(OutputError, match="its own source"):
            check_output(tmp_path / name, [source], force=True)
    with pytest.raises(OutputError, match="its own source"):
        check_folder(tmp_path, ["film.mp4"], [tmp_path], force=True)
    assert check_output("new.csv", [tmp_path / "gone.csv"]).name == "new.csv"


def test_only_what_was_made_here_is_replaced_and_links_stay(tmp_path):
    theirs, ours = tmp_path / "theirs.csv", tmp_path / "ours.csv"
    theirs.write_text("name,wage\n")
    ours.write_text("made by aufacs_nb\n" + "x" * 3_000_000)
    assert not made_here(theirs) and made_here(ours) and check_output(theirs, force=True) == theirs
    for path in (theirs, tmp_path):
        with pytest.raises(OutputError):
            check_output(path)
    (tmp_path / "link.csv").symlink_to(ours)
    (tmp_path / "new.csv").symlink_to(tmp_path / "yet to come.csv")
    assert check_output(tmp_path / "link.csv") == ours and check_output(tmp_path / "new.csv").name == "yet to come.csv"
    for path in ("/dev/null", "/dev/zero"):
        with pytest.raises(OutputError, match="device or pipe"):
            check_output(path, force=True)
    with pytest.raises(OutputError, match="holds other things"):
        check_folder(tmp_path, ["manifest.parquet"])
    assert check_folder(tmp_path, ["ours.csv"]) == tmp_path == check_folder(tmp_path, [], force=True)


def test_marks_are_such_that_nobody_else_writes(tmp_path):
    (tmp_path / "openface.csv").write_text("frame, face_id, timestamp, gaze_angle_x\n")
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7 /Title (Synthetic faces)")
    save_synthetic(tmp_path / "ours.png", np.zeros((8, 8, 3), np.uint8), "flow", "me.png", "AU12=5")
    save_animation(tmp_path / "ours.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3, "flow", "me.png")
    save_animation(tmp_path / "ours.gif", [np.zeros((64, 64, 3), np.uint8)] * 3, "flow", "me.png")
    assert {path.name: made_here(path) for path in tmp_path.iterdir()} == {
        "openface.csv": False, "paper.pdf": False, "ours.png": True, "ours.mp4": True, "ours.gif": True}


@pytest.mark.parametrize("force", [None, False])
def test_a_refusal_names_the_option_and_only_a_way_out_that_there_is(force, tmp_path):
    (tmp_path / "theirs.png").write_bytes(b"no picture of ours")
    for check in (lambda **o: check_output(tmp_path / "theirs.png", **o), lambda **o: check_folder(tmp_path, ["x"], **o)):
        with pytest.raises(OutputError, match="^--plot ") as refused:
            check(option="--plot", force=force)
        assert ("--force" in str(refused.value)) == (force is not None)


HOLDS = """import sys, time
from aufacs_nb.{} import {} as hold
with hold(sys.argv[1]): print('held', flush=True); time.sleep(60)"""


@pytest.fixture
def holder():
    "Start a process that holds a path by `files.lock` or `folders.only_one`."
    started = []

    def hold(path, module="files", name="lock"):
        one = subprocess.Popen([sys.executable, "-c", HOLDS.format(module, name), str(path)], stdout=subprocess.PIPE, text=True)
        started.append(one)
        assert one.stdout.readline() == "held\n"
        return one
    yield hold
    for one in started:
        one.kill(), one.wait(), one.stdout.close()


def test_two_processes_never_write_one_output_and_a_kill_frees_it(holder, tmp_path):
    out = tmp_path / "au.csv"
    other = holder(out)
    with pytest.raises(OutputError, match="another process is writing it"), lock(out):
        pytest.fail("two writers")
    with lock(tmp_path / "another.csv"):
        pass
    other.kill()
    other.wait()
    (tmp_path / f".au.csv.{other.pid}.tmp").write_text("half a table")
    (tmp_path / f".other.csv.{other.pid}.tmp").write_text("of another output")
    with lock(out):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".au.csv.lock", f".other.csv.{other.pid}.tmp"]
    assert [path.name for path in tmp_path.iterdir()] == [f".other.csv.{other.pid}.tmp"]


@pytest.mark.parametrize("module, name", [("files", "lock"), ("folders", "only_one")])
def test_one_lock_for_commands_and_for_runs_under_every_name_of_a_folder(module, name, holder, tmp_path):
    run = tmp_path / "run"
    (run / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(run)
    holder(run, module, name)
    for path in (run, tmp_path / "link", run / "deep" / ".."):
        with pytest.raises(OutputError, match="another process is writing it"), lock(path):
            pytest.fail("two writers")
        with pytest.raises(FolderError, match="another process is writing it"), only_one(path):
            pytest.fail("two writers")
    with only_one(run / "deep"):
        pass


def test_what_dead_processes_left_goes_from_all_folders_below_and_nothing_else(holder, tmp_path):
    run = tmp_path / "run"
    other = holder(tmp_path / "elsewhere.csv")
    (run / "classifiers").mkdir(parents=True)
    (run / ".0001.99999999.tmp").mkdir()
    (run / ".0001.99999999.tmp" / "1.png").touch()
    dead = [run / "classifiers" / ".weights.safetensors.99999999.tmp", tmp_path / ".run.99999999.tmp", run / ".0001.99999999.tmp"]
    kept = [temporary_name(run / "card.json"), run / f".rows.{other.pid}.tmp", tmp_path / ".rune.99999999.tmp", run / ".x.part"]
    for path in (*dead[:2], *kept):
        path.touch()
    assert sorted(remove_leftovers(run)) == sorted(dead)
    assert all(path.exists() for path in kept) and not any(path.exists() for path in dead)


def test_a_place_that_cannot_be_written_is_not_called_busy(tmp_path):
    (tmp_path / "file").touch()
    for path in ("/proc/aufacs.csv", tmp_path / "file" / "au.csv", tmp_path / "file" / "deep" / "au.csv"):
        for write in (lambda: lock(path).__enter__(), lambda: only_one(path).__enter__(),
                      lambda: write_atomically(path, lambda new: new.touch())):
            with pytest.raises(WriteError, match="could not be written") as said:
                write()
            assert "another process" not in str(said.value) and str(path) in str(said.value)


def test_a_folder_beside_which_nothing_can_be_written_is_locked_inside(tmp_path, monkeypatch):
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path.parent and may(path, mode))
    with lock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


def test_an_error_of_something_else_stays_what_it_is_and_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "au.csv", lambda new: (new.touch(), 1 / 0))
    with pytest.raises(WriteError, match="^[^(]*inner: could not be written .*No space"):  # said once
        write_atomically(tmp_path / "outer", lambda new: write_atomically(tmp_path / "inner", no_space))
    assert not list(tmp_path.iterdir())


def no_space(path):
    path.mkdir()
    raise OSError(28, "No space left on device")


def test_sigterm_lets_a_block_clean_up():
    said = []
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"), stoppable():
        try:
            os.kill(os.getpid(), 15)
            time.sleep(5)
            said.append("slept on")
        finally:
            said.append("cleaned up")
    assert said == ["cleaned up"]

"""Guards of outputs: what is not ours stays as it is, one process writes, names do no harm."""
import os
import subprocess
import sys
import time

import pytest

from aufacs_nb.files import OutputError, check_folder, check_output, lock, made_here, safe_cell, shown, stoppable


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
    ours.write_text("frame,face_id\n" + "x" * 3_000_000)
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


HOLDS = "import sys, time; from aufacs_nb.files import lock\nwith lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"


def test_two_processes_never_write_one_output_and_a_kill_frees_it(tmp_path):
    out = tmp_path / "au.csv"
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another process is writing it"), lock(out):
            pytest.fail("two writers")
        with lock(tmp_path / "another.csv"):
            pass
    finally:
        other.kill()
        other.wait()
    (tmp_path / f".au.csv.{other.pid}.tmp").write_text("half a table")
    (tmp_path / f".other.csv.{other.pid}.tmp").write_text("of another output")
    with lock(out):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".au.csv.lock", f".other.csv.{other.pid}.tmp"]
    assert [path.name for path in tmp_path.iterdir()] == [f".other.csv.{other.pid}.tmp"]


def test_sigterm_lets_a_block_clean_up():
    start, cleaned = time.monotonic(), []
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"), stoppable():
        try:
            os.kill(os.getpid(), 15)
            time.sleep(5)
        finally:
            cleaned.append(time.monotonic() - start)
    assert cleaned[0] < 1

"""How every command begins and ends: what it refuses, what it leaves out, exit codes, signals, names that would act."""
import contextlib
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import typer
from PIL import Image
from skimage.data import astronaut

from aufacs_nb.apps.cli import _end_without_mean, _unsigned, app, main
from aufacs_nb.apps.everyday import _is_ours
from aufacs_nb.databases import DatabaseError, count_frames, frame_rate, sample_database, write_video
from aufacs_nb.estimation.estimator import AUEstimator, _generator_name
from aufacs_nb.estimation.sources import StreamItem
from aufacs_nb.estimation.tables import openface_table, save_table
from aufacs_nb.files import OutputError, lock
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person


@pytest.fixture
def me(tmp_path):
    "A photograph."
    Image.fromarray(astronaut()[:300, 60:400]).save(tmp_path / "me.png")
    return tmp_path / "me.png"


@pytest.fixture
def film():
    "A film of the sample database, 24 frames."
    return sorted((sample_database() / "FERA17_Test_MV").glob("*.mp4"))[0]


@pytest.fixture
def never(monkeypatch):
    "Whatever is refused is refused before a model is loaded."
    monkeypatch.setattr(AUEstimator, "from_pretrained", lambda *a, **k: pytest.fail("too late"))


def ends(*words):
    "The exit code with which the program ends."
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_version_module_and_completion(run_python, capsys):
    said = run_python("import runpy, sys; sys.argv = ['aufacs', '--version']; runpy.run_module('aufacs_nb', run_name='__main__')")
    import aufacs_nb
    assert said == f"aufacs_nb {aufacs_nb.__version__}"
    assert ends("--help") == 0 and "--install-completion" in capsys.readouterr().out
    assert ends("--log-level", "loud", "actions", "x") == 2 and "choose debug, info" in capsys.readouterr().err


def test_an_output_never_destroys_what_is_not_ours(me, film, tmp_path, never, capsys):
    theirs, part, ours = tmp_path / "theirs.csv", tmp_path / "kept.part.csv", tmp_path / "ours.csv"
    theirs.write_text("name,wage\n")
    part.write_text("name,wage\n")
    ours.write_text("frame,face_id,timestamp,confidence,success,AU12_r,AU12_c\n")
    (tmp_path / "hard.csv").hardlink_to(me)
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "plot.png").write_bytes(me.read_bytes())
    cases = {("predict", me, "--out", theirs): "was not made by this package", ("actions", me, "--out", theirs): "--force",
             ("predict", me, "--out", tmp_path / "kept.csv"): "kept.part.csv", ("predict", me, "--out", tmp_path / "hard.csv"):
             "would overwrite its own source", ("predict", me, "--out", tmp_path / "pipe.csv"): "device or pipe",
             ("predict", me, "--plot", tmp_path / "plot.png"): "--force", ("predict", me, "--overlay", me): "its own source",
             ("predict", me, "--out", ours, "--neutral", film): "is a film, and --neutral takes a photograph",
             ("personalize", film, "--out", tmp_path / "x"): "is a film, and personalize takes", ("personalize", me, "--out",
             tmp_path): "holds other things", ("demo", "--photo", film, "--out", tmp_path / "x"): "is a film",
             ("synthesize", me, "--out", tmp_path / "plot.png"): "--force", ("manifest", tmp_path, "--out", theirs): ".parquet",
             ("predict", me, "--out", tmp_path / "plot.txt"): "ends in .csv"}
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for words, said in cases.items():
        assert ends(*words) == 2, words
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_tables_of_others_are_not_taken_for_ours(me, tmp_path, never, capsys):
    head = "frame,face_id,timestamp,confidence,success"
    theirs = {"openface.csv": head.replace(",", ", ") + ", gaze_0_x, gaze_angle_x, AU12_r, AU12_c",
              "aus.csv": f"{head},AU12_r,AU45_r,AU12_c,AU28_c,AU45_c", "mouthSmileLeft.csv": "name,mouthSmileLeft",
              "icc.csv": "model,icc_value"}
    for name, columns in theirs.items():
        (tmp_path / name).write_text(columns + "\n1\n")
        words = ("evaluate", "--data", tmp_path) if name == "icc.csv" else ("predict", me)
        assert ends(*words, "--out", tmp_path / name) == 2
        assert "was not made by this package" in capsys.readouterr().err, name


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_tables_of_ours_are_known_in_every_form(ending, tmp_path):
    rows = openface_table([(StreamItem(1, 0., "me.png", None), None)] * 2, np.zeros((2, 2)), (1, 12), landmarks=68)
    assert _is_ours(save_table(rows, tmp_path / f"ours.{ending}"))
    assert not _is_ours(save_table(rows.assign(note="x"), tmp_path / f"theirs.{ending}"))


def test_one_file_is_not_two_outputs_and_no_path_is_empty(me, tmp_path, never, capsys):
    (tmp_path / "proj" / "sample").mkdir(parents=True)
    (tmp_path / "proj" / "icc.csv").write_text("model,icc\n")
    neutral = tmp_path / "neutral.png"
    cases = {("predict", me, "--plot", tmp_path / "z.png", "--overlay", tmp_path / "z.png"): "or another output",
             ("predict", me, "--neutral", neutral, "--overlay", neutral): "its own source", ("predict", ""): "SOURCES is empty",
             ("actions", me, ""): "SOURCES is empty", ("register", "", "--out", tmp_path / "r"): "SOURCE is empty",
             ("simulate", "disfa", "--out", ""): "--out is empty", ("demo", "--out", tmp_path / "proj"): "holds other things",
             ("reproduce", "table-1", "--out", tmp_path / "proj"): "holds other things",
             ("reproduce", "table-1", "--executor", "processes:²"): "n_jobs is '²'",
             ("normalize", "--data", tmp_path, "--out", tmp_path / "n", "--neutral", "A=²"): "write SUBJECT=ROW"}
    for words, said in cases.items():
        assert ends(*words) == 2, words
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error


def test_a_mistyped_rerun_keeps_the_rows_there_are(me, tmp_path, capsys):
    part = tmp_path / "many.part.csv"
    part.write_text("frame,face_id,timestamp,confidence,success,gaze_angle_x,gaze_angle_y,pose_Rx,pose_Ry,pose_Rz,AU12_r,AU12_c\n1,2,1\n")
    assert ends("predict", tmp_path / "nosuch.png", "--out", tmp_path / "many.csv") != 0
    assert part.read_text().endswith("2,1\n") and "interrupted" not in capsys.readouterr().err


def test_a_table_without_a_mean_ends_with_1(capsys):
    for mean, code in ((np.nan, 1), (.5, None)):
        table = pd.DataFrame({"icc": [SimpleNamespace(value=mean)]}, index=["mean"])
        with contextlib.nullcontext() if code is None else pytest.raises(typer.Exit) as end:
            _end_without_mean(table, "registered")
        assert code is None or end.value.exit_code == code and "no mean" in capsys.readouterr().err


def test_a_model_is_not_replaced_by_what_adapts_it(me, tmp_path, never, capsys):
    for place in ("mine", "mine/classifiers"):
        (tmp_path / place).mkdir()
    (tmp_path / "mine" / "classifiers" / "card.json").write_text("{}")
    for model in (tmp_path / "mine", tmp_path / "mine" / "classifiers"):
        assert ends("personalize", me, "--model", model, "--out", tmp_path / "mine") == 2
        assert "would overwrite its own source" in capsys.readouterr().err


def test_links_are_written_through_and_force_replaces(me, tmp_path, capsys):
    (tmp_path / "far").mkdir()
    (tmp_path / "link.csv").symlink_to("far/au.csv")
    (tmp_path / "theirs.csv").write_text("name,wage\n")
    assert ends("predict", me, "--model", "mesh18", "--out", tmp_path / "link.csv", "--quiet") == 0
    assert (tmp_path / "link.csv").is_symlink() and pd.read_csv(tmp_path / "far" / "au.csv").success.tolist() == [1]
    assert ends("predict", me, "--model", "mesh18", "--out", tmp_path / "theirs.csv", "--quiet", "--force") == 0
    assert pd.read_csv(tmp_path / "theirs.csv").equals(pd.read_csv(tmp_path / "link.csv"))
    assert not list(tmp_path.rglob(".*")), "locks and temporary files are gone"


def test_a_second_process_on_one_output_is_refused(me, tmp_path, never):
    with ThreadPoolExecutor(1) as other, lock(tmp_path / "au.csv"):
        asked = other.submit(app, ["predict", str(me), "--out", str(tmp_path / "au.csv")], standalone_mode=False)
        with pytest.raises(OutputError, match="another process is writing it"):
            asked.result()


def test_sigterm_keeps_the_rows_and_exits_with_143(film, tmp_path, monkeypatch, capsys):
    whole = AUEstimator.batches

    def killed(self, *arguments, **options):
        "The system asks the program to end after the first batch."
        yield next(whole(self, *arguments, **options, batch=8))
        os.kill(os.getpid(), signal.SIGTERM)
        yield from ()

    monkeypatch.setattr(AUEstimator, "batches", killed)
    assert ends("predict", film, "--model", "mesh18", "--out", tmp_path / "au.csv", "--quiet") == 143
    said = capsys.readouterr().err
    assert "the first 8 rows are in" in said and "aufacs: terminated" in said and "run the same command" not in said
    assert len(pd.read_csv(tmp_path / "au.part.csv")) == 8 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert [path.name for path in tmp_path.iterdir()] == ["au.part.csv"]


@pytest.mark.parametrize("way, code, name", [("skip", 1, "au.csv"), ("raise", 2, "au.part.csv")])
def test_a_film_that_breaks_off_keeps_its_rows(way, code, name, film, tmp_path, monkeypatch, capsys):
    whole = AUEstimator.batches

    def broken(self, *arguments, **options):
        "The film breaks off after the first batch."
        yield next(whole(self, *arguments, **options, batch=8))
        raise DatabaseError("film.mp4: breaks off")

    monkeypatch.setattr(AUEstimator, "batches", broken)
    words = ("predict", film, "--model", "mesh18", "--out", tmp_path / "au.csv", "--quiet", "--on-error", way)
    assert ends(*words, *(("--overlay", tmp_path / "au.mp4") if way == "skip" else ())) == code
    assert "film.mp4: breaks off" in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / name)) == 8 and (tmp_path / "au.mp4").exists() == (way == "skip")


@pytest.mark.parametrize("rate", [12.5, 30000 / 1001])
def test_an_overlay_keeps_the_pace_of_its_film(rate, tmp_path):
    write_video(tmp_path / "film.mp4", [astronaut()[:256, 100:356]] * 3, rate)
    overlay = tmp_path / "seen.mp4"
    assert ends("predict", tmp_path / "film.mp4", "--model", "mesh18", "--out", tmp_path / "au.csv", "--overlay", overlay,
                "--quiet") == 0
    assert (frame_rate(overlay), count_frames(overlay)) == (rate, 3)


def test_names_do_not_act_and_one_bad_file_spoils_nothing_else(me, tmp_path, capsys):
    folder = tmp_path / "album"
    folder.mkdir()
    odd = ("=cmd.png", "red\x1b[31m.png", os.fsdecode(b"caf\xe9.png"))
    for name in odd:
        (folder / name).write_bytes(me.read_bytes() if name[0] != "r" else b"no picture")
    assert ends("predict", folder, me, folder / odd[1], "--model", "mesh18", "--out", tmp_path / "au.csv", "--quiet") == 1
    said, table = capsys.readouterr(), pd.read_csv(tmp_path / "au.csv")
    assert "\x1b[31m.png" not in said.err + said.out and "left out: " in said.err and r"red\x1b[31m.png" in said.err
    assert table.success.tolist() == [1, 1, 0, 1, 0] and table[table.success == 0].filter(like="_r").isna().all(axis=None)
    assert any(name.endswith(r"caf\udce9.png") for name in table.file) and "\x1b" not in (tmp_path / "au.csv").read_text()
    assert ends("predict", folder, me, "--model", "mesh18", "--out", tmp_path / "no.csv", "--quiet", "--on-error", "raise") == 2
    assert not (tmp_path / "no.csv").exists()
    monkey = [str(folder / odd[0]), "--model", "mesh18", "--out", str(tmp_path / "one.csv"), "--quiet"]
    os.chdir(folder)
    try:
        assert ends("predict", odd[0], odd[0], *monkey[1:]) == 0
    finally:
        os.chdir(tmp_path)
    assert [name[0] for name in pd.read_csv(tmp_path / "one.csv").file] == ["'", "'"]


def test_a_photograph_is_drawn_and_a_device_that_does_nothing_is_said(me, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    words = ("predict", me, "--model", "mesh18", "--out", tmp_path / "au.csv", "--overlay", tmp_path / "au.png", "--quiet")
    assert ends("--log-level", "info", *words, "--device", "cuda") == 0
    said, drawn = capsys.readouterr().err, np.asarray(Image.open(tmp_path / "au.png"))
    assert "note: --device cuda does nothing here: readers of meshes and faces compute on the CPU" in said
    assert "INFO aufacs_nb" in said and Image.open(tmp_path / "au.png").text["Comment"].startswith("AU estimates")
    assert drawn.shape[0] == 640 and drawn.shape[1] > 1000
    assert ends(*words) == 0, "what it wrote itself it may replace"
    assert "does nothing" not in capsys.readouterr().err, "nobody asked for a device"


def test_live_opens_the_page(monkeypatch):
    told = {}
    monkeypatch.setattr("aufacs_nb.apps.live.serve", lambda **options: told.update(options))
    assert ends("live", "--port", 8899, "--no-browser") == 0 and told == {"port": 8899, "open_browser": False}
    assert "torch" in sys.modules and ends("live", "--port", 0) == 2


def test_actions_of_several_sources_name_what_is_missing(me, tmp_path, capsys):
    assert ends("actions", me, tmp_path / "nobody.png", "--out", tmp_path / "a.csv", "--quiet") == 1
    said, table = capsys.readouterr(), pd.read_csv(tmp_path / "a.csv")
    assert "left out: " in said.err and "nobody.png" in said.err and "1 of 2 rows" in said.out
    assert table.success.tolist() == [1, 0] and table.mouthSmileLeft.isna().tolist() == [False, True]
    assert not list(tmp_path.rglob(".*")), "no lock is left"


def test_a_refused_command_leaves_no_empty_folder(tmp_path):
    assert ends("predict", tmp_path / "nowhere.png", "--model", "mesh18", "--out", tmp_path / "new" / "au.csv") == 2
    assert not list(tmp_path.iterdir())


def test_a_folder_of_classifiers_given_directly_keeps_its_zero(me, tmp_path):
    AUEstimator.from_pretrained("small").neutral(me).save(tmp_path / "mine")
    for name, model in (("above", "mine"), ("direct", "mine/classifiers")):
        words = ("predict", me, "--model", tmp_path / model, "--out", tmp_path / f"{name}.csv", "--quiet")
        assert ends(*words) == 0
    above, direct = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("above", "direct"))
    assert above.equals(direct) and above.filter(like="_r").max(axis=None) < .02


def test_the_generator_is_that_of_the_card_in_the_folder_beside_it_or_small(tmp_path):
    (tmp_path / "run" / "generator").mkdir(parents=True)
    (tmp_path / "run" / "classifiers").mkdir()
    for part in ("generator", "classifiers"):
        (tmp_path / "run" / part / "card.json").write_text("{}")
    run, alone = str(tmp_path / "run"), tmp_path / "alone"
    assert [_generator_name(tmp_path / "run" / part, {}) for part in ("", "classifiers")] == [run, run]
    assert _generator_name(alone, {}) == _generator_name("mesh18", {}) == "small" == _generator_name("small", {})
    assert _generator_name(tmp_path / "run", {"generator": "medium"}) == "medium"
    assert _generator_name(tmp_path / "run" / "other", {}) == "small", "what lies beside a folder of folders is not its own"


def test_a_note_is_told_once(me, tmp_path, monkeypatch, capsys):
    "A folder called `small` lies here, and a film is read twice."
    AUEstimator.from_pretrained("small").save(tmp_path / "small")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "films" / "me.png").write_bytes(me.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert ends("predict", "films", "--neutral", "clip", "--out", "au.csv", "--quiet") == 1
    said = capsys.readouterr().err
    assert said.count("means the shipped weights") == said.count("(marked with success = 0)") == 1
    with pytest.warns(UserWarning) as caught:
        AUEstimator.from_pretrained("mesh18").neutral("clip").predict("films")
    assert sum("(marked with success = 0)" in str(one.message) for one in caught) == 1, "not in both readings"


def test_a_manifest_of_a_folder_names_the_pictures_that_cannot_be_read(me, tmp_path, monkeypatch, capsys):
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "me.png").write_bytes(me.read_bytes())
    (tmp_path / "album" / "torn.png").write_bytes(me.read_bytes()[:1000])
    words = ("manifest", tmp_path / "album", "--out", tmp_path / "m.parquet")
    assert ends(*words) == 2 and "torn.png: not a readable picture" in capsys.readouterr().err
    assert ends(*words, "--on-error", "skip") == 1
    told = capsys.readouterr()
    assert "skipped: " in told.err and "torn.png: not a readable picture" in told.err
    assert "1 frame of 1 subject, 1 skipped → " in told.out
    monkeypatch.chdir(tmp_path)
    notes = []
    for _ in range(2):
        assert ends("manifest", "album", "--on-error", "skip") == 1
        notes.append("note: manifest.parquet: of an earlier run, will be replaced" in capsys.readouterr().err)
    assert notes == [False, True], "a name that nobody gave"


@pytest.mark.parametrize("command", ["predict", "actions", "synthesize", "manifest", "register"])
def test_every_command_refuses_a_third_word_for_errors(command, me, tmp_path, never, capsys):
    out = tmp_path / {"synthesize": "x.png", "manifest": "x.parquet"}.get(command, "x.csv")
    assert ends(command, me, "--out", out, "--on-error", "fo\x1bo") == 2
    assert capsys.readouterr().err == "aufacs: --on-error fo\\x1bo: choose raise or skip.\n"


def test_a_refusal_names_the_option_that_is_meant(me, film, tmp_path, never, capsys):
    (tmp_path / "mine.png").write_bytes(b"not ours")
    out = ("--out", tmp_path / "au.csv")
    for words, said in (((me, "--plot", tmp_path / "mine.png"), "--plot {}/mine.png: is there already"),
                        ((me, "--overlay", tmp_path / "mine.png"), "--overlay {}/mine.png: is there already"),
                        ((me, "--plot", "plot.txt"), "--plot plot.txt: its name must end in .png or .svg or .pdf"),
                        ((me, "--neutral", film), "such as a frame of it, or say --neutral clip"),
                        ((me, "--neutral", "clop"), "aufacs: --neutral clop: no such neutral photograph; give a photograph of "
                         "the face at rest, clip (the film's own calm frames) or none.\n"),
                        ((me, "--face", 2), "--face 2: says whose zero a neutral photograph shows, and none was given"),
                        ((me, "--neutral", "clip", "--face", 2), "--face 2: says whose")):
        assert ends("predict", *words, *out) == 2
        assert said.format(tmp_path) in capsys.readouterr().err


def test_the_person_of_a_neutral_photograph_is_chosen_and_others_are_told(me, tmp_path, capsys):
    "A note says how to choose, the choice does what it says, and whoever else is read with that zero is told."
    smile = np.asarray(Image.open(me))
    rest = render_person(sample_person(5), {}, size=smile.shape[0])
    Image.fromarray(np.hstack([smile, rest])).save(tmp_path / "two.png")
    words = ("predict", me, "--model", "mesh18", "--quiet", "--neutral", tmp_path / "two.png")
    assert ends(*words, "--out", tmp_path / "au.csv") == 0
    assert "Choose with --face 1 … 2." in capsys.readouterr().err
    read = []
    for face in (1, 2):
        assert ends(*words, "--out", tmp_path / f"{face}.csv", "--face", face) == 0
        assert not capsys.readouterr().err
        read.append(pd.read_csv(tmp_path / f"{face}.csv").AU12_r[0])
    assert read[0] < .5 < read[1] - 1, "less their own smile, and less another face at rest"
    both = ("predict", tmp_path / "two.png", "--model", "mesh18", "--quiet", "--faces", "all", "--out", tmp_path / "both.csv")
    for zero, told in ((me, 1), ("none", 0)):
        assert ends(*both, "--neutral", zero, "--force") == 0
        assert capsys.readouterr().err.count("its zero is taken off everybody") == told


def test_a_model_that_is_none_names_those_that_are(me, tmp_path, capsys):
    assert ends("predict", me, "--model", "face19", "--out", tmp_path / "au.csv") == 2
    assert "No estimator at 'face19': give a shipped name (face18, mesh18, small), or a folder" in capsys.readouterr().err


def test_two_trainings_never_share_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("aufacs_nb.experiments.stages.train_all", lambda *a, **k: pytest.fail("it began"))
    with lock(tmp_path / "run"), ThreadPoolExecutor(1) as other:  # locks are those of a thread
        assert other.submit(ends, "train", "tiny", "--out", tmp_path / "run", "--device", "cpu").result() == 2
    assert "another process is writing" in capsys.readouterr().err


def test_a_set_as_large_as_a_preset_says(monkeypatch, tmp_path):
    from aufacs_nb.presets import TINY

    asked, made = [], type("Set", (), {"frames": ()})
    monkeypatch.setattr("aufacs_nb.apps.cli._drawn", lambda *words, per_intensity, **k: asked.append(per_intensity) or made)
    for words in ((), ("--preset", "tiny"), ("--preset", "tiny", "--per-intensity", 7)):
        assert ends("resample", "--data", tmp_path, "--out", tmp_path / "set", "--method", "real", "--device", "cpu", *words) == 0
    assert asked == [100, TINY.per_intensity, 7]


def test_no_table_says_minus_nothing():
    assert [_unsigned(cell) for cell in ("-0.00 [-0.001, -0.0]", "-0.05", "-0", -0.0)] == ["0.00 [-0.001, 0.0]", "-0.05", "0", "0.0"]


def test_verdicts_at_tiny_are_said_to_mean_nothing(monkeypatch, tmp_path, capsys):
    claims = pd.DataFrame({"verdict": ["holds"]})
    monkeypatch.setattr("aufacs_nb.experiments.reproduce.reproduce_all", lambda *a, **k: claims)
    for preset, told in (("tiny", True), ("small", False)):
        assert ends("reproduce", "table-1", "--preset", preset, "--root", tmp_path / "x") == 0
        assert ("the verdicts mean nothing" in capsys.readouterr().out) is told


def test_a_list_of_databases_that_is_not_there(tmp_path, capsys):
    assert ends("reproduce", "table-1", "--data", tmp_path / "missing.toml") == 2
    said = capsys.readouterr().err
    assert "missing.toml: there is no such file; give a TOML file with lines like fera17" in said and "Errno" not in said

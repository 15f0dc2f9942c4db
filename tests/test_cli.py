"""Every command on the sample data, from a shell, in the order of the pipeline, at sizes that take seconds."""
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.data import astronaut

from aufacs_nb.databases import sample_database
from aufacs_nb.estimation.resampling import generator_for
from aufacs_nb.evaluation.intervals import Interval


@pytest.fixture(scope="module")
def run(aufacs):
    "`run(*arguments)`: standard output of the command; fails the test on a non-zero exit code."
    def run(*arguments):
        done = aufacs(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout
    return run


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    "One folder for all commands of this module: each uses what the one before it wrote."
    folder = tmp_path_factory.mktemp("cli")
    Image.fromarray(astronaut()).save(folder / "me.png")
    return folder


def call(*words):
    "Run a command in this process; what goes wrong is raised."
    from aufacs_nb.apps.cli import app

    app([str(word) for word in words], standalone_mode=False)


def refuses(message, *words):
    "The command ends with this message, in the way that is printed as one line."
    with pytest.raises((ValueError, OSError), match=message):
        call(*words)


def test_help_names_every_command(shell_aufacs):
    text = shell_aufacs("--help").stdout
    for command in ("demo", "simulate", "manifest", "register", "train-generator", "synthesize", "resample",
                    "train-classifiers", "personalize", "predict", "evaluate", "train", "reproduce"):
        assert re.search(rf"\b{command}\b", text), command


def test_simulate_is_the_same_to_the_byte_and_resumes(run, work):
    options = ("--subjects", "1,1,1", "--tasks", 1, "--frames", 3, "--size", 96, "--seed", 5, "--quiet")
    for name in ("a", "b"):
        run("simulate", "fera17", "--out", work / name, *options)
    files = sorted(p.relative_to(work / "a") for p in (work / "a").rglob("*") if p.is_file())
    assert any(p.suffix == ".mp4" for p in files) and any(p.name.endswith("_Int.csv") for p in files)
    for path in files:
        assert (work / "a" / path).read_bytes() == (work / "b" / path).read_bytes(), path
    lost = next(p for p in (work / "b").rglob("*.mp4"))
    before = {p: p.stat().st_mtime_ns for p in (work / "b").rglob("*.mp4") if p != lost}
    content = lost.read_bytes()
    lost.unlink()
    run("simulate", "fera17", "--out", work / "b", *options)
    assert lost.read_bytes() == content
    assert before == {p: p.stat().st_mtime_ns for p in before}, "a finished clip was rendered again"


SMALL_DATABASES = {"disfa": ("--subjects", 2, "--frames", 4, "--size", "160x120"),
                   "unbc": ("--subjects", 2, "--sessions", 1, "--frames", 4, "--size", "96x72"),
                   "multipie": ("--subjects", 1, "--size", "96x64")}


@pytest.mark.parametrize("name", SMALL_DATABASES)
def test_other_databases_are_written_and_read_back(run, work, name):
    root, table = work / name, work / f"{name}.parquet"
    run("simulate", name, "--out", root, *SMALL_DATABASES[name], "--seed", 2, "--quiet")
    said = run("manifest", root, "--database", name, "--out", table)
    frames = pd.read_parquet(table)
    assert f"{len(frames)} frames" in said and "0 skipped" in said
    pictures = len(list(root.rglob("*.png"))) or 2 * 4   # DISFA has films
    assert (frames.database == name).all() and len(frames) == pictures >= 8
    assert list((root / "truth").rglob("*.npz"))


def test_poses_are_chosen_or_said_to_be_left_out(work, tmp_path, capsys):
    nine, tables = tmp_path / "nine", {}
    call("simulate", "fera17", "--out", nine, "--subjects", "1,1,1", "--tasks", 1, "--frames", 2, "--size", 32, "--poses",
         "1,6,9", "--quiet")
    for name, words in (("frontal", ()), ("six", ("--poses", "6")), ("two", ("--poses", "1,6")), ("all", ("--poses", "all"))):
        call("manifest", nine, "--out", tmp_path / f"{name}.parquet", *words)
        note = capsys.readouterr().err
        assert ("left out: 6, of poses 1, 9; take them with --poses all" in note) == bool(note) == (name == "frontal"), note
        tables[name] = pd.read_parquet(tmp_path / f"{name}.parquet")
    assert [len(table) for table in tables.values()] == [6, 6, 12, 18]
    assert tables["all"].groupby(["pose_yaw", "pose_pitch"]).ngroups == 3
    pd.testing.assert_frame_equal(tables["frontal"], tables["six"])
    refuses("FERA poses 1–9", "manifest", nine, "--poses", "most")
    refuses("choose some of 1–9", "manifest", nine, "--poses", "0,6")
    refuses("poses 1, 6, 9; choose with --poses", "manifest", nine, "--poses", "2")
    (tmp_path / "album").mkdir()
    shutil.copy(work / "me.png", tmp_path / "album")
    refuses("folder has no option 'poses'", "manifest", tmp_path / "album", "--poses", "6")
    from aufacs_nb.apps.cli import _input_manifest

    capsys.readouterr()
    assert len(_input_manifest(nine)[0]) == 6 and "left out: 6, of poses 1, 9;" in capsys.readouterr().err


def test_a_wrong_label_is_named_or_skipped(run, aufacs, work):
    run("simulate", "unbc", "--out", work / "spoilt", *SMALL_DATABASES["unbc"], "--seed", 3, "--quiet")
    label = sorted((work / "spoilt" / "Frame_Labels" / "FACS").rglob("*_facs.txt"))[1]
    label.write_text("   1.2000000e+01   9.0000000e+00   0.0000000e+00   0.0000000e+00\n")
    done = aufacs("manifest", work / "spoilt", "--database", "unbc", "--out", work / "spoilt.parquet")
    assert done.returncode == 2 and label.name in done.stderr and "Traceback" not in done.stderr
    done = aufacs("manifest", work / "spoilt", "--database", "unbc", "--on-error", "skip", "--out", work / "spoilt.parquet")
    assert done.returncode == 1 and "1 skipped" in done.stdout and len(pd.read_parquet(work / "spoilt.parquet")) == 7


def test_manifest_and_register(run, work):
    out = run("manifest", sample_database(), "--out", work / "sample.parquet")
    table = pd.read_parquet(work / "sample.parquet")
    assert f"{len(table)} frames" in out
    some = table.groupby("subject").head(4)
    some.to_parquet(work / "some.parquet", index=False)
    run("register", work / "some.parquet", "--out", work / "registered", "--size", 64, "--quiet")
    frames = np.load(work / "registered" / "frames.npy", mmap_mode="r")
    assert frames.shape == (len(some), 64, 64, 3) and frames.max() > 100
    assert (work / "registered" / "contact.png").is_file()
    run("register", work / "some.parquet", "--out", work / "flat", "--method", "procrustes", "--size", 64, "--quiet")
    assert (np.load(work / "flat" / "frames.npy") != frames).any()


def test_register_says_at_the_start_what_is_missing(work, aufacs, tmp_path):
    refuses("68 points are no mesh", "register", work / "me.png", "--out", tmp_path / "x", "--landmarks", "dlib")
    refuses("--method prnet", "register", work / "me.png", "--out", tmp_path / "x", "--prnet", "small")
    refuses("ends in .index", "register", work / "me.png", "--out", tmp_path / "x", "--method", "prnet", "--prnet", work)
    done = aufacs("register", work / "me.png", "--out", tmp_path / "x", "--method", "procrustes", "--landmarks", "no.dat")
    assert done.returncode == 2 and done.stderr.startswith("aufacs: no.dat: no such file") and done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_missing_package_is_one_line(monkeypatch, work, capsys):
    from aufacs_nb.apps.cli import main

    monkeypatch.setitem(sys.modules, "dlib", None)
    for words, known in ((("--landmarks", work / "me.png"), True), (("--landmarks", work / "me.png", "--broken"), False)):
        if not known:
            monkeypatch.setattr("aufacs_nb.apps.cli._input_manifest", lambda *a: __import__("no_such_module"))
        with pytest.raises(SystemExit if known else ImportError):
            main([*map(str, ("register", work / "me.png", "--out", work / "y", "--method", "procrustes", *words[:2]))])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install 'aufacs_nb[dlib]'" in said


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(work, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    empty, out = tmp_path / "empty.png", tmp_path / "x"
    empty.touch()
    commands = {"predict": (empty,), "personalize": (empty, "--out", out), "synthesize": (empty, "--out", out / "x.png"),
                "resample": ("--data", tmp_path, "--out", out), "evaluate": ("--data", tmp_path),
                "train-generator": ("--data", tmp_path, "--out", out), "train": ("tiny", "--out", out),
                "register": (work / "me.png", "--out", out),
                "train-classifiers": ("--data", empty, "--valid", tmp_path, "--out", out)}
    for command, words in commands.items():
        refuses("--device cuda:1: there is none here; choose auto or one of cpu", command, *words, "--device", "cuda:1")
    assert not out.exists()


def test_device_reaches_the_networks(monkeypatch, work):
    import torch

    from aufacs_nb.estimation.estimator import AUEstimator
    from aufacs_nb.estimation.storage import AUClassifiers

    class Stop(Exception):
        "Raised when it is known where the networks are to go."

    asked = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)

    def note(self, device=None):
        "Instead of moving them."
        asked.append(str(device))
        raise Stop

    monkeypatch.setattr(AUEstimator, "from_pretrained", classmethod(lambda cls, model, device=None: note(model, device)))
    monkeypatch.setattr(AUClassifiers, "to", note)
    move = torch.nn.Module.to
    monkeypatch.setattr("torch.nn.Module.to", lambda self, *where, **how: note(self, *where) if where else move(self, **how))
    monkeypatch.setattr("aufacs_nb.experiments.stages.fit_generator", lambda *a, device, **k: note(None, device))
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "")
    for device, where in (("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu")):
        for words in (("predict", work / "me.png"), ("personalize", work / "me.png", "--out", work / "z"),
                      ("synthesize", work / "me.png", "--out", work / "z.png"), ("evaluate", "--data", work / "registered"),
                      ("resample", "--data", work / "registered", "--out", work / "z"),
                      ("train-generator", "--data", work / "registered", "--out", work / "z", "--preset", "tiny")):
            with pytest.raises(Stop):
                call(*words, "--device", device)
            chosen_there = device == "auto" and words[0] in ("predict", "personalize")  # and then nobody is told anything
            assert asked.pop() == ("None" if chosen_there else where), words


def test_train_generator_and_resample(run, work):
    run("train-generator", "--data", work / "registered", "--out", work / "generator", "--preset", "tiny",
           "--steps", 3, "--quiet")
    card = json.loads((work / "generator" / "card.json").read_text())
    assert card["preset"]["name"] == "tiny" and "paired_error_test" in card["scores"]
    for method, model in (("semantic", ("--model", work / "generator")), ("real", ())):
        run("resample", "--data", work / "registered", "--out", work / method, *model, "--method", method,
            "--per-intensity", 2, "--quiet")
        drawn = pd.read_parquet(work / method / "manifest.parquet")
        if method == "semantic":
            assert (drawn.groupby(["au", "intensity"]).size() == 2).all() and len(drawn) == 2 * 6 * 7
            assert drawn.generator.str.fullmatch("ganimation tiny [0-9a-f]{12}").all()


def test_resample_takes_the_ratio_generator_for_frames_that_fit_it(monkeypatch):
    seen, large = [], np.zeros((2, 128, 128, 3), np.uint8)
    monkeypatch.setattr("aufacs_nb.estimation.resampling.load_generator", lambda name="medium", arch="": seen.append(
        arch or name) or SimpleNamespace(preset=SimpleNamespace(size=128)))
    for made, frames, who in (("mesh", large, "ratio"), ("mesh --fill mirror", large, "ratio"),
                              ("mesh", large[:, :96], "small"), ("prnet", large, "small"), (None, large, "small")):
        table = pd.DataFrame({"subject": ["A", "B"]} | ({"registration": made} if made else {}))
        generator_for(frames, table)
        assert seen[-1] == who, made


def test_real_frames_stay_as_they_are_stored(work):
    stored, table = np.load(work / "registered" / "frames.npy"), pd.read_parquet(work / "registered" / "manifest.parquet")
    drawn = pd.read_parquet(work / "real" / "manifest.parquet")
    rows = table.index[table.valid & (table.partition == "Train")][drawn.source_row]
    assert np.array_equal(np.load(work / "real" / "frames.npy"), stored[rows])
    assert np.load(work / "semantic" / "frames.npy").shape[1:] == (32, 32, 3)  # a generator has its own size


def test_train_classifiers_and_evaluate(run, work):
    run("train-classifiers", "--data", work / "semantic", "--valid", work / "registered", "--out",
           work / "classifiers", "--preset", "tiny", "--quiet")
    out = run("evaluate", "--data", work / "registered", "--model", work / "classifiers", "--out", work / "icc.csv")
    assert "AU12" in out and "mean" in out
    assert list(pd.read_csv(work / "icc.csv").columns) == ["au", "icc_value", "icc_low", "icc_high"]


def test_partitions_are_named_or_all(work, capsys):
    table = pd.read_parquet(work / "registered" / "manifest.parquet")
    people, scores = [], pd.DataFrame({"icc": [Interval(0.5, 0.4, 0.6)]}, index=["mean"])
    options = ("evaluate", "--data", work / "registered", "--model", work / "classifiers", "--partition")
    from aufacs_nb.experiments import stages
    for name, partitions in (("Test", ["Test"]), ("Valid", ["Valid"]), ("all", list(set(table.partition))), ("", None)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(stages, "evaluate", lambda classifiers, part: people.append(len(part.frames)) or scores)
            call(*options, name)
        assert people.pop() == (table.partition.isin(partitions) if partitions else table.valid).sum(), name
    refuses("registered has Test, Train, Valid: choose Test or Train or Valid or all", *options, "Dev")


def test_personalize_takes_the_folder_of_train_classifiers(work, tmp_path):
    from aufacs_nb.estimation.storage import AUClassifiers

    shutil.copytree(work / "classifiers", tmp_path / "alone")
    for model, out in ((work / "classifiers", work / "adapted"), (tmp_path / "alone", tmp_path / "small")):
        call("personalize", work / "me.png", "--model", model, "--out", out, "--quiet")
    generic, adapted, other = map(AUClassifiers.from_pretrained, (work / "classifiers", work / "adapted", tmp_path / "small"))
    assert "generator" not in generic.card and other.card["generator"] == "small"
    assert adapted.card["generator"] == str(work.resolve()), "the generator that lies beside the classifiers"
    frames = np.load(work / "registered" / "frames.npy")[:4]
    assert 0 < np.abs(generic.predict(frames) - adapted.predict(frames)).max() < 5


def test_classifiers_know_what_their_preset_asks_of_a_generator(work, tmp_path, monkeypatch):
    from dataclasses import replace

    from aufacs_nb import presets
    from aufacs_nb.estimation.storage import AUClassifiers

    monkeypatch.setitem(presets.PRESETS, "tiny", replace(presets.TINY, per_targets="calibrated", per_arch="flow"))
    train = ("train-classifiers", "--data", work / "semantic", "--valid", work / "registered", "--preset", "tiny", "--quiet")
    refuses("64 pixels, and the network takes 96", *train, "--out", tmp_path / "none")  # before the training, not after
    assert not (tmp_path / "none" / "classifiers.safetensors").is_file()
    call(*train, "--out", tmp_path / "out", "--generator", work / "generator")
    made = AUClassifiers.from_pretrained(tmp_path / "out")
    assert made.calibration.shape == (7, 6, 7, 6) and made.card["calibrated"]["people"] == 4
    np.testing.assert_allclose(made.calibration.sum(-1), 1, atol=1e-3)
    call("personalize", work / "me.png", "--model", tmp_path / "out", "--out", tmp_path / "me", "--quiet")


def test_what_classifiers_begin_with_is_asked_for_first(work, tmp_path, monkeypatch):
    from aufacs_nb.estimation import classifiers

    bare, told = ("--data", tmp_path, "--valid", tmp_path, "--out", tmp_path / "x"), {}
    refuses("only VGG16 begins with a file", "train-classifiers", *bare, "--preset", "tiny", "--init", work / "me.png")

    class Stop(Exception):
        "Raised when it is known what was asked for."

    def note(*data, **options):
        "Instead of training."
        told.update(options)
        raise Stop

    monkeypatch.setattr(classifiers, "train_classifiers", note)
    for words, start in (((), "imagenet"), (("--init", "random"), "random")):
        with pytest.raises(Stop):
            call("train-classifiers", "--data", work / "real", "--valid", work / "registered", "--out", tmp_path / "x",
                 "--preset", "tiny", *words)
        assert told["init"] == start and told["checkpoint"] == tmp_path / "x" / "checkpoint"
        assert told["device"] in ("cpu", "cuda")


def test_differences_are_never_taken_for_faces(work, tmp_path, capsys):
    for name in ("real", "registered"):
        call("normalize", "--data", work / name, "--out", tmp_path / name, "--quiet")
    call("train-classifiers", "--data", tmp_path / "real", "--valid", tmp_path / "registered", "--out", tmp_path / "model",
         "--preset", "tiny", "--quiet")
    assert json.loads((tmp_path / "model" / "card.json").read_text())["registration"] == "mesh minus mean"
    call("evaluate", "--data", tmp_path / "registered", "--model", tmp_path / "model")
    assert "AU12" in capsys.readouterr().out
    out = ("--out", tmp_path / "x")
    refuses("'mesh minus mean', but --model small learned from 'mesh': give the folder that the differences were made from",
            "evaluate", "--data", tmp_path / "registered")
    refuses("register with --method mesh, then `aufacs normalize --method mean`, or train anew", "evaluate", "--data",
            work / "registered", "--model", tmp_path / "model")
    refuses("learned from 'procrustes'", "train-classifiers", "--data", procrustes(work / "real", tmp_path / "flat"),
            "--valid", tmp_path / "registered", *out)
    refuses("holds 'mesh', but", "train-classifiers", "--data", tmp_path / "real", "--valid", work / "registered", *out)
    refuses("and take differences of the balanced set", "resample", "--data", tmp_path / "registered", *out)
    refuses("a generator needs faces", "train-generator", "--data", tmp_path / "registered", *out)
    refuses("holds differences already", "normalize", "--data", tmp_path / "real", *out)
    for words in (("predict", work / "me.png"), ("personalize", work / "me.png", *out)):
        refuses("learned from differences ..mesh minus mean.., and a photograph is none", *words, "--model", tmp_path / "model")
    call("resample", "--data", tmp_path / "registered", *out, "--method", "real", "--per-intensity", 1)
    assert set(pd.read_parquet(tmp_path / "x" / "manifest.parquet").registration) == {"mesh minus mean"}


def procrustes(folder, out):
    "A copy of a balanced set whose frames are said to be registered in the plane."
    shutil.copytree(folder, out)
    table = pd.read_parquet(out / "manifest.parquet").assign(registration="procrustes")
    table.to_parquet(out / "manifest.parquet", index=False)
    return out


def test_a_folder_of_registered_frames_is_no_folder_of_photographs(work, tmp_path):
    for command, words in {"predict": (), "actions": (), "manifest": (), "register": ()}.items():
        refuses("holds registered frames and no photographs", command, work / "registered", "--out", tmp_path / "x.csv", *words)


def test_balanced_sets_and_registered_frames_are_told_apart(work, tmp_path):
    out = ("--out", tmp_path / "x", "--preset", "tiny")
    for command, words in (("evaluate", ()), ("train-generator", out), ("resample", out[:2]),
                           ("resample", (*out[:2], "--method", "real"))):
        refuses("semantic: holds a balanced set; registered", command, "--data", work / "semantic", *words)
    refuses("holds a balanced set", "train-classifiers", "--data", work / "real", "--valid", work / "semantic", *out)
    refuses("registered: holds no balanced set; draw one", "train-classifiers", "--data", work / "registered", "--valid",
            work / "registered", *out)
    assert not (tmp_path / "x").exists()


def test_normalize_takes_a_balanced_set(work, tmp_path):
    from aufacs_nb.registration.references import open_references, restore, decode

    call("normalize", "--data", work / "semantic", "--out", tmp_path / "mean", "--quiet")
    frames, table = np.load(work / "semantic" / "frames.npy"), pd.read_parquet(work / "semantic" / "manifest.parquet")
    made, known = np.load(tmp_path / "mean" / "frames.npy"), open_references(tmp_path / "mean")
    assert set(known) == set(table.subject)
    again = restore(*decode(made[5]), known[table.subject[5]])
    seen = made[5].any(-1)
    assert seen.mean() > .3 and np.abs(again.astype(int) - frames[5])[seen].max() <= 1


def test_synthesize_returns_the_whole_photograph_marked(run, work):
    from aufacs_nb.pictures import synthetic_info

    said = run("synthesize", work / "me.png", "--out", work / "smile.png", "--au", "AU12=5", "--au", "AU26=4")
    info = synthetic_info(work / "smile.png")
    assert "512 × 512" in said and info["Source"] == "me.png" and "AU12=5" in info["Targets"] and "ratio" in info["Generator"]
    made, photo = np.asarray(Image.open(work / "smile.png")), astronaut()
    assert made.shape == photo.shape and (made[300:] == photo[300:]).all() and (made[60:220] != photo[60:220]).any()


def test_synthesize_frontal_is_the_same_whatever_way_it_is_asked_for(work):
    from aufacs_nb.generation.runs import load_generator
    from aufacs_nb.generation.synthesis import synthesize
    from aufacs_nb.pictures import upscale
    from aufacs_nb.registration.collections import register_photo

    target = np.array([0, 0, 4, 0, 5, 0, 0]) / 5
    frame = register_photo(work / "me.png").image
    known = upscale(synthesize(load_generator("small", arch="flow"), frame[None], target)[0], 224)
    for options in (("--frontal",), ("--arch", "flow"), ("--model", "small")):
        call("synthesize", work / "me.png", "--out", work / "frontal.png", "--au", "12=5", "--au", "6=4", *options)
        assert (np.asarray(Image.open(work / "frontal.png")) == known).all(), options


def test_synthesize_without_units_is_the_frontal_grid(work):
    call("synthesize", work / "me.png", "--out", work / "grid.png")
    width, height = Image.open(work / "grid.png").size
    assert width > 500 and height == pytest.approx(99 * 7, abs=30)
    call("synthesize", work / "me.png", "--out", work / "one.png", "--frontal", "--arch", "ratio", "--au", "26=4")
    assert Image.open(work / "one.png").size == (224, 224), "the ratio generator has a frontal view, too, of all its units"


def test_synthesize_asks_which_face(work, capsys):
    Image.fromarray(np.concatenate([astronaut(), astronaut()], 1)).save(work / "two.png")
    changed = []
    for face in ((), ("--face", 2), ("--face", "220,120")):
        call("synthesize", work / "two.png", "--out", work / "one.png", "--au", "4=5", *face)
        difference = (np.asarray(Image.open(work / "one.png")) != np.asarray(Image.open(work / "two.png"))).any((0, 2))
        changed.append((difference[:512].any(), difference[512:].any()))
    assert changed[1:] == [(False, True), (True, False)] and sum(changed[0]) == 1
    assert "2 faces; the largest is taken" in capsys.readouterr().err
    refuses("there is no face 3", "synthesize", work / "two.png", "--out", work / "x.png", "--au", "4=5", "--face", 3)


def test_synthesize_edits_every_frame_of_a_film(work):
    from aufacs_nb.databases import frame_rate, read_video, write_video
    from aufacs_nb.generation.synthesis import animation_info

    write_video(work / "in.mp4", [astronaut()[:250, 60:340]] * 4, 12.5)
    call("synthesize", work / "in.mp4", "--out", work / "out.mp4", "--au", "AU26=5", "--quiet")
    assert frame_rate(work / "out.mp4") == 12.5
    before, after = (np.stack(list(read_video(work / name))).astype(int) for name in ("in.mp4", "out.mp4"))
    assert before.shape == after.shape and "AU26=5 from in.mp4" in animation_info(work / "out.mp4")
    assert (np.abs(after - before).mean((1, 2, 3)) > 0.5).all()
    write_video(work / "grey.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 2, 12)
    refuses("no face found in any", "synthesize", work / "grey.mp4", "--out", work / "no.mp4", "--au", "4=1", "--quiet")
    assert not (work / "no.mp4").exists()
    for options, said in ((("--frontal", "--au", "4=1"), "aufacs register"), ((), "give --au"),
                          (("--au", "4=1", "--arch", "ganimation"), "by the ratio generator alone")):
        refuses(said, "synthesize", work / "in.mp4", "--out", work / "no.mp4", *options)


def test_a_frontal_frame_is_a_photograph_too_and_the_source_is_never_overwritten(work):
    from aufacs_nb.registration.collections import register_photo

    Image.fromarray(register_photo(work / "me.png").image).save(work / "front.png")
    call("synthesize", work / "front.png", "--out", work / "edited.png", "--au", "10=4")
    made, frame = (np.asarray(Image.open(work / name)) for name in ("edited.png", "front.png"))
    assert made.shape == (224, 224, 3) and 0.3 < np.abs(made.astype(int) - frame).mean() < 10
    refuses("overwrite its own source", "synthesize", work / "me.png", "--out", work / "me.png", "--au", "10=4")
    refuses("one of 1, 2, 4", "synthesize", work / "me.png", "--out", work / "x.png", "--au", "AU3=4")
    refuses("true pairs", "train-generator", "--data", work, "--out", work / "g", "--arch", "ratio")


def test_personalize_and_predict(run, work):
    run("personalize", work / "me.png", "--out", work / "me")
    assert sum(path.stat().st_size for path in (work / "me").rglob("*") if path.is_file()) < 100_000
    video = sorted((sample_database() / "FERA17_Test_MV").glob("*.mp4"))[0]
    tables = {}
    for name, model in (("generic", "small"), ("personal", work / "me")):
        run("predict", video, "--model", model, "--out", work / f"{name}.csv", "--quiet")
        tables[name] = pd.read_csv(work / f"{name}.csv")
    columns = [c for c in tables["generic"] if c.endswith("_r")]
    assert len(columns) == 7 and len(tables["generic"]) == 24
    assert tables["generic"][columns].to_numpy().min() >= 0 and tables["generic"][columns].to_numpy().max() <= 5
    assert (tables["generic"][columns] - tables["personal"][columns]).abs().max(axis=None) > 0.02


def test_actions_and_normalize(run, work):
    run("actions", work / "me.png", "--out", work / "actions.csv", "--quiet")
    table = pd.read_csv(work / "actions.csv")
    assert len(table) == 1 and table.shape[1] == 5 + 52 and table.mouthSmileLeft[0] > 0.5
    run("normalize", "--data", work / "registered", "--out", work / "differences", "--method", "au0", "--quiet")
    made = pd.read_parquet(work / "differences" / "manifest.parquet")
    assert made.reference.str.startswith("neutral frame, found").all() and (made.reference_row >= 0).all()


def test_ctrl_c_says_how_to_go_on_and_loses_nothing(run, work, aufacs_command):
    arguments = ("register", work / "sample.parquet", "--out", work / "interrupted", "--size", 64, "--quiet")
    running = subprocess.Popen([aufacs_command, *map(str, arguments)], stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # CI may ignore it
    measures, limit = work / "interrupted" / "progress.jsonl", time.monotonic() + 120
    while not measures.exists() and time.monotonic() < limit and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    said = running.communicate()[1]
    assert running.returncode == 130 and "run the same command again" in said and "Traceback" not in said
    done = len(measures.read_text().splitlines())
    assert not (work / "interrupted" / "manifest.parquet").exists(), "it was not stopped in the middle"
    frames = np.load(work / "interrupted" / "frames.npy", mmap_mode="r")
    kept = json.loads(measures.read_text().splitlines()[0])["rows"]
    before = frames[kept].copy()
    run(*arguments)
    assert done >= 1 and before.any() and (frames[kept] == before).all()
    assert pd.read_parquet(work / "interrupted" / "manifest.parquet").valid.all()


def test_interrupted_prediction_keeps_the_rows_it_has(tmp_path, monkeypatch, capsys):
    from aufacs_nb.apps.everyday import predict_command
    from aufacs_nb.estimation.estimator import AUEstimator

    whole = AUEstimator.batches

    def stopped(self, *arguments, **options):
        "The user loses patience after the first batch."
        yield next(whole(self, *arguments, **options, batch=8))
        raise KeyboardInterrupt

    monkeypatch.setattr(AUEstimator, "batches", stopped)
    video = sorted((sample_database() / "FERA17_Test_MV").glob("*.mp4"))[0]
    for overlay in (None, tmp_path / "au.mp4"):
        with pytest.raises(KeyboardInterrupt):
            predict_command([video], tmp_path / "au.csv", model="mesh18", quiet=True, overlay=overlay)
        part = pd.read_csv(tmp_path / "au.part.csv")
        assert part.frame.tolist() == list(range(1, 9)) and part.success.all()
        assert "the first 8 rows are in" in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["au.part.csv"]
        (tmp_path / "au.part.csv").unlink()


@pytest.fixture(scope="module")
def pair(work):
    "A photograph of two people, the left one in front."
    near, far = Image.fromarray(astronaut()).crop((100, 0, 400, 300)), Image.fromarray(astronaut()).crop((60, 0, 400, 300))
    picture = Image.new("RGB", (640, 320))
    picture.paste(near.resize((320, 320)), (0, 0))
    picture.paste(far.resize((280, 250)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), (340, 40))
    picture.save(work / "pair.png")
    return work / "pair.png"


def test_many_inputs_make_one_table(aufacs, work, pair, tmp_path):
    video = sorted((sample_database() / "FERA17_Test_MV").glob("*.mp4"))[0]
    words = ("predict", work / "me.png", pair, work / "nobody.png", video, "--model", "mesh18", "--quiet")
    done = aufacs(*words, "--out", tmp_path / "main.jsonl")
    assert done.returncode == 1 and "Warning" not in done.stderr, done.stderr
    assert f"left out: {work}/nobody.png" in done.stderr
    assert [line for line in done.stderr.splitlines() if "faces" in line] == [
        f"note: {pair}: 2 faces; the largest is taken, number 1 from the left. Read everybody with --faces all."]
    assert f"note: {work}/nobody.png: no such" in done.stderr and "26 of 27 rows with a face" in done.stdout
    main = pd.read_json(tmp_path / "main.jsonl", lines=True)
    assert main.groupby("file").size().to_dict() == {str(work / "me.png"): 1, str(pair): 1, str(work / "nobody.png"): 1,
                                                     str(video): 24}
    assert main.file[main.success == 0].tolist() == [str(work / "nobody.png")]
    assert aufacs(*words, "--out", tmp_path / "all.parquet", "--faces", "all").returncode == 1
    everybody = pd.read_parquet(tmp_path / "all.parquet")
    two = everybody[everybody.file == str(pair)]
    assert two.face_id.tolist() == [0, 1] and two.face_w.is_monotonic_decreasing and len(everybody) == 28
    taken = main[main.file == str(pair)].iloc[0]
    assert taken.face_w == round(two.face_w.iloc[0], 2) and taken.AU12_r == round(float(two.AU12_r.iloc[0]), 2)


def test_standard_output_holds_the_table_and_nothing_else(run, work, aufacs_command):
    words = ("predict", work / "me.png", "--model", "mesh18", "--landmarks", "68", "--out")
    printed = run(*words, "-")
    run(*words, work / "me.csv", "--quiet")
    assert printed == (work / "me.csv").read_text() and printed.count("\n") == 2
    assert {"x_0", "y_67", "pose_Rx", "gaze_angle_y"} <= set(printed.splitlines()[0].split(","))
    command = f"{aufacs_command} predict {work / 'me.png'} --model mesh18 --landmarks 478 --out - | head -c 10"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert done.stdout == "frame,face" and "Broken pipe" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("words, message", [(("--out", "au.xlsx"), "au.xlsx: the name of a table ends in .csv"),
                                            (("--plot", "au.gif"), "must end in .png"),
                                            (("--overlay", "au.mp4"), "is for one photograph or film, not for 2")])
def test_what_cannot_be_written_is_refused_before_a_model_is_loaded(work, tmp_path, monkeypatch, words, message):
    from aufacs_nb.estimation.estimator import AUEstimator

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AUEstimator, "from_pretrained", lambda *_: pytest.fail("too late"))
    refuses(message, "predict", work / "me.png", work / "me.png", *words)
    assert not list(tmp_path.iterdir())


def test_a_photograph_needs_no_libraries_for_training_or_drawing(run_python, work):
    "What makes `aufacs --help` and `aufacs predict` quick: libraries that they never use stay away, by name."
    said = run_python(f"""
import sys
from aufacs_nb.apps.cli import app
app(["--help"], standalone_mode=False)
training = ("torchvision", "torch._dynamo", "sklearn", "skimage", "accelerate", "torchmetrics", "openTSNE")
training += ("sympy",) if {tuple(map(int, version("torch").split(".")[:2])) > (2, 9)} else ()  # 2.9 loads it by itself
drawing = ("matplotlib", "IPython", "ipywidgets", "anywidget", "jinja2")
science = ("scipy.stats", "scipy.optimize", "scipy.interpolate", "scipy.spatial", "pyarrow.parquet")
loaded = lambda names: [name for name in names if name in sys.modules]
helped = loaded(("torch", "numba", "scipy", "av", "PIL", *training, *drawing, *science))
app(["predict", r"{work / 'me.png'}", "--out", r"{work / 'quick.csv'}", "--quiet"], standalone_mode=False)
print(helped, loaded(("torch",)), loaded((*training, *drawing, *science)))""")
    assert said.splitlines()[-1] == "[] ['torch'] []"


def test_evaluate_prints_values_with_intervals(run, work):
    said = run("evaluate", "--data", work / "registered")
    assert re.search(r"mean\s+[+-]?\d\.\d+ \[[+-]?\d\.\d+, [+-]?\d\.\d+\]", said), said
    assert "Interval(" not in said


def test_reproduce_lists_what_each_experiment_asks(work, capsys):
    from aufacs_nb.experiments.reproduce import EXPERIMENTS

    call("reproduce", "--list", "--root", work / "nothing")
    said = capsys.readouterr().out
    for line, (name, experiment) in zip(said.strip().splitlines(), EXPERIMENTS.items(), strict=True):
        assert line.startswith(name) and line.endswith(experiment.asks)
        assert re.search(r" [1-9]\d* stages, +0 made, +(\?|\d+ (s|min|h)) left ", line), line


def test_reproduce_makes_a_table_and_does_not_make_it_again(work, capsys):
    options = ("reproduce", "table-1", "--preset", "tiny", "--root", work / "stages", "--quiet")
    call(*options, "--out", work / "tables")
    said = capsys.readouterr().out
    table = pd.read_csv(work / "tables" / "table-1_scores.csv").pivot(index="database", columns="what", values="value")
    assert set(table.index) == {"fera17", "disfa", "unbc", "multipie"} and (table.people >= 2).all()
    assert "Which databases are there?" in said and all(name in said for name in table.index)
    assert re.search(rf"fera17 +{table.people.fera17:.0f} +{table.frames.fera17:.0f} ", said), said
    before = {path: path.stat().st_mtime_ns for path in (work / "stages").rglob("*")}
    call(*options)
    assert capsys.readouterr().out == said
    assert before == {path: path.stat().st_mtime_ns for path in (work / "stages").rglob("*")}
    call("reproduce", "--list", "--root", work / "stages")
    listed = capsys.readouterr().out.splitlines()[0]
    assert re.search(r"table-1 +(\d+) stages, +\1 made, +0 s left", listed), listed


def test_reproduce_refuses_before_it_starts(aufacs, work):
    (work / "empty").mkdir()
    files = {"other": f'disfa = "{sample_database()}"', "none": 'fera17 = "empty"', "unknown": 'bp4d = "empty"',
             "gone": 'unbc = "nowhere"', "broken": "fera17: /data"}
    for name, text in files.items():
        (work / f"{name}.toml").write_text(text)
    root = ("--root", work / "untouched")
    cases = {("table-9",): "'table-9' is no experiment: choose one of table-1", (): "name an experiment",
             ("table-1", "--executor", "threads"): "choose serial", ("table-1", "--preset", "huge"): "choose tiny",
             ("table-1", "--missing", "guessed"): "choose zero or estimated"}
    said = {"other": "holds fera17, not disfa", "none": "fera17 = 'empty': the folder holds no database",
            "unknown": "bp4d = 'empty'", "gone": "unbc = 'nowhere': there is no such folder",
            "broken": "no readable TOML"}
    cases |= {("table-1", "--data", work / f"{name}.toml"): text for name, text in said.items()}
    for words, message in cases.items():
        named = re.escape(words[-1].name) + ".*" if "--data" in words else ""
        refuses(named + re.escape(message), "reproduce", *words, *root)
    assert not (work / "untouched").exists()
    done = aufacs("reproduce", "table-9", *root)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_reproduce_names_the_stages_that_failed(run, aufacs, work):
    run("simulate", "unbc", "--out", work / "faulty", *SMALL_DATABASES["unbc"], "--seed", 4, "--quiet")
    label = sorted((work / "faulty" / "Frame_Labels" / "FACS").rglob("*_facs.txt"))[1]
    label.write_text("   1.2000000e+01   9.0000000e+00   0.0000000e+00   0.0000000e+00\n")
    (work / "faulty.toml").write_text('unbc = "faulty"')
    done = aufacs("reproduce", "table-1", "--root", work / "stages", "--data", work / "faulty.toml", "--quiet")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert label.name in done.stderr and "1 failed, and" in done.stderr and "start again" in done.stderr


def test_reproduce_goes_on_after_an_experiment_that_failed_and_closes_its_processes(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from aufacs_nb.apps.cli import app
    from aufacs_nb.experiments import reproduce as room
    from aufacs_nb.experiments.claims import verdict_row
    from aufacs_nb.experiments.graph import GraphError

    pools = []

    def reproduce(name, protocol, root, out, executor, progress, **options):
        "The first two fail; of the others one claim in two holds."
        pools.append(executor)
        if name in ("table-1", "table-2"):
            raise GraphError({f"stage of {name}": "no luck"}, 3)
        scores = pd.DataFrame({"condition": ["own"], "au": ["AU01"], "value": [0.5]})
        differences = Interval(.1, .05, .2), Interval(.1, -.1, .2)  # holds, cannot tell
        return scores, pd.DataFrame([verdict_row("b > a", "fera17", "ICC", .4, .5, one, "") for one in differences])

    monkeypatch.setattr(room, "run", lambda stages, root, executor, progress: pools.append(executor))
    monkeypatch.setattr(room, "reproduce", reproduce)
    words = ["reproduce", "all", "--executor", "processes:1", "--root", str(tmp_path), "--out", str(tmp_path / "out"),
             "--quiet"]
    done, count = CliRunner().invoke(app, words), len(room.EXPERIMENTS)
    assert done.exit_code == 1 and len(pools) == 1 + count and "figure-7: " in done.stdout
    assert all(f"stage of {name}: no luck" in done.output for name in ("table-1", "table-2"))
    assert f"holds: {count - 2}, cannot tell: {count - 2}" in done.stdout
    assert len(pd.read_csv(tmp_path / "out" / "claims.csv")) == 2 * (count - 2)
    with pytest.raises(RuntimeError, match="shutdown"):
        pools[0].submit(print)


def test_reproduce_passes_on_what_it_was_told(monkeypatch, tmp_path):
    from aufacs_nb.experiments import reproduce as room
    from aufacs_nb.experiments.protocol import PROTOCOLS, with_generator, with_steps

    told = {}
    monkeypatch.setattr(room, "reproduce_all", lambda names, **options: told.update(options, names=names) or pd.DataFrame())
    (tmp_path / "weights").write_bytes(b"")
    (tmp_path / "data.toml").write_text(f'fera17 = "{sample_database()}"')
    call("reproduce", "table-4", "figure-8", "--preset", "small", "--root", tmp_path, "--init", tmp_path / "weights",
         "--missing", "estimated", "--seed", 3, "--data", tmp_path / "data.toml", "--generator-steps", 7,
         "--generator", "ratio")
    del told["report"]
    small = with_generator(with_steps("small", 7), "ratio")
    assert small.preset().gen_steps == 7 != PROTOCOLS["small"].preset().gen_steps and small.shipped == "ratio"
    assert told == dict(names=["table-4", "figure-8"], protocol=small, root=tmp_path, out=None, executor=None, progress=True,
                        init=str(tmp_path / "weights"), missing="estimated", seed=3,
                        licensed={"fera17": str(sample_database().resolve())})


def test_simulate_passes_on_script_and_wrinkles(monkeypatch, tmp_path):
    from aufacs_nb.simulation import simulate as room

    told = {}
    for name in ("disfa", "unbc"):
        monkeypatch.setitem(room.SIMULATORS, name, lambda out, name=name, **options: told.update({name: options}))
    monkeypatch.setattr(room, "simulate_fera17", lambda out, **options: told.update(fera17=options))
    call("simulate", "fera17", "--out", tmp_path, "--script", "rich", "--wrinkles", "tension", "--without", "things")
    for name in ("disfa", "unbc"):
        call("simulate", name, "--out", tmp_path, "--script", "rich")
    assert all(options["script"] == "rich" for options in told.values()) and len(told) == 3
    assert (told["fera17"]["wrinkles"], told["fera17"]["without"]) == ("tension", "things")

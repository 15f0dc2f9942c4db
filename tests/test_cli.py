"""Every command on the sample data, from a shell, in the order of the pipeline, at sizes that take seconds."""
import json
import re
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.data import astronaut

from aufacs_nb.databases import sample_database


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


def test_help_is_quick_and_names_every_command(run):
    start = time.perf_counter()
    text = run("--help")
    assert time.perf_counter() - start < 10
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


def test_a_wrong_label_is_named_or_skipped(run, aufacs, work):
    run("simulate", "unbc", "--out", work / "spoilt", *SMALL_DATABASES["unbc"], "--seed", 3, "--quiet")
    label = sorted((work / "spoilt" / "Frame_Labels" / "FACS").rglob("*_facs.txt"))[1]
    label.write_text("   1.2000000e+01   9.0000000e+00   0.0000000e+00   0.0000000e+00\n")
    done = aufacs("manifest", work / "spoilt", "--database", "unbc", "--out", work / "spoilt.parquet")
    assert done.returncode == 2 and label.name in done.stderr and "Traceback" not in done.stderr
    said = run("manifest", work / "spoilt", "--database", "unbc", "--on-error", "skip", "--out", work / "spoilt.parquet")
    assert "1 skipped" in said and len(pd.read_parquet(work / "spoilt.parquet")) == 7


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


def test_train_generator_and_resample(run, work):
    run("train-generator", "--data", work / "registered", "--out", work / "generator", "--preset", "tiny",
           "--steps", 3, "--quiet")
    card = json.loads((work / "generator" / "card.json").read_text())
    assert card["preset"]["name"] == "tiny" and "paired_error_test" in card["scores"]
    for method in ("semantic", "real"):
        run("resample", "--data", work / "registered", "--out", work / method, "--model", work / "generator",
               "--method", method, "--per-intensity", 2, "--quiet")
        drawn = pd.read_parquet(work / method / "manifest.parquet")
        if method == "semantic":
            assert (drawn.groupby(["au", "intensity"]).size() == 2).all() and len(drawn) == 2 * 6 * 7


def test_train_classifiers_and_evaluate(run, work):
    run("train-classifiers", "--data", work / "semantic", "--valid", work / "registered", "--out",
           work / "classifiers", "--preset", "tiny", "--quiet")
    out = run("evaluate", "--data", work / "registered", "--model", work / "classifiers", "--out", work / "icc.csv")
    assert "AU12" in out and "mean" in out
    assert list(pd.read_csv(work / "icc.csv").columns) == ["au", "icc_value", "icc_low", "icc_high"]


def test_synthesize_writes_a_marked_picture(run, work):
    from aufacs_nb.pictures import synthetic_info

    run("synthesize", work / "me.png", "--out", work / "smile.png", "--au", "12=5", "--au", "6=4")
    info = synthetic_info(work / "smile.png")
    assert info["Source"] == "me.png" and "12=5" in info["Targets"]
    run("synthesize", work / "me.png", "--out", work / "grid.png")
    assert Image.open(work / "grid.png").width > 500


def test_personalize_and_predict(run, work):
    run("personalize", work / "me.png", "--out", work / "me")
    video = sorted((sample_database() / "FERA17_Test_MV").glob("*.mp4"))[0]
    tables = {}
    for name, model in (("generic", "small"), ("personal", work / "me")):
        run("predict", video, "--model", model, "--out", work / f"{name}.csv", "--quiet")
        tables[name] = pd.read_csv(work / f"{name}.csv")
    columns = [c for c in tables["generic"] if c.endswith("_r")]
    assert len(columns) == 7 and len(tables["generic"]) == 24
    assert tables["generic"][columns].to_numpy().min() >= 0 and tables["generic"][columns].to_numpy().max() <= 5
    assert (tables["generic"][columns] != tables["personal"][columns]).to_numpy().any()


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


def test_killed_generator_training_resumes_to_the_same_weights(run, work, aufacs_command):
    options = ("train-generator", "--data", work / "registered", "--preset", "tiny", "--steps", 320, "--quiet", "--out")
    run(*options, work / "whole")
    command = [aufacs_command, *map(str, options), str(work / "killed")]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not list((work / "killed").rglob("*.safetensors")) and time.monotonic() < limit and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert running.returncode == -signal.SIGKILL, "it was not killed in the middle"
    assert not (work / "killed" / "weights.safetensors").exists()
    run(*options, work / "killed")
    first, second = ((work / name / "weights.safetensors").read_bytes() for name in ("whole", "killed"))
    assert first == second


def test_interrupted_prediction_keeps_the_rows_it_has(tmp_path, monkeypatch, capsys):
    from aufacs_nb.apps.cli import predict_command
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
            predict_command(video, tmp_path / "au.csv", quiet=True, faces="main", plot=None, overlay=overlay)
        part = pd.read_csv(tmp_path / "au.part.csv")
        assert part.frame.tolist() == list(range(1, 9)) and part.success.all()
        assert "the first 8 rows are in" in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["au.part.csv"]
        (tmp_path / "au.part.csv").unlink()


def test_evaluate_prints_values_with_intervals(run, work):
    said = run("evaluate", "--data", work / "registered")
    assert re.search(r"mean\s+[+-]?\d\.\d+ \[[+-]?\d\.\d+, [+-]?\d\.\d+\]", said), said
    assert "Interval(" not in said


def test_reproduce_lists_what_each_experiment_asks(run, work):
    from aufacs_nb.experiments.reproduce import EXPERIMENTS

    said = run("reproduce", "--list", "--root", work / "nothing")
    for line, (name, experiment) in zip(said.strip().splitlines(), EXPERIMENTS.items(), strict=True):
        assert line.startswith(name) and line.endswith(experiment.asks)
        assert re.search(r" [1-9]\d* stages, +0 made ", line), line


def test_reproduce_makes_a_table_and_does_not_make_it_again(run, work):
    options = ("reproduce", "table-1", "--preset", "tiny", "--root", work / "stages", "--quiet")
    said = run(*options, "--out", work / "tables")
    table = pd.read_csv(work / "tables" / "table-1_scores.csv", index_col=0)
    assert list(table.index) == ["fera17", "disfa", "unbc", "multipie"] and (table.people >= 2).all()
    assert "Which databases are there?" in said and all(name in said for name in table.index)
    before = {path: path.stat().st_mtime_ns for path in (work / "stages").rglob("*")}
    assert run(*options) == said
    assert before == {path: path.stat().st_mtime_ns for path in (work / "stages").rglob("*")}
    listed = run("reproduce", "--list", "--root", work / "stages").splitlines()[0]
    assert re.search(r"table-1 +(\d+) stages, +\1 made", listed), listed


def test_reproduce_refuses_before_it_starts(aufacs, work):
    (work / "empty").mkdir()
    files = {"other": f'disfa = "{sample_database()}"', "none": 'fera17 = "empty"', "unknown": 'bp4d = "empty"',
             "gone": 'unbc = "nowhere"', "broken": "fera17: /data"}
    for name, text in files.items():
        (work / f"{name}.toml").write_text(text)
    root = ("--root", work / "untouched")
    cases = {("table-9",): "'table-9' is no experiment: choose one of table-1", (): "name an experiment",
             ("table-1", "--executor", "threads"): "choose serial", ("table-1", "--preset", "huge"): "choose tiny"}
    said = {"other": "holds fera17, not disfa", "none": "fera17 = 'empty': the folder holds no database",
            "unknown": "bp4d = 'empty'", "gone": "unbc = 'nowhere': there is no such folder", "broken": "no TOML"}
    cases |= {("table-1", "--data", work / f"{name}.toml"): text for name, text in said.items()}
    for words, message in cases.items():
        done = aufacs("reproduce", *words, *root)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, (words, done.stderr)
        assert "--data" not in words or words[-1].name in done.stderr
    assert not (work / "untouched").exists()


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
    from aufacs_nb.experiments.graph import GraphError

    pools = []

    def reproduce(name, executor, **options):
        "The first two fail."
        pools.append(executor)
        if name in ("table-1", "table-2"):
            raise GraphError({f"stage of {name}": "no luck"}, 3)
        return pd.DataFrame({"AU01": [0.5]}), pd.DataFrame()

    monkeypatch.setattr("aufacs_nb.experiments.reproduce.reproduce", reproduce)
    done = CliRunner().invoke(app, ["reproduce", "all", "--executor", "processes:1", "--root", str(tmp_path), "--quiet"])
    assert done.exit_code == 1 and len(pools) == 9 and "figure-7: " in done.stdout
    assert all(f"stage of {name}: no luck" in done.output for name in ("table-1", "table-2"))
    with pytest.raises(RuntimeError, match="shutdown"):
        pools[0].submit(print)

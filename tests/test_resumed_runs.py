"A run goes on only with what it began with; a set is seen whole or not at all; foreign folders stay as they are."
import errno
import json
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.data import astronaut

from aufacs_nb import folders
from aufacs_nb.databases import folder_manifest
from aufacs_nb.estimation.classifiers import _held
from aufacs_nb.estimation.resampling import ResampledSet, ResamplingError, real_set
from aufacs_nb.folders import FolderError, only_one
from aufacs_nb.generation.runs import _run_alone
from aufacs_nb.registration import collections, prnet
from aufacs_nb.registration.collections import open_registered, register_manifest, sample_registered
from aufacs_nb.simulation.layouts import SimulationError
from aufacs_nb.simulation.simulate import clip_path, plan_clips, read_plan, simulate_fera17

TINY = dict(train=1, valid=0, test=0, tasks=1, frames=4, size=32, progress=False)


def contents(folder):
    "Bytes of every file under a folder, hidden ones, too."
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def album(tmp_path):
    "A folder of four pictures of one face."
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(astronaut()[:300 + number]).save(folder / f"{number}.png")
    return folder


def register(album, out, **options):
    return register_manifest(folder_manifest(album), out, **{"size": 32, "progress": False} | options)


class Stopped(Exception):
    "In place of a kill."


def stop_after(monkeypatch, writes):
    "Let a registration write so many stretches, of one picture each, and end."
    left, whole = iter(range(writes)), collections._Work.write

    def write(work, *stretch):
        if next(left, None) is None:
            raise Stopped
        whole(work, *stretch)
    monkeypatch.setattr(collections, "STRETCH", 1)
    monkeypatch.setattr(collections._Work, "write", write)


def stopped(monkeypatch, album, out, writes=2, **options):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, writes)
        register(album, out, **options)


@pytest.mark.parametrize("options", [{"script": "directed"}, {"without": "wrinkles"}, {"wrinkles": "tension"}])
def test_films_of_another_script_keep_their_labels(options, tmp_path):
    root = simulate_fera17(tmp_path / "db", **TINY, **options)
    before = contents(root)
    with pytest.raises(SimulationError, match=f"holds a simulation with {next(iter(options))}="):
        simulate_fera17(root, **TINY)
    assert contents(root) == before


def test_a_real_database_is_not_simulated_over(tmp_path):
    labels = tmp_path / "FERA17_Train_Labels" / "FERA17_TR_F001_T1_AU01_Int.csv"
    labels.parent.mkdir()
    labels.write_text("1,5\n")
    with pytest.raises(FolderError, match="not of a simulation: choose a new or an empty folder"):
        simulate_fera17(tmp_path, **TINY)
    assert contents(tmp_path) == {str(labels.relative_to(tmp_path)): b"1,5\n"}


def test_a_mistyped_option_does_not_lock_a_simulation(tmp_path, monkeypatch):
    def stop(*job):
        raise Stopped
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("aufacs_nb.simulation.simulate._write_clip", stop)
        simulate_fera17(tmp_path / "db", **TINY | dict(frames=6, tasks=2))
    simulate_fera17(tmp_path / "db", **TINY)
    assert contents(tmp_path / "db") == contents(simulate_fera17(tmp_path / "fresh", **TINY))


def test_pictures_of_a_killed_clip_do_not_stay_in_the_next(tmp_path):
    pictures = TINY | dict(media="frames")
    root = simulate_fera17(tmp_path / "db", **pictures)
    clip = clip_path(root, plan := read_plan(root), *plan_clips(plan)[0])
    whole, part = contents(root), clip.with_name(f".{clip.name}.99999999.tmp")
    clip.rename(part)
    (part / "9999.png").write_bytes(b"of a longer clip")
    simulate_fera17(root, **pictures)
    assert contents(root) == whole


def test_a_replaced_picture_is_noticed(album, tmp_path):
    register(album, tmp_path / "out")
    Image.fromarray(astronaut()[::-1][:303]).save(album / "3.png")
    with pytest.raises(FolderError, match=r"another registration \(other content: 3.png\). Choose another folder"):
        register(album, tmp_path / "out")


def test_a_folder_of_an_older_version_still_opens(album, tmp_path):
    register(album, tmp_path / "out")
    (tmp_path / "out" / "inputs.parquet").unlink()
    assert len(register(album, tmp_path / "out").frames) == 4
    with pytest.raises(FolderError, match="size 32, not 48"):
        register(album, tmp_path / "out", size=48)


def test_a_picture_taken_away_leaves_the_others_their_frames(album, tmp_path, monkeypatch):
    stopped(monkeypatch, album, tmp_path / "out", 3)
    (album / "1.png").unlink()
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="2 of 3 .*not asked for any more: 1.png"):
        searched = []
        find = collections.find_stretch
        patch.setattr(collections, "find_stretch", lambda *a, **k: searched.append(len(a[1].images)) or find(*a, **k))
        register(album, tmp_path / "out")
    assert searched == [1]
    register(album, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_picture_replaced_halfway_is_registered_anew(album, tmp_path, monkeypatch):
    stopped(monkeypatch, album, tmp_path / "out")
    Image.fromarray(astronaut()[:310, 20:]).save(album / "0.png")
    with pytest.warns(UserWarning, match="1 of 2 .*other content: 0.png"):
        register(album, tmp_path / "out")
    register(album, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_wrong_size_locks_a_folder_only_after_the_first_frame(album, tmp_path, monkeypatch):
    stopped(monkeypatch, album, tmp_path / "out", 0, size=64)
    stopped(monkeypatch, album, tmp_path / "out", 1)
    with pytest.raises(FolderError, match="another registration with size 32, not 64. Choose another folder"):
        register(album, tmp_path / "out", size=64)
    register(album, tmp_path / "out")
    register(album, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_what_a_killed_run_left_goes_and_a_second_run_is_refused(album, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".frames.npy.99999998.tmp").write_bytes(bytes(1000))
    with only_one(out), ThreadPoolExecutor(1) as other:
        (out / ".frames.npy.99999999.tmp").write_bytes(bytes(10))
        with pytest.raises(FolderError, match="another process is writing it"):
            other.submit(register, album, out).result()
    register(album, out)
    assert not [path for path in out.iterdir() if path.name[0] == "."]


@pytest.mark.parametrize("moment", ["frames.npy", "manifest.parquet", "inputs.parquet", "progress.jsonl"])
def test_a_full_disk_is_said_and_what_was_done_is_kept(moment, album, tmp_path, monkeypatch):
    stopped(monkeypatch, album, tmp_path / "out")
    (album / "0.png").unlink()  # so that all files must be written anew

    def full(path, target):
        if Path(target).name == moment:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(path, target)
    replace = folders.os.replace
    with monkeypatch.context() as patch, warnings.catch_warnings(action="ignore"):
        patch.setattr(folders.os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            register(album, tmp_path / "out")
    with warnings.catch_warnings(action="ignore"):
        register(album, tmp_path / "out")
    register(album, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_pool_of_another_seed_is_refused(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(prnet, "_draw_crowd", lambda people, faces, rng: drawn.append(1) or [
        (np.zeros((4, 4, 3), np.uint8), np.zeros((468, 3)))] * people * faces)
    monkeypatch.setattr(prnet, "with_pseudo_labels", lambda pictures, points: (points, None))
    pool = lambda seed: prnet.render_pool(tmp_path, 1, seed, people=1, faces=2, progress=False)
    pool(0), pool(0)
    assert len(drawn) == 1
    with pytest.raises(FolderError, match="a pool of faces with seed 0, not 1"):
        pool(1)


def test_a_balanced_set_replaces_nothing_but_a_balanced_set(tmp_path):
    sample = sample_registered()
    folder = tmp_path / "registered"
    folder.mkdir()
    np.save(folder / "frames.npy", sample.frames)
    sample.manifest.to_parquet(folder / "manifest.parquet")
    before, options = contents(folder), dict(aus=(12,), per_intensity=2, partitions=None)
    with warnings.catch_warnings(action="ignore"):
        with pytest.raises(ResamplingError, match="holds frames that a balanced set would replace"):
            real_set(sample.frames, sample.manifest, **options, out=folder)
        assert contents(folder) == before
        real_set(sample.frames, sample.manifest, **options, out=tmp_path / "set")
        real_set(sample.frames, sample.manifest, **options, seed=1, out=tmp_path / "set")
    assert len(ResampledSet.open(tmp_path / "set").frames) == len(ResampledSet.open(tmp_path / "set").manifest)


@pytest.mark.parametrize("stop", [0, 1])
def test_a_set_killed_between_its_renames_is_no_set(stop, tmp_path, monkeypatch):
    sample, left, replace = sample_registered(), iter(range(stop)), folders.os.replace
    options = dict(aus=(12,), per_intensity=2, partitions=None, out=tmp_path / "set")

    def kill(*names):
        if next(left, None) is None:
            raise Stopped
        replace(*names)
    with warnings.catch_warnings(action="ignore"):
        real_set(sample.frames, sample.manifest, **options)
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(folders.os, "replace", kill)
            real_set(sample.frames, sample.manifest, seed=1, **options)
    with pytest.raises(ResamplingError, match="no manifest.parquet; make the set"):
        ResampledSet.open(tmp_path / "set")


SPOILED = {"frames.npy": [lambda path: np.savez(path.open("wb"), np.zeros(3)), lambda path: path.write_bytes(b"x" * 200),
                          lambda path: np.save(path, np.zeros((4, 8, 8, 3)))],
           "vertices.npy": [lambda path: np.save(path, np.zeros((3, 468, 3), np.float32))],
           "registration.json": [lambda path: path.write_text("[1"), lambda path: path.write_text("[]")],
           "manifest.parquet": [lambda path: path.write_bytes(b"PAR1"), *(
               lambda path, name=name, values=values: pd.read_parquet(path).assign(**{name: values}).to_parquet(path)
               for name, values in {"AU12": "strong", "valid": "yes", "frame": pd.Timestamp("2022-03-01"), "AU04": 7.0,
                                    "timestamp": "now", "subject": 3}.items())]}


@pytest.mark.parametrize("name, spoil", [(name, spoil) for name, every in SPOILED.items() for spoil in every])
def test_a_registered_folder_that_does_not_fit_is_named(name, spoil, tmp_path):
    sample = sample_registered().select(np.arange(96) < 4)
    np.save(tmp_path / "frames.npy", sample.frames)
    np.save(tmp_path / "vertices.npy", sample.vertices)
    sample.manifest.to_parquet(tmp_path / "manifest.parquet")
    (tmp_path / "registration.json").write_text(json.dumps({"method": "mesh"}))
    assert len(open_registered(tmp_path).frames) == 4
    spoil(tmp_path / name)
    with pytest.raises(FolderError, match=name):
        open_registered(tmp_path)


@pytest.mark.parametrize("column, values", [("frame", "one"), ("path", None), ("path", ""), ("AU12", "A"), ("pose_yaw", "left")])
def test_a_manifest_of_the_wrong_kind_is_named(column, values, album, tmp_path):
    table = folder_manifest(album).assign(**{column: values})
    with pytest.raises(FolderError, match=f"manifest, row 0, column {column}: '{values}' is not"):
        register_manifest(table, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"size": 20_000}, {"size": 0}, {"n_jobs": 0}, {"n_jobs": 10_000}, {"uv": -1}])
def test_an_option_out_of_range_is_named(options, album, tmp_path):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is {next(iter(options.values()))}: give a whole number"):
        register(album, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks /proc who is alive")
def test_workers_end_when_their_parent_is_terminated(tmp_path):
    code = ("import os, time; from aufacs_nb.folders import in_processes\n"
            "def work(k): print(os.getpid(), flush=True); time.sleep(60)\n"
            "list(in_processes(2, work, [(0,), (1,)]))")
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    workers = [Path(f"/proc/{int(parent.stdout.readline())}/stat") for _ in range(2)]
    parent.terminate()
    parent.wait()
    alive = lambda stat: stat.exists() and " Z " not in stat.read_text()
    end = time.monotonic() + 120
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(.05)
    assert not any(map(alive, workers))


def test_a_worker_that_is_ended_is_said_with_a_way_out():
    with pytest.raises(FolderError, match="want of memory; run the same command again"):
        list(folders.in_processes(2, os._exit, [(9,), (9,)]))


def test_every_byte_of_a_film_counts(tmp_path):
    film = tmp_path / "film.mp4"
    film.write_bytes(content := bytes(3_000_000))
    found = folders.file_content(film)
    for place in (0, 30_000, 2_999_999):
        film.write_bytes(content[:place] + b"x" + content[place + 1:])
        assert folders.file_content(film) != found


def test_categories_become_plain_and_lists_are_refused_by_name(album, tmp_path):
    table = folder_manifest(album)
    assert folders.check_columns(table.astype({"subject": "category"}), "table").equals(table)
    table.assign(box=[[1, 2]] * len(table)).to_parquet(tmp_path / "manifest.parquet")
    with pytest.raises(FolderError, match="manifest.parquet, row 0, column box: holds several values"):
        folders.read_table(tmp_path / "manifest.parquet")


@pytest.mark.parametrize("card", [{"preset": {"gen_arch": "flow"}, "architecture": "flow", "part": "generator"},
                                  {"preset": {"classifier": "slim"}, "aus": [12]}, {"license": "mit"}])
def test_a_training_replaces_no_other_weights(card, tmp_path):
    (tmp_path / "card.json").write_text(json.dumps(card))
    trainer = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=True))
    kinds = {"generator": lambda: _run_alone(trainer, tmp_path, {}, True, None, False),
             "classifiers": lambda: _held(tmp_path, None).__enter__()}
    for kind, begin in kinds.items():
        own = kind == ("generator" if "architecture" in card else "classifiers" if "aus" in card else "")
        with pytest.raises((FolderError, AttributeError)) as refused:
            begin()
            raise AttributeError
        assert (refused.type is FolderError) != own, (kind, refused.value)
        assert own or f"its card.json is not of a training of {'a ' * (kind == 'generator')}{kind}: choose" in str(refused.value)


def test_a_number_of_numpy_is_named_as_a_number():
    for wrong, said in (({"size": np.int64(20_000)}, "size is 20000:"), ({"activity": np.float32(0)}, "activity is 0.0:")):
        with pytest.raises(FolderError, match=said):
            folders.check_ranges(**wrong)

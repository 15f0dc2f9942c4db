"""Differences from a person's own face: exact ways back, hidden pixels, whole folders, what is refused."""
import json
import os
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from numpy.lib.format import open_memmap

from aufacs_nb.folders import FolderError
from aufacs_nb.registration import references
from aufacs_nb.registration.references import (MOST_SHAPES, Reference, RunningMean, decode, difference, encode,
                                               find_neutral, live_differences, make_reference, median_shape,
                                               normalize_registered, open_references, restore, seen_pixels)
from aufacs_nb.registration.collections import open_registered


def noise(*shape, seed=0):
    "Frames of grey levels 1–255."
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def write_folder(path, frames, subjects, valid=None, vertices=None):
    "A registered folder with the least that it needs."
    path.mkdir()
    np.save(path / "frames.npy", frames)
    if vertices is not None:
        np.save(path / "vertices.npy", vertices.astype(np.float32))
    table = pd.DataFrame({"subject": subjects, "valid": True if valid is None else valid}, index=range(len(frames)))
    table.to_parquet(path / "manifest.parquet")
    return path


@pytest.fixture
def folder(tmp_path):
    "Two people, A and file/B, in mixed order; one frame of A without a face; B's right half is never seen."
    frames, subjects = noise(10, 8, 8, 3), np.array(["file/B", "A"] * 5)
    frames[subjects == "file/B", :, 4:] = 0
    valid = np.arange(10) != 5
    frames[5] = 0
    shapes = np.zeros((10, 468, 3)) + np.array([0, 0, 1, 4, 5, 9, 2, 8, 9, 5])[:, None, None]
    return write_folder(tmp_path / "registered", frames, subjects, valid, shapes)


def test_the_mean_counts_only_what_was_seen():
    frames = noise(9, 6, 6, 3)
    frames[np.random.default_rng(1).random((9, 6, 6)) < .5] = 0
    frames[:, 0, 0] = 0
    mean = RunningMean()
    for frame in frames:
        mean.update(frame)
    seen = frames.any(-1)
    assert np.array_equal(mean.count, seen.sum(0)) and not mean.mean[0, 0].any()
    wanted = frames.astype(float).sum(0) / np.maximum(seen.sum(0), 1)[..., None]
    assert np.abs(mean.mean - wanted).max() <= .5


def test_dark_skin_that_was_seen_stays_seen():
    dark = np.zeros((2, 4, 4, 3), np.uint8)
    dark[0, ..., 2] = 1
    dark[1, ..., 0] = 1
    reference = make_reference(dark, np.arange(2))
    assert reference.seen.all() and reference.image.min() == 1


def test_every_difference_comes_back():
    image = np.arange(256, dtype=np.uint8)
    frames = np.stack(np.meshgrid(image, image), -1)[..., [0, 1, 1]].copy()
    reference = Reference(frames[::-1, ::-1].copy(), np.ones((256, 256), np.int32), "given")
    change, seen = difference(frames, reference)
    assert change.dtype == np.int16 and change.min() == -255 and change.max() == 255
    assert np.array_equal(restore(change, seen, reference), frames)
    coded = encode(change, seen)
    again, kept = decode(coded)
    assert coded.dtype == np.uint8 and coded[seen].min() == 1 and np.array_equal(kept, seen)
    assert np.abs(again - change).max() == 1
    assert np.abs(restore(again, kept, reference).astype(int) - frames).max() <= 1
    assert (encode(np.zeros((2, 2, 3), np.int16), np.ones((2, 2), bool)) == 128).all()


def test_the_neutral_frame_is_nearest_the_median_and_outliers_do_not_matter():
    shapes = np.zeros((7, 468, 3)) + np.array([10, 11, 12, 500, 9, -400, 30])[:, None, None]
    assert find_neutral(shapes, np.arange(7)) == 1
    assert find_neutral(shapes, [2, 3, 6]) == 6


def test_the_median_of_many_shapes_is_bounded_seeded_and_close():
    asked = []

    class Shapes:
        values = np.random.default_rng(0).normal(size=(6000, 2, 3))

        def __getitem__(self, row):
            asked.append(row)
            return self.values[row]

    middle = median_shape(Shapes(), np.arange(6000))
    assert len(asked) == len(set(asked)) == MOST_SHAPES and asked == sorted(asked)
    assert np.array_equal(middle, median_shape(Shapes(), np.arange(6000)))
    assert not np.array_equal(middle, median_shape(Shapes(), np.arange(6000), seed=1))
    assert np.abs(middle - np.median(Shapes.values, 0)).max() < 4 * np.sqrt(np.pi / 2 / MOST_SHAPES)


def test_live_differences_never_look_ahead():
    frames = noise(5, 4, 4, 3)
    source = iter(frames)
    live = live_differences(source)
    assert (next(live) == 128).all() and np.array_equal(next(source), frames[1])
    reference = make_reference(frames, np.arange(5))
    assert np.array_equal(np.stack(list(live_differences(frames, reference))), encode(*difference(frames, reference)))


@pytest.mark.parametrize("method", references.REFERENCE_METHODS)
def test_a_folder_goes_there_and_back(folder, tmp_path, method):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    out = normalize_registered(folder, tmp_path / "out", method, progress=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    source, made, references = open_registered(folder), open_registered(out), open_references(out)
    assert list(references) == ["file/B", "A"] and np.array_equal(made.vertices, source.vertices)
    for row, subject in enumerate(made.manifest.subject):
        seen = seen_pixels(made.frames[row])
        assert np.array_equal(seen, source.frames[row].any(-1) & made.manifest.valid[row])
        back = restore(*decode(made.frames[row]), references[subject]).astype(int)
        assert np.abs(back - source.frames[row])[seen].max(initial=0) <= 1
    assert not references["file/B"].seen[:, 4:].any() and references["file/B"].seen[:, :4].all()
    said = made.manifest.reference[made.manifest.subject == "A"].unique()
    assert said == ["mean of 4 frames" if method == "mean" else "neutral frame, found: nearest the median shape of 4"]
    assert references["A"].count.max() == (4 if method == "mean" else 1)


def test_a_given_neutral_frame_is_used_and_named(folder, tmp_path):
    picture = noise(8, 8, 3, seed=5)
    out = normalize_registered(folder, tmp_path / "out", "au0", {"A": 3, "file/B": picture}, progress=False)
    made, references = open_registered(out), open_references(out)
    assert (made.frames[3] == 128).all() and references["A"].row == 3
    assert references["A"].how == "neutral frame 3, given" and references["file/B"].how == "neutral picture, given"
    assert np.array_equal(references["file/B"].image, picture)


def test_people_without_a_face_and_folders_without_a_frame(tmp_path):
    home = write_folder(tmp_path / "a", noise(4, 8, 8, 3), list("AABB"), [True, True, False, False])
    made = open_registered(normalize_registered(home, tmp_path / "a_out", progress=False))
    assert not made.frames[2:].any() and list(made.manifest.reference_row) == [-1] * 4
    assert made.manifest.reference[3] == "none: no face found"
    nobody = write_folder(tmp_path / "n", noise(2, 8, 8, 3), list("AA"), [False, False])
    assert not open_registered(normalize_registered(nobody, tmp_path / "n_out", progress=False)).frames.any()
    empty = write_folder(tmp_path / "e", noise(0, 8, 8, 3), np.array([], object), np.array([], bool))
    assert open_registered(normalize_registered(empty, tmp_path / "e_out", progress=False)).frames.shape == (0, 8, 8, 3)


@pytest.mark.parametrize("given, method, message", [
    ({"C": 1}, "au0", "given names 'C'"), ({"A": 0}, "au0", "another person's"), ({"A": 5}, "au0", "has no face"),
    ({"A": 1}, "mean", "choose method='au0'"), ({}, "none", "choose 'au0'"),
])
def test_wrong_questions_leave_nothing_behind(folder, tmp_path, given, method, message):
    with pytest.raises(ValueError, match=message):
        normalize_registered(folder, tmp_path / "out", method, given, progress=False)
    assert not (tmp_path / "out").exists()


def test_nothing_registered_is_ever_overwritten(folder, tmp_path):
    other = write_folder(tmp_path / "other", noise(2, 8, 8, 3), list("AA"))
    before = (other / "frames.npy").read_bytes()
    for target in (folder, other):
        with pytest.raises(ValueError, match="not of a set of differences"):
            normalize_registered(folder, target, progress=False)
    assert (other / "frames.npy").read_bytes() == before and (other / "manifest.parquet").is_file()
    out = normalize_registered(folder, tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="holds differences already"):
        normalize_registered(out, out, progress=False)


def test_missing_meshes_and_missing_subjects_are_named(tmp_path):
    home = write_folder(tmp_path / "a", noise(2, 8, 8, 3), list("AA"))
    with pytest.raises(ValueError, match="no meshes"):
        normalize_registered(home, tmp_path / "out", "au0", progress=False)
    with pytest.raises(ValueError, match="1 row of the manifest without a subject"):
        normalize_registered(write_folder(tmp_path / "b", noise(2, 8, 8, 3), ["A", None]), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="aufacs register"):
        normalize_registered(tmp_path / "nothing", tmp_path / "out")


@pytest.mark.skipif(os.name == "nt", reason="folders are made read-only differently there")
def test_a_place_that_cannot_be_written_to(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="choose a folder you may write to"):
        normalize_registered(folder, tmp_path / "file" / "out", progress=False)


@pytest.mark.parametrize("place, error", [("encode", KeyboardInterrupt), ("shutil.copyfile", OSError(28, "No space"))])
def test_until_a_set_is_whole_the_older_one_is_seen(place, error, folder, tmp_path, monkeypatch):
    out = normalize_registered(folder, tmp_path / "out", progress=False)
    np.save(out / "frames.npy", np.zeros((10, 8, 8, 3), np.uint8))  # to be told from new ones
    before, count = {path.name: path.read_bytes() for path in out.iterdir()}, iter(range(6))
    *parts, name = place.split(".")
    home = getattr(references, parts[0]) if parts else references
    whole = getattr(home, name)

    def interrupted(*arguments):
        if name == "copyfile" or next(count, None) is None:
            raise error
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(home, name, interrupted)
        for target in (out, tmp_path / "new"):
            with pytest.raises(KeyboardInterrupt if name == "encode" else OSError):
                normalize_registered(folder, target, progress=False)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before and open_references(out)
    assert not list((tmp_path / "new").iterdir())
    normalize_registered(folder, out, progress=False)
    fresh = normalize_registered(folder, tmp_path / "new", progress=False)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {p.name: p.read_bytes() for p in fresh.iterdir()}
    assert json.loads((out / "normalization.json").read_text())["method"] == "mean"


def test_meshes_of_an_older_set_do_not_stay(folder, tmp_path):
    out = normalize_registered(folder, tmp_path / "out", progress=False)
    older = json.loads((out / "normalization.json").read_text())
    del older["content"]  # a set of an older version, which is replaced
    (out / "normalization.json").write_text(json.dumps(older))
    (folder / "vertices.npy").unlink()
    assert (out / "vertices.npy").is_file()
    assert open_registered(normalize_registered(folder, out, progress=False)).vertices is None


@pytest.mark.parametrize("name", ["references.npy", "reference_counts.npy", "manifest.parquet"])
def test_references_that_are_not_whole_are_named(name, folder, tmp_path):
    out = normalize_registered(folder, tmp_path / "out", progress=False)
    (out / name).write_bytes((out / name).read_bytes()[:100])
    with pytest.raises(FolderError, match=name):
        open_references(out)


@pytest.mark.parametrize("method", references.REFERENCE_METHODS)
def test_memory_does_not_grow_with_the_film(tmp_path, method):
    peaks, sizes = {}, {}
    for count in (10, 100, 500):  # the first run warms up
        home = tmp_path / str(count)
        home.mkdir()
        open_memmap(home / "frames.npy", "w+", np.uint8, (count, 48, 48, 3))[:] = noise(48, 48, 3)
        open_memmap(home / "vertices.npy", "w+", np.float32, (count, 468, 3))[:] = 1
        pd.DataFrame({"subject": "A", "valid": True}, index=range(count)).to_parquet(home / "manifest.parquet")
        sizes[count] = sum((home / name).stat().st_size for name in ("frames.npy", "vertices.npy"))
        tracemalloc.start()
        normalize_registered(home, home / "out", method, progress=False)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    shapes = 0 if method == "mean" else 2.5 * (500 - 100) * 468 * 3 * 4  # bounded by MOST_SHAPES
    assert peaks[500] - peaks[100] < shapes + 0.2 * (sizes[500] - sizes[100])  # rows and threads, but no copy of either


@pytest.fixture
def balanced(tmp_path):
    "A balanced set of two people: no `valid`, no meshes; A is at rest first in row 3, B never."
    labels = pd.DataFrame({"AU06": [5, 0, 1, 0, 0, 2], "AU12": [0, 3, 0, 0, 0, np.nan]}, dtype=np.float32)
    rows = pd.DataFrame({"au": 6, "intensity": labels.AU06.astype(int), "subject": ["B", "A"] * 2 + ["A", "B"],
                         "registration": "procrustes"})
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "frames.npy", noise(6, 8, 8, 3))
    pd.concat([rows, labels], axis=1).to_parquet(tmp_path / "set" / "manifest.parquet", index=False)
    return tmp_path / "set"


def test_a_balanced_set_is_normalised_by_its_own_people(balanced, tmp_path):
    frames = np.load(balanced / "frames.npy")
    normalize_registered(balanced, tmp_path / "mean", "mean", progress=False)
    assert np.array_equal(open_references(tmp_path / "mean")["A"].image, make_reference(frames, [1, 3, 4]).image)
    table = pd.read_parquet(tmp_path / "mean" / "manifest.parquet")
    assert (table.registration == "procrustes minus mean").all() and table.intensity.tolist() == [5, 0, 1, 0, 0, 2]
    assert open_registered(tmp_path / "mean").manifest.registration.unique().tolist() == ["procrustes minus mean"]
    with pytest.raises(ValueError, match="'B' .* no frame without any AU: name one with --neutral SUBJECT=ROW"):
        normalize_registered(balanced, tmp_path / "au0", "au0", progress=False)
    assert not (tmp_path / "au0").exists()
    normalize_registered(balanced, tmp_path / "au0", "au0", {"B": 2}, progress=False)
    rows = pd.read_parquet(tmp_path / "au0" / "manifest.parquet").groupby("subject").reference_row.first()
    assert rows.to_dict() == {"A": 3, "B": 2}
    assert np.array_equal(open_references(tmp_path / "au0")["A"].image, frames[3])


def test_differences_say_what_they_are(folder, tmp_path):
    (folder / "registration.json").write_text(json.dumps({"method": "prnet"}))
    normalize_registered(folder, tmp_path / "out", "au0", progress=False)
    assert set(open_registered(tmp_path / "out").manifest.registration) == {"prnet minus au0"}
    assert set(open_registered(folder).manifest.registration) == {"prnet"}
    drawn = open_registered(tmp_path / "out").manifest.drop(columns=["reference", "reference_row"])
    (tmp_path / "drawn").mkdir()  # as `resample --method real` draws from differences
    np.save(tmp_path / "drawn" / "frames.npy", np.load(tmp_path / "out" / "frames.npy"))
    drawn.to_parquet(tmp_path / "drawn" / "manifest.parquet")
    with pytest.raises(ValueError, match="holds differences already"):
        normalize_registered(tmp_path / "drawn", tmp_path / "twice", progress=False)


def test_differences_of_other_data_are_not_replaced(folder, tmp_path):
    "Of other frames, other neutral frames or another method; the same run again is welcome."
    out = tmp_path / "differences"
    for _ in range(2):
        normalize_registered(folder, out, "mean", progress=False)
    before, frames = (out / "frames.npy").read_bytes(), np.load(folder / "frames.npy")
    np.save(folder / "frames.npy", frames[::-1])
    with pytest.raises(FolderError, match="holds differences with content .*Choose another folder"):
        normalize_registered(folder, out, "mean", progress=False)
    np.save(folder / "frames.npy", frames)
    with pytest.raises(FolderError, match="method mean, not au0"):
        normalize_registered(folder, out, "au0", given={"A": 1, "file/B": 2}, progress=False)
    folder.rename(moved := tmp_path / "moved")
    assert (out / "frames.npy").read_bytes() == before and normalize_registered(moved, out, "mean", progress=False)
    older = {key: value for key, value in json.loads((out / "normalization.json").read_text()).items() if key != "content"}
    (out / "normalization.json").write_text(json.dumps(older))
    assert normalize_registered(moved, out, "mean", progress=False)
    with pytest.raises(FolderError, match="content"):
        normalize_registered(moved, out, "au0", given={"A": 1, "file/B": frames[2]}, progress=False)

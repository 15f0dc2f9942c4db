"""Tables: OpenFace's angles against closed forms, its columns, and files that grow piece by piece."""
import json

import numpy as np
import pandas as pd
import pytest

from aufacs_nb.estimation.sources import StreamItem
from aufacs_nb.estimation.tables import (EYE_CENTRE, EYE_RADIUS, EYES, FLIP, GEOMETRY, ROW_GROUP, Predictions, TableFile,
                                         gaze_angles, openface_pose, openface_table, save_table)
from aufacs_nb.files import WriteError
from aufacs_nb.geometry.meshes import canonical_face
from aufacs_nb.geometry.rotation import rotation
from aufacs_nb.registration.detection import Face, FaceLandmarker
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person


def face_that_looks(head, gaze, scale=7., at=(300, 200)):
    "Landmarks (478, 3) of the canonical face, turned by `head` degrees, whose eyes look by `gaze` degrees in the head."
    points = np.zeros((478, 3))
    points[:468] = canonical_face().vertices
    for iris, *corners in EYES:
        points[iris] = points[corners].mean(0) + EYE_CENTRE + EYE_RADIUS * rotation(*gaze, 0)[:, 2]
    return points @ rotation(*head).T * scale * FLIP + [*at, 0]


@pytest.mark.parametrize("head, sign", [((0, 20, 0), (1, 0, 0)), ((-20, 0, 0), (0, 1, 0)), ((0, 0, -20), (0, 0, 1))])
def test_signs_of_pose(head, sign):
    "Down, to the left of the picture, and crown to the right: OpenFace's positive directions."
    assert np.allclose(openface_pose(face_that_looks(head, (0, 0))), np.radians(20) * np.array(sign), atol=1e-6)


def test_pose_is_the_rotation_that_openface_means():
    rng = np.random.default_rng(0)
    for head in rng.uniform(-60, 60, (20, 3)):
        x, y, z = openface_pose(face_that_looks(head, (0, 0)))
        about = [np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]),
                 np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]),
                 np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])]
        expected = FLIP[:, None] * rotation(*head) * FLIP
        assert np.allclose(about[0] @ about[1] @ about[2], expected, atol=1e-6)


def test_gaze_of_exact_irises():
    "Where an eye looks is found again, whatever the head does: to the right and down are positive."
    rng = np.random.default_rng(1)
    for head, gaze in zip(rng.uniform(-20, 20, (20, 3)), rng.uniform(-20, 20, (20, 2))):
        right, up, near = rotation(*head) @ rotation(*gaze, 0)[:, 2]
        assert np.allclose(gaze_angles(face_that_looks(head, gaze)), np.arctan2([right, -up], near), atol=1e-6)
    assert (gaze_angles(face_that_looks((0, 0, 0), (15, 10))) > .1).all()
    far = face_that_looks((0, 0, 0), (0, 0))
    far[468, 0] += 60
    assert np.isfinite(gaze_angles(far)).all(), "an iris beside its eye"


def test_gaze_follows_the_eyes_of_virtual_people():
    "Sideways by degrees; up and down the right way for each person, by a fraction: an iris stays between its lids."
    looks, landmarker = [(0, -14), (0, 14), (-20, 0), (20, 0)], FaceLandmarker.from_pretrained()
    for seed in (6100, 6101):
        pictures = [render_person(sample_person(seed), {}, gaze=gaze, size=200, seed=1) for gaze in looks]
        read = np.degrees([gaze_angles(face.landmarks) for face in landmarker.find_batch(pictures)])
        assert 2 < read[1, 1] - read[0, 1] < 28 and np.abs(read[1, 0] - read[0, 0]) < 5
        assert 30 < read[3, 0] - read[2, 0] < 50


def made(count, start=1):
    "A table of `count` frames, every second one with a face, as its pieces come."
    points = face_that_looks((10, 0, 5), (3, 0)).astype(np.float32)
    box = np.float32([*points[:, :2].min(0), *points[:, :2].max(0)])
    rows = [(StreamItem(start + k, k / 25, "ä \u2028 film.mp4", None), None if k % 2 else Face(box, points, .9, 3))
            for k in range(count)]
    return openface_table(rows, np.arange(7 * count, dtype=np.float32).reshape(count, 7) / (2 * count))


def test_columns_in_the_order_of_openface():
    table = made(4)
    assert list(table.columns[:10]) == ["frame", "face_id", "timestamp", "confidence", "success", *GEOMETRY]
    assert list(table.columns[-5:]) == ["face_x", "face_y", "face_w", "face_h", "file"]
    assert not table[::2].isna().any(axis=None) and table.success.tolist() == [1, 0, 1, 0] and table.face_id[0] == 3
    assert (table.loc[0, ["face_w", "face_h"]] > 50).all()


@pytest.mark.parametrize("count, times", [(2, 1), (1, 1), (2, ROW_GROUP // 2 + 3)], ids=["mixed", "found", "two groups"])
def test_a_frame_without_a_face_has_empty_cells_and_whole_numbers_stay_whole(count, times, tmp_path):
    lost = [k for k in range(count * times) if k % 2]
    table, head = pd.concat([made(count)] * times, ignore_index=True), ["frame", "face_id", "timestamp", "confidence", "success", "file"]
    empty = table.drop(columns=head).isna()
    assert (empty.all(axis=1) == empty.any(axis=1)).all() and np.flatnonzero(empty.any(axis=1)).tolist() == lost
    assert not table[head].isna().any(axis=None)
    for ending, read in {"csv": pd.read_csv, "parquet": pd.read_parquet}.items():
        back = read(save_table([table[:1], table[1:]], tmp_path / f"au.{ending}"))
        assert back.isna().equals(table.isna()), ending
    lines = (tmp_path / "au.csv").read_text().strip().split("\n")
    assert {"0", "1", ""} >= {line.split(",")[lines[0].split(",").index("AU12_c")] for line in lines[1:]}
    from pyarrow.parquet import read_schema
    assert str(read_schema(tmp_path / "au.parquet").field("AU12_c").type) == "int64"


def test_names_of_files_are_harmless_in_a_spreadsheet_and_whole_elsewhere(tmp_path):
    face = made(1)
    table = pd.concat([face.assign(file=name) for name in ("=1+1.png", "a\x1b[2J.png", "me.png")], ignore_index=True)
    back = {ending: read(save_table(table, tmp_path / f"au.{ending}")) for ending, read in (
        ("csv", pd.read_csv), ("parquet", pd.read_parquet), ("json", pd.read_json))}
    assert back["csv"].file.tolist() == ["'=1+1.png", r"a\x1b[2J.png", "me.png"]
    assert back["parquet"].file.tolist() == back["json"].file.tolist() == table.file.tolist()
    odd = openface_table([(StreamItem(1, 0., "caf\udce9.png", None), None)], np.zeros((1, 7)))
    assert pd.read_parquet(save_table(odd, tmp_path / "odd.parquet")).file.tolist() == [r"caf\udce9.png"]


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_pieces_make_the_same_file_as_the_whole(ending, tmp_path):
    pieces = [made(3, start) for start in (1, 4, 7)]
    whole = pd.concat(pieces, ignore_index=True)
    one, many = save_table(whole, tmp_path / f"one.{ending}"), save_table(iter(pieces), tmp_path / f"many.{ending}")
    read = {"csv": pd.read_csv, "json": lambda path: pd.DataFrame(json.loads(path.read_text())),
            "jsonl": lambda path: pd.DataFrame([json.loads(line) for line in path.read_text().strip().split("\n")]),
            "parquet": pd.read_parquet}[ending]
    assert read(one).equals(read(many)) and len(read(one)) == 9 and list(read(one).columns) == list(whole.columns)
    assert (read(one).file == "ä \u2028 film.mp4").all()
    assert np.allclose(read(one).select_dtypes("number"), whole.select_dtypes("number"), atol=0 if ending == "parquet" else .0051, equal_nan=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([one.name, many.name])


def test_parquet_keeps_rows_together(tmp_path):
    from pyarrow.parquet import ParquetFile

    piece = made(500)
    with TableFile(tmp_path / "a.parquet") as file:
        for _ in range(20):
            file.write(piece)
            assert sum(map(len, file.sink.waiting)) < ROW_GROUP
    stored = ParquetFile(tmp_path / "a.parquet").metadata
    assert stored.num_rows == 10_000 and stored.num_row_groups == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_what_is_left_of_a_table_that_broke_off(error, ending, tmp_path):
    path = save_table(made(9), tmp_path / f"au.{ending}")
    before = path.read_bytes()
    with pytest.raises(error), TableFile(path, keep_part=True) as file:
        file.write(made(3))
        raise error("no more")
    assert path.read_bytes() == before
    reader = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}[ending]
    assert len(reader(tmp_path / f"au.part.{ending}")) == 3
    with pytest.raises(error), TableFile(tmp_path / f"new.{ending}") as file:
        raise error("at once")
    assert not list(tmp_path.glob("new*"))


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_on_a_full_disk_every_row_that_stays_is_whole(ending, tmp_path):
    "Half a row of a CSV was a row with another number, half a list no JSON, and Parquet without its end is nothing."
    resource = pytest.importorskip("resource")
    path, piece = save_table(made(9), tmp_path / f"au.{ending}"), made(2100 if ending == "parquet" else 7)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(WriteError, match=f"au.{ending}: could not be written"), TableFile(path, keep_part=True) as file:
            while True:
                file.write(piece)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    part, rows = tmp_path / f"au.part.{ending}", file.sink.rows
    assert path.read_bytes() == before and part.exists() == (ending != "parquet")
    if ending != "parquet":
        assert rows and part.read_bytes() == save_table([piece] * (rows // 7), tmp_path / f"same.{ending}").read_bytes()


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_rows_of_a_run_that_broke_off_are_never_removed(ending, tmp_path):
    part = save_table(made(3), tmp_path / f"au.part.{ending}")
    kept = part.read_bytes()
    with pytest.raises(ValueError), TableFile(tmp_path / f"au.{ending}", keep_part=True):
        raise ValueError("a mistyped name")
    assert [path.name for path in tmp_path.iterdir()] == [part.name] and part.read_bytes() == kept
    for number in (1, 2):
        with pytest.warns(UserWarning, match=f"kept as au.part.{number}.{ending}"):
            save_table(made(1), tmp_path / f"au.{ending}")
        assert (tmp_path / f"au.part.{number}.{ending}").read_bytes() == kept and not part.exists()
        part.write_bytes(kept)


@pytest.mark.parametrize("name", ["au", "au.xlsx", "au.csv.gz", "-.txt"])
def test_another_ending_is_refused_and_nothing_is_written(name, tmp_path):
    with pytest.raises(ValueError, match="ends in .csv, .parquet, .json, .jsonl"):
        TableFile(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def predictions():
    "Nine frames as `predict` returns them, every second one with a face; AU17 rises."
    table = Predictions(made(9).drop(columns="file"))
    table.model, table.source = "small", "film.mp4"
    return table


def test_predictions_stay_what_they_are_and_are_a_dataframe_in_all_else(predictions):
    plain = pd.DataFrame(predictions)
    for change in (lambda t: t[t.frame > 4], lambda t: t.iloc[2:5], lambda t: t.copy(), lambda t: t.reset_index(drop=True),
                   lambda t: t[["frame", "AU12_r"]], lambda t: t.sort_values("AU12_r"), lambda t: t.assign(a=1)):
        changed = change(predictions)
        assert (type(changed), changed.model, changed.source) == (Predictions, "small", "film.mp4")
        assert pd.DataFrame(changed).equals(change(plain))
    assert type(plain) is pd.DataFrame and type(predictions.AU12_r) is pd.Series
    assert predictions.groupby("face_id").AU12_r.mean().equals(plain.groupby("face_id").AU12_r.mean())


def test_summary_and_plot_are_of_frames_with_a_face(predictions):
    summary, there = predictions.summary(), predictions[predictions.success == 1]
    assert summary.loc["AU12", "mean"] == pytest.approx(there.AU12_r.mean()) and summary.loc["AU12", "name"] == "Lip corner puller"
    assert (summary.loc["AU17", "peak"], summary.loc["AU17", "when"]) == (there.AU17_r.max(), 8 / 25)
    assert summary.share["AU17"] == (there.AU17_r >= 1).mean() and type(summary) is pd.DataFrame
    line = predictions.plot().axes[0].lines[0]
    assert np.isnan(line.get_ydata()).tolist() == [bool(k % 2) for k in range(9)]
    assert predictions.plot(x="timestamp", y="AU12_r").lines and predictions.plot.line(y="AU12_r").lines
    album = Predictions(made(3).assign(timestamp=0., file=["a.png", "b.png", "c.png"]))
    assert album.summary().when["AU17"] == "c.png" and len(album.plot().axes) == 7 and len(album[:1].plot().axes) == 1


def test_predictions_open_in_pandas_and_in_py_feat(predictions, tmp_path):
    predictions.to_openface(tmp_path / "au.csv")
    assert pd.read_csv(tmp_path / "au.csv").AU12_r.isna().sum() == 4
    pd.testing.assert_frame_equal(pd.read_parquet(predictions.to_parquet(tmp_path / "au.parquet")), pd.DataFrame(predictions))
    assert pd.read_parquet(__import__("io").BytesIO(predictions.to_parquet())).shape == predictions.shape
    io = pytest.importorskip("feat.utils.io")
    table = io.read_openface(str(tmp_path / "au.csv"))
    assert table.AU12_r.tolist() == pytest.approx(predictions.AU12_r.round(2).tolist(), nan_ok=True)
    assert {"AU12_r", "AU12_c"} <= set(table.aus.columns)

"""Tables: OpenFace's angles against closed forms, its columns, and files that grow piece by piece."""
import json

import numpy as np
import pandas as pd
import pytest

from aufacs_nb.estimation.sources import StreamItem
from aufacs_nb.estimation.tables import (EYE_CENTRE, EYE_RADIUS, EYES, FLIP, GEOMETRY, ROW_GROUP, TableFile, gaze_angles,
                                         openface_pose, openface_table, save_table)
from aufacs_nb.geometry.meshes import canonical_face
from aufacs_nb.geometry.rotation import rotation
from aufacs_nb.registration.detection import Face


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
    assert not table.isna().any(axis=None) and table.success.tolist() == [1, 0, 1, 0] and table.face_id[0] == 3
    assert (table.loc[1, list(GEOMETRY)] == 0).all() and (table.loc[0, ["face_w", "face_h"]] > 50).all()


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
    assert np.allclose(read(one).select_dtypes("number"), whole.select_dtypes("number"), atol=0 if ending == "parquet" else .0051)
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


@pytest.mark.parametrize("error, kept", [(KeyboardInterrupt, 3), (OSError, 3), (ValueError, None)])
@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_what_is_left_of_a_table_that_broke_off(error, kept, ending, tmp_path):
    path = save_table(made(9), tmp_path / f"au.{ending}")
    before = path.read_bytes()
    with pytest.raises(error), TableFile(path, keep_part=True) as file:
        file.write(made(3))
        raise error("no more")
    assert path.read_bytes() == before
    part = tmp_path / f"au.part.{ending}"
    assert part.is_file() == (kept is not None)
    if kept:
        reader = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}[ending]
        assert len(reader(part)) == kept
    with pytest.raises(error), TableFile(tmp_path / f"new.{ending}") as file:
        raise error("at once")
    assert not list(tmp_path.glob("new*"))


@pytest.mark.parametrize("name", ["au", "au.xlsx", "au.csv.gz", "-.txt"])
def test_another_ending_is_refused_and_nothing_is_written(name, tmp_path):
    with pytest.raises(ValueError, match="ends in .csv, .parquet, .json, .jsonl"):
        TableFile(tmp_path / name)
    assert not list(tmp_path.iterdir())

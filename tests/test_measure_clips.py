"""The judges of films of real people: measures, what judges know, means over people. On tiny arrays, without a film."""
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from test_style import ROOT

sys.path.insert(0, str(ROOT))  # tools/ is no package of the project
from tools import judges  # noqa: E402
from tools import measure_clips as clips  # noqa: E402


@pytest.fixture
def faces():
    """Three random faces (3, 68, 2), the outer eye corners level and 100 pixels apart."""
    points = np.random.default_rng(0).uniform(0, 200, (3, 68, 2))
    points[:, 36], points[:, 45] = (50, 80), (150, 80)
    return points


def test_a_measure_says_distances_and_heights_in_widths_of_the_eyes(faces):
    faces[:, 48], faces[:, 54], faces[:, 57] = (60, 150), (140, 140), (100, 160)
    np.testing.assert_allclose(judges.measured(faces, "+48-54"), np.hypot(80, 10) / 100)
    np.testing.assert_allclose(judges.measured(faces, "-48^57 +54^57"), (-10 + 20) / 100)  # up the face is positive


def test_a_measure_does_not_see_where_the_face_is_how_large_or_how_tilted(faces):
    turn = np.array([[np.cos(.4), -np.sin(.4)], [np.sin(.4), np.cos(.4)]])
    for measure in {text for texts in judges.MEASURES.values() for text in texts}:
        moved = judges.measured(3 * faces @ turn + [40, -7], measure)
        np.testing.assert_allclose(moved, judges.measured(faces, measure), atol=1e-9)


@pytest.mark.parametrize("text", ["48-54", "+48", "+48-54,-3-4", "+48-54  -3-4", ""])
def test_a_text_that_is_no_measure_is_refused(text):
    with pytest.raises(ValueError, match=r"write terms such as '\+48-54 -48\^57'"):
        judges.terms(text)


def test_every_measure_is_of_points_that_exist_and_no_candidate_is_written_twice():
    for texts in judges.MEASURES.values():
        assert len(set(texts)) == len(texts)
        assert all(0 <= point < 68 for text in texts for _, a, _, b in judges.terms(text) for point in (a, b))


def test_what_a_judge_knows_is_found_within_people():
    people, truth = np.repeat([0, 1], 12), np.tile([0, 1, 2, 3, 4, 5.], 4)
    offset = np.where(people == 0, 50., 0)   # a level of the person is no mistake
    assert judges.within(truth + offset, truth, people) == pytest.approx(1)
    assert judges.within(np.where(people == 0, truth, -truth), truth, people) == pytest.approx(0)
    blind = np.where(np.arange(24) % 12 < 10, truth, np.nan)   # frames without a face are left out
    assert judges.within(blind, truth, people) == pytest.approx(1)


def test_one_half_of_the_people_chooses_and_the_other_says_how_good_it_is():
    people, truth = np.repeat([0, 1], 12), np.tile([0, 1, 2, 3, 4, 5.], 4)
    values = np.where(people % 2 == 1, -truth, truth)
    table = judges.validity_table({("dlib", 12): {"+1-2": values, "+3-4": truth}}, truth[:, None], people, (12,))
    assert table.measure.tolist() == ["+1-2", "+3-4"] and table.used.tolist() == [True, False]
    np.testing.assert_allclose(table.choosing, [1, 1])
    np.testing.assert_allclose(table.validity, [-1, 1])


def test_r_of_a_judge_that_does_not_know_the_unit_stands_apart():
    values, calm = np.arange(20.), np.arange(20) < 2
    known = {("dlib", 12): .5, ("dlib", 9): .1}
    sure, unsure = (clips.row_of("dlib", au, values, 2 * values, calm, known) for au in (12, 9))
    assert sure["r"] == pytest.approx(1) and np.isnan(sure["r unsure"])
    assert np.isnan(unsure["r"]) and unsure["r unsure"] == pytest.approx(1)
    assert sure["calm"] == 1 and sure["range"] == 19 and sure["validity"] == .5


def test_means_are_over_people_and_leave_out_judges_that_do_not_know():
    rows = [("a", 1, 12, "dlib", .2), ("a", 1, 1, "dlib", .2), ("a", 2, 12, "dlib", .4), ("b", 3, 12, "dlib", .9),
            ("b", 3, 1, "action", np.nan)]
    table = pd.DataFrame(rows, columns=["person", "film", "AU", "judge", "r"]).assign(reader="small")
    found = clips.over_people(table, ["reader"])
    assert found.loc["small", "r"] == pytest.approx((.3 + .9) / 2) and found.loc["small", "people"] == 2
    assert clips.summary(table).loc["small", "both judges"] == pytest.approx(.6)


def row(number, width=60, yaw=0.):
    """What `looked_at` finds of a person."""
    return {"person": number, "points": np.array([[0., 0, 0], [width, 0, 0]]), "yaw": yaw}


def test_the_person_who_is_there_most_is_judged():
    assert clips.main_person([row(2), row(1), row(2)])["person"].tolist() == [2, 2]
    assert clips.main_person([]) == {}


@pytest.mark.parametrize("width, yaw, counts", [(60, 10, True), (40, 10, False), (60, -35, False)])
def test_a_face_that_is_small_or_turned_does_not_count(monkeypatch, width, yaw, counts):
    face = SimpleNamespace(landmarks=row(0, width)["points"], face_id=0)
    monkeypatch.setattr(clips, "register_face", lambda *_: SimpleNamespace(yaw=yaw, image=np.zeros((2, 2, 3))))
    monkeypatch.setattr(clips, "registered_by", lambda *_: [0])
    monkeypatch.setattr(clips, "meshes_of", lambda _: [0])
    assert bool(clips.looked_at(SimpleNamespace(image=None), face, None)) == counts


@pytest.mark.parametrize("length, most, step, expected", [
    (6, 6, None, [0, 1, 2, 3, 4, 5]), (9, 4, None, [0, 2, 4, 6]), (9, None, 3, [0, 3, 6]),
    (5, None, None, [0, 1, 2, 3, 4])])
def test_a_long_film_is_seen_every_second_frame_up_to_a_limit(monkeypatch, length, most, step, expected):
    monkeypatch.setattr(clips, "frame_stream", lambda source: iter(range(length)))
    monkeypatch.setattr(clips, "choose_faces", lambda items, *_: [True] * len(items))
    monkeypatch.setattr(clips, "looked_at", lambda item, *_: {"person": 0, "frame": item})
    assert clips.seen_by_both("film", None, None, step, most)["frame"].tolist() == expected


def test_what_mesh_and_pixels_say_apart_is_what_the_reader_joins():
    from aufacs_nb.estimation.mesh import MeshRegression
    from aufacs_nb.estimation.pixels import FaceReader, PixelNetwork
    rng = np.random.default_rng(0)
    way = MeshRegression(*map(np.float32, (rng.normal(size=(1404, 2)), (-30, -30), (.05, .05))))  # 0–5 is not left
    reader = FaceReader(way, way, aus=(6, 12), network=PixelNetwork(2).eval(), weight=.3)
    film = {"meshes": rng.uniform(50, 170, (4, 468, 3)), "pictures": rng.integers(1, 255, (4, 128, 128, 3), np.uint8)}
    zero = clips.zero_of_frame(reader, film, 0)
    by_mesh, seen = clips.said_apart(reader, film, zero)
    np.testing.assert_allclose([by_mesh[0], seen[0]], 0, atol=1e-4)  # the first frame is the zero
    asked = clips.ask(reader, film, zero)
    joined = .7 * by_mesh + .3 * seen
    for k in range(2):
        assert np.corrcoef(asked[:, k], joined[:, k])[0, 1] > .999


def test_the_table_of_weights_finds_the_weight_that_judges_like(monkeypatch):
    judge = np.arange(20.)
    reader = SimpleNamespace(aus=(12,), weight=.2, card={"icc_by_weight": {str(w): w for w in clips.WEIGHTS}})
    film = {"points": np.zeros((20, 478, 3))}
    monkeypatch.setattr(clips, "actions", lambda *_: np.zeros((20, 52)))
    monkeypatch.setattr(clips, "zero_of_frame", lambda *_: None)
    monkeypatch.setattr(clips, "judged", lambda *_: {"action": {12: judge}, "dlib": {12: judge}})
    monkeypatch.setattr(clips, "said_apart", lambda *_: (-judge[:, None], judge[:, None]))
    rows = clips.judge_weights(film, reader, None, {("dlib", 12): .1})
    assert {row["judge"] for row in rows} == {"action"} and [row["weight"] for row in rows] == list(clips.WEIGHTS)
    assert rows[0]["r"] == pytest.approx(-1) and rows[-1]["r"] == pytest.approx(1)
    table = clips.by_weight([row | {"film": "film 1", "person": "A"} for row in rows], reader)
    assert table[table.shipped].weight.tolist() == [.2] and table.icc.tolist() == list(clips.WEIGHTS)


def test_what_was_seen_of_a_film_is_kept_but_for_the_pictures_of_classifiers(tmp_path):
    seen = {"points": np.arange(6.).reshape(2, 3), "faces": np.zeros((2, 4, 4, 3), np.uint8)}
    first = clips.kept_film(tmp_path / "new" / "a.npz", lambda: seen)
    again = clips.kept_film(tmp_path / "new" / "a.npz", lambda: pytest.fail("looked twice"))
    assert first is seen and set(again) == {"points"}
    np.testing.assert_array_equal(again["points"], seen["points"])
    assert clips.kept_film(None, lambda: seen) is seen


def test_rows_of_other_readers_stay_in_a_table_on_request(tmp_path):
    path = tmp_path / "table.csv"
    old = pd.DataFrame({"reader": ["small", "face18", "face18 clip"], "r": [.1, .2, .3]})
    new = pd.DataFrame({"reader": ["face18", "face18 photo"], "r": [.4, .5]})
    clips.write_table(old, path, add=True)
    both = clips.write_table(new, path, add=True)
    assert dict(zip(both.reader, both.r)) == {"small": .1, "face18": .4, "face18 photo": .5}
    assert clips.write_table(new, path, add=False).reader.tolist() == ["face18", "face18 photo"]

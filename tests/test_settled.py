"""Faces that lie on their side, weights that overflow, people without a zero, a live face that goes: no nonsense, no silence."""
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from aufacs_nb.databases import write_video
from aufacs_nb.estimation.estimator import NO_ZERO, AUEstimator
from aufacs_nb.estimation.tables import _levels
from aufacs_nb.pictures import to_jpeg
from aufacs_nb.presets import WeightsError
from aufacs_nb.registration import detection
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person


@pytest.fixture(scope="module")
def by_mesh():
    return AUEstimator.from_pretrained("mesh18")


def test_a_quarter_turn_reads_as_the_upright_photograph(by_mesh):
    upright, lying = by_mesh.predict(astronaut()), by_mesh.predict(np.rot90(astronaut(), 3).copy())
    change = (lying - upright).iloc[0]
    assert change.filter(regex="_r$").abs().max() < 1
    assert abs(change.pose_Rz - np.pi / 2) < .02, change.pose_Rz


@pytest.mark.parametrize("larger, higher", [(1.5, -.3), (1.9, 0)])
def test_an_upright_face_in_a_square_that_does_not_fit_comes_to_rest(larger, higher):
    "The second fit left the irises at the temples, and gaze_angle_x at 71 degrees."
    landmarker = detection.FaceLandmarker.from_pretrained()
    face = landmarker.find_one(astronaut())
    own = detection.square_from_landmarks(face.landmarks)
    square = detection.Square(own.x, own.y + higher * own.side, larger * own.side, own.angle)
    fitted, = detection.fit_faces(landmarker.mesh, [astronaut()], [square])
    assert np.abs(fitted.landmarks - face.landmarks).max() < .03 * own.side


def test_a_face_that_never_rests_is_none(monkeypatch):
    square = detection.Square(100, 100, 100, -1.)
    level = np.c_[np.random.default_rng(0).uniform(0, 1, (478, 2)), np.zeros(478)]
    level[[33, 263], :2] = [.2, .5], [.8, .5]
    asked = []

    def turning(mesh, images, squares, batch=8):
        "Turns by a tenth more than it was cut, always."
        asked.append(len(squares))
        turned = [detection.Square(one.x, one.y, one.side, one.angle - .2) for one in squares]
        return np.stack([np.c_[one.to_picture(level[:, :2]), level[:, 2]] for one in turned]), np.ones(len(squares))

    monkeypatch.setattr(detection, "fit_meshes", turning)
    assert detection.fit_faces(None, [np.zeros((200, 200, 3), np.uint8)], [square]) == [None]
    assert asked == [1] * (2 + detection.AGAIN)


def test_an_upright_face_stays_the_same_to_the_bit(monkeypatch):
    landmarker = detection.FaceLandmarker.from_pretrained()
    face = landmarker.find_one(astronaut())
    monkeypatch.setattr(detection, "_settle", lambda *words: None)
    assert np.array_equal(landmarker.find_one(astronaut()).landmarks, face.landmarks)


def test_weights_that_overflow_are_named():
    estimator = AUEstimator.from_pretrained("small", "cpu")
    with torch.no_grad():
        estimator.classifiers.models[12].classifier[-1].weight.fill_(3e38)
    with pytest.raises(WeightsError, match="small: the weights are finite, but"):
        estimator.predict(astronaut())


def test_a_reader_of_faces_that_overflows_is_named(by_mesh):
    estimator = AUEstimator.from_pretrained("face18")
    with torch.no_grad():
        for weights in estimator.classifiers.network.parameters():
            weights.fill_(3e38)
    with warnings.catch_warnings(action="ignore"), pytest.raises(WeightsError, match="face18: the weights are finite"):
        estimator.predict(astronaut())


def test_nothing_is_absent_where_no_intensity_is_known():
    read, present = _levels(np.array([[np.nan, 2.], [.5, 1.]]), np.array([False, False]), (1, 12))
    assert read.AU01_r.isna().tolist() == present.AU01_c.isna().tolist() == [True, False]
    assert present.AU12_c.tolist() == [1, 1] and present.AU01_c[1] == 0


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder, person = tmp_path_factory.mktemp("films"), sample_person(21)
    frames = np.stack([render_person(person, {12: k / 3}, size=160) for k in range(12)])
    for name, count in (("long.mp4", 12), ("short.mp4", 3)):
        write_video(folder / name, frames[:count], 10)
    return folder


def test_a_film_without_a_zero_beside_others_is_named(by_mesh, films):
    with pytest.warns(UserWarning) as told:
        by_mesh.neutral("clip").predict(films)
    told = [str(one.message) for one in told]
    assert [("short.mp4 (3 frames)" in text, "long.mp4" in text) for text in told] == [(True, False)], told
    assert NO_ZERO not in told[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_mesh.neutral("clip").predict(films / "long.mp4")


def test_calm_frames_as_zero_are_stored(by_mesh, films, tmp_path):
    for name in ("mesh18", "small"):
        clip = AUEstimator.from_pretrained(name).neutral("clip")
        again = AUEstimator.from_pretrained(clip.save(tmp_path / name))
        assert again.clip and not AUEstimator.from_pretrained(again.neutral().save(tmp_path / f"{name}_none")).clip
    assert not AUEstimator.from_pretrained(by_mesh.save(tmp_path / "plain")).clip


def test_a_zero_that_personalising_would_make_wrong_is_refused_and_calm_frames_stay(monkeypatch):
    from aufacs_nb.estimation import personalization
    small = AUEstimator.from_pretrained("small", "cpu")
    with pytest.raises(ValueError, match="first personalize one without a zero"):
        small.neutral(astronaut()).personalize(astronaut())
    monkeypatch.setattr(personalization, "personalize", lambda classifiers, *words, **options: classifiers)
    assert small.neutral("clip").personalize(astronaut()).clip and not small.personalize(astronaut()).clip


def test_a_zero_goes_with_the_face_that_had_it(by_mesh):
    from aufacs_nb.apps import live
    person, nobody = render_person(sample_person(21), {}, size=240), np.full((240, 240, 3), 90, np.uint8)
    said, reader = [], live.LiveReader(estimator=by_mesh)
    parts = SimpleNamespace(reader=reader, camera=SimpleNamespace(
        send=lambda content, buffers=None: said.append(content.get("text"))))

    def sees(image, seconds):
        "One frame; the neutral, what is collected, and what was said."
        said.clear()
        live._see(parts, (1, seconds, to_jpeg(image)))
        return reader.zero is not None, reader.calm is not None, next(filter(None, said), "")

    reader.calm = []
    assert sees(nobody, 0.) == (False, True, ""), "whoever has not come yet is waited for"
    for k in range(live.CALM):
        known = sees(person, 5 + k / 10)
    assert known[:2] == (True, False) and "your neutral now" in known[2]
    assert sees(nobody, 6.6) == (True, False, ""), "half a second is a blink"
    assert sees(person, 6.7)[0]
    known, collecting, text = sees(nobody, 7.8)
    assert not known and not collecting and "the neutral is forgotten" in text
    assert sees(person, 8.) == (False, False, "")

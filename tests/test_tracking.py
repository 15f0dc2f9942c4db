"""Who is who in films: slow ones, ones that are cut, people who come in; virtual people give the truth."""
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from aufacs_nb.registration.detection import Face, FaceLandmarker
from aufacs_nb.registration import collections, tracking
from aufacs_nb.registration.tracking import FaceLinker, ahead, in_stretches, is_cut, track_stretch
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person
from aufacs_nb.simulation.things import mug


@pytest.fixture(scope="module")
def landmarker():
    torch.set_num_threads(1)
    return FaceLandmarker.from_pretrained()


@pytest.fixture(scope="module")
def cast():
    "Ten pictures of each of two people, who move and smile."
    return {number: [render_person(sample_person(number), {12: k % 4, 26: k % 3}, yaw=4 * k - 18, size=160) for k in range(10)]
            for number in (5, 8)}


def numbers(landmarker, film, seconds, stretch=5):
    "The sorted face_ids of each picture of a film, and where the linker saw cuts."
    linker, found, cuts = FaceLinker(), [], []
    for start in range(0, len(film), stretch):
        times = [seconds * (start + k) for k in range(len(film[start:start + stretch]))]
        linked = linker.link(track_stretch(landmarker, film[start:start + stretch], times), times)
        found += [sorted(face.face_id for face in faces) for faces in linked]
        cuts += linker.cuts
        linker = FaceLinker(state=linker.state)
    return found, [k for k, cut in enumerate(cuts) if cut]


@pytest.mark.parametrize("seconds", [.04, 1., 60.])
def test_one_person_keeps_one_number_however_slow_the_film_is(landmarker, cast, seconds):
    assert numbers(landmarker, cast[5], seconds) == ([[0]] * 10, [])


def test_two_people_of_a_slow_film_keep_theirs(landmarker, cast):
    film = [np.concatenate(pair, 1) for pair in zip(cast[5], cast[8])]
    assert numbers(landmarker, film, 1.)[0] == [[0, 1]] * 10


@pytest.mark.parametrize("seconds", [.2, .5, 1.])
@pytest.mark.parametrize("stretch", [4, 8])
def test_people_of_a_slow_film_who_change_places_do_not_change_numbers(landmarker, cast, seconds, stretch, monkeypatch):
    "Following by place alone hands each the other's number, within a stretch and between two."
    monkeypatch.setattr(tracking, "is_cut", lambda before, after: False)  # in a room that fills most of the picture
    film = [np.concatenate([cast[5][k], cast[8][k]] if k < 4 else [cast[8][k], cast[5][k]], 1) for k in range(8)]
    linker, found = FaceLinker(), []
    for start in range(0, 8, stretch):
        times = [seconds * k for k in range(start, start + stretch)]
        linked = linker.link(track_stretch(landmarker, film[start:start + stretch], times), times)
        found += [{face.face_id: face.box[::2].mean() < 160 for face in faces} for faces in linked]
    assert all(len(faces) == 2 for faces in found)
    owners = [{number: left == (k < 4) for number, left in faces.items()} for k, faces in enumerate(found)]
    assert all(owners[0].get(number, person) == person for each in owners for number, person in each.items())


def test_faces_are_named_as_they_fit_best_together_not_one_after_the_other():
    "Two looks, each nearer to the other's place."
    def face(x, look):
        points = np.zeros((478, 3), np.float32)
        points[:, :2] = np.random.default_rng(0).random((478, 2)) * 50 + [x, 0]
        box = np.r_[points[:, :2].min(0), points[:, :2].max(0)]
        return Face(box, points, 1., look=look)
    one, other = (np.r_[np.full(48, value), np.random.default_rng(k).normal(size=400)] for k, value in ((1, .4), (2, .45)))
    linker = FaceLinker()
    before = linker.link([[face(0, one), replace(face(40, other), face_id=1)]], [0.])[0]
    after = linker.link([[face(42, one), replace(face(2, other), face_id=1)]], [.5])[0]
    assert [each.face_id for each in before] == [each.face_id for each in after] == [0, 1]


@pytest.mark.parametrize("first", [5, 3])
def test_a_cut_hands_on_no_number(landmarker, cast, first):
    "Between stretches, and within one: two people in the same place."
    assert numbers(landmarker, cast[5][:first] + cast[8][:4], .04) == ([[0]] * first + [[1]] * 4, [first])


@pytest.mark.parametrize("first", [5, 3])
def test_two_people_at_one_place_share_no_number_although_the_picture_hardly_changes(landmarker, cast, first, monkeypatch):
    "A cut in one room, in the middle of a stretch and between two."
    monkeypatch.setattr(tracking, "is_cut", lambda before, after: False)
    found, cuts = numbers(landmarker, cast[5][:first] + cast[8][:4], .04)
    assert (found, cuts) == ([[0]] * first + [[1]] * 4, [first])


def test_one_person_who_is_hidden_blurred_or_turns_keeps_the_number(landmarker, cast):
    face = np.array(cast[5])
    face[3:5, 100:, :80] = 40  # a hand before a cheek
    face[6] = np.asarray(Image.fromarray(face[6]).resize((40, 40)).resize((160, 160)))
    face[8:] = (face[8:] * .5).astype(np.uint8)
    assert numbers(landmarker, list(face), .04, 10) == ([[0]] * 10, [])


@pytest.mark.parametrize("who", [2, 5, 8])
def test_who_drinks_in_a_slow_film_keeps_the_number(landmarker, who):
    "A mug covers half of the face from one frame to the next, and is put down again."
    person = sample_person(who)
    film = [render_person(person, {12: k % 3}, yaw=3 * k - 12, size=160, things=mug(person, who) if 2 < k < 6 else ())
            for k in range(9)]
    found, _ = numbers(landmarker, film, .2, 9)
    assert {number for frame in found for number in frame} == {0} and sum(map(bool, found)) >= 8


def test_another_of_quite_other_colours_is_told_within_a_shot_of_a_slow_film(landmarker, cast, monkeypatch):
    monkeypatch.setattr(tracking, "is_cut", lambda before, after: False)
    assert numbers(landmarker, cast[5][3:6] + cast[8][3:6], .2, 6)[0] == [[0]] * 3 + [[1]] * 3


def test_after_a_cut_of_a_slow_film_a_smaller_change_makes_another():
    "Colours that differ by 0.13 and a fine structure that is half alike: a cup within a shot, another person after a cut."
    one, other = np.random.default_rng(0).normal(size=(2, 400))
    look = np.r_[np.full(48, .5), one].astype(np.float32)
    changed = np.r_[np.repeat([.6, .5, .42], 16), .7 * one + .7 * other].astype(np.float32)
    assert .5 < tracking.likeness(look, changed) < .85 and .1 < tracking.looks_apart(look, changed)[0] < .25
    marks = np.zeros((478, 3), np.float32)
    before = Face(np.array([0, 0, 50, 50], np.float32), marks, 1., 0, look)
    after = replace(before, face_id=1, look=changed)
    for cut, number in ((False, 0), (True, 1)):
        frames = FaceLinker().link([[before], [replace(after, after_cut=cut)]], [0., .2])
        assert [faces[0].face_id for faces in frames] == [0, number]


def test_a_slow_film_knows_what_comes_after_a_cut(landmarker, cast):
    found = track_stretch(landmarker, cast[5][3:6] + cast[8][3:6], [.2 * k for k in range(6)])
    assert [[face.after_cut for face in faces] for faces in found] == [[k == 3] for k in range(6)]


@pytest.mark.parametrize("seconds", [.2, 1.])
def test_a_lamp_that_flickers_in_a_slow_film_makes_nobody_another(landmarker, cast, seconds):
    "Faces that turn by twelve degrees from frame to frame, in half, full and a third more light."
    film = [np.clip(image * (.5, 1, 1.3)[k % 3], 0, 255).astype(np.uint8) for k, image in enumerate(cast[8][::3] + cast[8][1::3])]
    assert numbers(landmarker, film, seconds, 10)[0] == [[0]] * len(film)


def test_looks_that_an_older_version_kept_are_compared_by_their_colours():
    old, new = np.zeros(48), np.r_[np.zeros(48), np.arange(400.)]
    assert tracking.likeness(old, new) == tracking.likeness(old, old) == 1
    assert tracking.likeness(new, new) == pytest.approx(1) and tracking.looks_apart(old, new) == (0, 0)


def test_a_lamp_is_no_cut(landmarker, cast):
    dark = [(image * (.35 if k > 4 else 1)).astype(np.uint8) for k, image in enumerate(cast[5])]
    assert not any(is_cut(*pair) for pair in zip(dark, dark[1:])) and is_cut(cast[5][0], cast[8][0])
    assert numbers(landmarker, dark, .04, 10)[0] == [[0]] * 10


def test_who_comes_in_is_found_within_eight_frames_and_small_within_sixteen(landmarker, cast):
    room = np.full((480, 640, 3), 110, np.uint8)
    room[100:260, 60:220] = cast[5][4]
    later, small = room.copy(), room.copy()
    head = np.asarray(Image.fromarray(cast[8][4]).resize((125, 125)))
    later[100:260, 400:560], small[100:225, 450:575] = cast[8][4], head
    small[225:, 430:600] = 200, 40, 40  # a body
    found = track_stretch(landmarker, [room] * 4 + [later] * 6)
    assert [len(faces) for faces in found] == [1] * 8 + [2] * 2
    assert [len(faces) for faces in track_stretch(landmarker, [room] * 10 + [small] * 8)] == [1] * 16 + [2] * 2
    slow = track_stretch(landmarker, [room] * 2 + [later] * 4, [0., 1., 2., 3., 4., 5.])
    assert [len(faces) for faces in slow] == [1] * 4 + [2] * 2


def test_large_pictures_are_held_by_bytes():
    made, image = [], np.zeros((1000, 1000, 3), np.uint8)

    def film():
        for k in range(12):
            made.append(threading.current_thread())
            yield float(k), image

    first = ahead(film(), 32, room=9_000_000)
    next(first)
    for _ in range(50):
        threading.Event().wait(.01)
    assert len(made) <= 5
    assert [len(some) for some in in_stretches(first, room=9_000_000)] == [3, 3, 3, 2]
    assert [len(some) for some in in_stretches(((0., image) for _ in range(7)), 4)] == [4, 3]


def test_stretches_stay_within_their_bytes_and_let_go_what_they_gave():
    "Frames of 8K take 100 MB each: one that a generator still names while the next is decoded counts as often."
    made = []

    def frames():
        for number in range(6):
            image = np.zeros((4, 4, 3), np.uint8)
            made.append(weakref.ref(image))
            yield number, image
            del image

    for count, stretch in enumerate(in_stretches(ahead(frames(), 1), 32, room=100), 1):
        assert len(stretch) == 2 and not any(image() is not None for image in made[:2 * count - 2])
        del stretch
    assert count == 3


def test_stretches_that_are_registered_stay_within_their_bytes(monkeypatch):
    "Films and pictures: one frame too many was read before."
    monkeypatch.setattr(collections, "STRETCH_BYTES", 100)
    made = []

    def frames():
        for row in range(5):
            image = np.zeros((4, 4, 3), np.uint8)
            made.append(weakref.ref(image))
            yield collections._Frame(row, image, row / 25)
            del image

    seen = []
    for stretch in collections._cut_up("film.mp4", frames()):
        assert not any(image() is not None for image in made[:len(seen)])
        assert sum(image.nbytes for image in stretch.images) <= 100
        seen += stretch.rows
        del stretch
    assert seen == [0, 1, 2, 3, 4]


def test_what_was_handed_on_is_not_held_while_the_next_is_waited_for():
    made, held = [], []

    def frames():
        for number in range(3):
            until = time.monotonic() + 5  # only where it is held
            while (alive := any(image() is not None for image in made)) and time.monotonic() < until:
                time.sleep(.01)
            held.append(alive)
            image = np.zeros((4, 4, 3), np.uint8)
            made.append(weakref.ref(image))
            pair = [number, image]
            del image
            yield number, pair.pop()

    stream = ahead(frames(), 1)
    while next(stream, None) is not None:
        pass
    assert held == [False] * 3

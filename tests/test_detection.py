"""Detection beyond the notebook: strange sizes, read-only and strided pictures, large photographs, conversion."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data, transform

from PIL import Image

from aufacs_nb.registration.planar import align_face
from aufacs_nb.registration.detection import (FaceLandmarker, NoFaceError, PictureError, _find_in_view,
                                              overlap)
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def landmarker():
    torch.set_num_threads(1)
    return FaceLandmarker.from_pretrained()


@pytest.mark.parametrize("shape", [(1, 1), (2, 700), (700, 3), (97, 61)])
def test_odd_sizes_hold_no_face(landmarker, shape):
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert landmarker.find(noise) == []
    with pytest.raises(NoFaceError, match="odd.png: no face found"):
        landmarker.find_one(noise, "odd.png")


@pytest.mark.parametrize("picture", [np.zeros((8, 8, 2), np.uint8), np.zeros(8, np.uint8), np.zeros((8, 8, 3)),
                                     np.zeros((0, 8, 3), np.uint8), "photo.jpg", None])
def test_wrong_arrays_are_named(landmarker, picture):
    with pytest.raises(PictureError, match="uint8 RGB array"):
        landmarker.find(picture)


def test_strided_and_read_only_pictures(landmarker):
    picture = data.astronaut()
    picture.setflags(write=False)
    plain = landmarker.find_one(picture).landmarks
    wide = np.repeat(np.repeat(picture, 2, 0), 2, 1)[::2, ::2]
    assert np.allclose(landmarker.find_one(wide).landmarks, plain)
    assert align_face(picture, plain, 96).shape == (96, 96, 3)


def test_a_face_in_a_large_photograph(landmarker):
    large = np.full((2400, 3200, 3), 120, np.uint8)
    head = (transform.resize(data.astronaut()[:256, 96:352], (300, 300)) * 255).astype(np.uint8)
    large[1900:2200, 2700:3000] = head
    face = landmarker.find_one(large, "large")
    centre = face.landmarks[:, :2].mean(0)
    assert 2700 < centre[0] < 3000 and 1900 < centre[1] < 2200


SHARES = {11: (.20, .02, .05), 12: (.10, .40, .55), 13: (.07, .40, .05), 14: (.05, .62, .1), 15: (.03, .8, .6)}  # width, left, top


@pytest.fixture(scope="module")
def people(landmarker):
    "Five virtual people as pictures of one size, and the boxes of their faces."
    heads = [render_person(sample_person(seed), {12: 2}, yaw=3 * seed - 39, size=240) for seed in SHARES]
    return heads, [landmarker.find_one(head).box for head in heads]


def group(people, width, height):
    "Five people, whose faces take these shares of the width, on a photograph of coffee; and their boxes."
    picture, boxes = np.asarray(Image.fromarray(data.coffee()).resize((width, height))).copy(), []
    for (share, left, top), head, box in zip(SHARES.values(), *people):
        side = round(240 * share * width / (box[2] - box[0]))
        x, y = round(left * width), round(top * height)
        picture[y:y + side, x:x + side] = Image.fromarray(head).resize((side, side))
        boxes.append(box * side / 240 + [x, y, x, y])
    return picture, boxes


@pytest.mark.parametrize("size", [(1280, 720), (640, 480)])
def test_everybody_in_a_group_is_found_once_the_largest_first(landmarker, people, size):
    picture, boxes = group(people, *size)
    faces = landmarker.find_all([picture])[0]
    assert [int(overlap(box, np.array([face.box for face in faces])).argmax()) for box in boxes] == [0, 1, 2, 3, 4]
    assert len(faces) == 5 and all(overlap(box, face.box[None])[0] > .7 for box, face in zip(boxes, faces))


def test_whoever_asks_gets_the_same_face_to_the_bit(landmarker, people):
    picture, _ = group(people, 640, 480)
    faces = landmarker.find_all([people[0][0], picture, data.coffee()])[1]
    others = (landmarker.find(picture)[0], landmarker.find_one(picture), landmarker.find_batch([picture])[0],
              landmarker.find_all([picture], .05)[0][0])
    assert all((other.landmarks == faces[0].landmarks).all() and other.score == faces[0].score for other in others)
    alone = landmarker.find_all([picture])[0]
    assert all((one.landmarks == other.landmarks).all() for one, other in zip(alone, faces))


def test_the_largest_of_many_small_faces_is_the_one_that_is_returned(landmarker, people):
    "At the limit of the first look it is chance who is seen, here the third; so the looks go on."
    picture, boxes = np.full((720, 1280, 3), 120, np.uint8), []
    for k, (head, box) in enumerate(zip(*people)):
        side = round(240 * (112 + 10 * (k == 1)) / (box[2] - box[0]))
        x, y = 10 + 250 * k, 100 + 70 * k
        picture[y:y + side, x:x + side] = Image.fromarray(head).resize((side, side))
        boxes.append(box * side / 240 + [x, y, x, y])
    for face in (landmarker.find_one(picture), landmarker.find_batch([picture])[0], landmarker.find(picture)[0]):
        assert overlap(boxes[1], face.box[None])[0] > .7


def test_a_portrait_is_done_after_the_first_look(landmarker, people, monkeypatch):
    seen, detector = [], landmarker.detector
    monkeypatch.setattr(landmarker, "detector", type("Counted", (), {
        "parameters": detector.parameters, "__call__": lambda self, images: seen.append(len(images)) or detector(images)})())
    landmarker.find_one(people[0][0])
    assert seen == [1, 1]  # the picture, and the square of the face: is it upright?
    landmarker.find(people[0][0])
    assert sum(seen) > 10


def _off(face, other, image):
    "How far landmarks found upside down are from those of the upright picture (H, W, 3): mean, in widths of the face."
    there = np.array(image.shape[1::-1]) - other.landmarks[:, :2]
    return np.abs(there - face.landmarks[:, :2]).mean() / np.ptp(face.landmarks[:, 0])


@pytest.mark.parametrize("number", range(6))
def test_upside_down_the_same_face_is_found(landmarker, people, number):
    "Without the question which way is up, nonsense is found in most of them, with a score of up to 1."
    image = [*people[0], data.astronaut()][number]
    turned = landmarker.find_all([np.ascontiguousarray(image[::-1, ::-1])], None)[0]
    assert turned and _off(landmarker.find_one(image), turned[0], image) < .03


def test_an_upright_face_is_the_same_to_the_bit_as_without_the_question(landmarker, people):
    pictures = [*people[0], data.astronaut(), group(people, 640, 480)[0]]
    for small in (None, True, .075):
        asked = landmarker.find_all(pictures, small)
        plain = _find_in_view(landmarker.detector, landmarker.mesh, pictures, small)
        for some, others in zip(asked, plain, strict=True):
            assert [face.score for face in some] == [face.score for face in others]
            assert all((face.landmarks == other.landmarks).all() for face, other in zip(some, others))


def test_a_doubt_that_nothing_resolves_is_no_face(landmarker, people, monkeypatch):
    "What is found in a face upside down is left out, even if the turned picture showed nobody."
    turned = np.ascontiguousarray(data.astronaut()[::-1, ::-1])
    nonsense = _find_in_view(landmarker.detector, landmarker.mesh, [turned], None)[0]
    assert nonsense and nonsense[0].score > .9
    monkeypatch.setattr("aufacs_nb.registration.detection._find_upside_down", lambda *given: [[] for _ in given[2]])
    assert landmarker.find(turned, None) == []


def test_no_pictures_give_no_faces(landmarker):
    assert landmarker.find_batch([]) == [] and landmarker.find_all([]) == []


def test_conversion_gives_the_shipped_weights(tmp_path):
    task = os.environ.get("AUFACS_FACE_LANDMARKER_TASK", ROOT / "tests/data/face_landmarker.task")
    pytest.importorskip("tflite")
    pytest.importorskip("ai_edge_litert")
    subprocess.run([sys.executable, ROOT / "tools/convert_face_landmarker.py", task, "--out", tmp_path], check=True)
    for name in ("blazeface.safetensors", "facemesh.safetensors", "blendshapes.safetensors"):
        assert (tmp_path / name).read_bytes() == (ROOT / "aufacs_nb/assets/detection" / name).read_bytes()


def test_a_dark_face_in_noise_that_stands_upright_is_no_doubt():
    "The detector is surer of this one upside down; the mesh network is sure of it as it is."
    from aufacs_nb.simulation.appearance import sample_person
    from aufacs_nb.simulation.camera import render_person, sample_scene
    from aufacs_nb.simulation.rich import rich_moment
    from aufacs_nb.simulation.time_courses import ALL_AUS

    rng = np.random.default_rng(5)
    for number in range(22):  # as the room on pixels photographs its people: the last of them
        levels, speech, sides = (dict.fromkeys(ALL_AUS, 0), {}, 0.) if number % 6 == 0 else rich_moment(rng)
        turned = rng.normal(0, (8, 6, 4))
    shown = render_person(sample_person(7003), {au: level for au, level in levels.items() if level}, *turned,
                          scene=sample_scene(3, "wide"), speech=speech, asymmetry=sides)
    face = FaceLandmarker.from_pretrained().find_one(shown)
    assert face.landmarks[[33, 263], 1].mean() < face.landmarks[13, 1] and face.score > .95

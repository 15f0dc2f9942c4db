"""Detection beyond the notebook: strange sizes, read-only and strided pictures, large photographs, conversion."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data, transform

from aufacs_nb.registration.planar import align_face
from aufacs_nb.registration.detection import FaceLandmarker, NoFaceError, PictureError

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


def test_no_pictures_give_no_faces(landmarker):
    assert landmarker.find_batch([]) == [] and landmarker.find_all([]) == []


def test_conversion_gives_the_shipped_weights(tmp_path):
    task = os.environ.get("AUFACS_FACE_LANDMARKER_TASK", ROOT / "tests/data/face_landmarker.task")
    pytest.importorskip("tflite")
    pytest.importorskip("ai_edge_litert")
    subprocess.run([sys.executable, ROOT / "tools/convert_face_landmarker.py", task, "--out", tmp_path], check=True)
    for name in ("blazeface.safetensors", "facemesh.safetensors", "blendshapes.safetensors"):
        assert (tmp_path / name).read_bytes() == (ROOT / "aufacs_nb/assets/detection" / name).read_bytes()

"""dlib's landmarks, played by a stand-in: what it is asked, what comes back, and what is never imported."""
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from aufacs_nb.registration.planar import (CENTRE_CM, FACE_CM, LANDMARKS_68, DlibLandmarker, align_face,
                                           find_dlib_model, frontal_template)
from aufacs_nb.registration.detection import PictureError
from aufacs_nb.geometry.meshes import canonical_face
from aufacs_nb.registration.frontal import frontal_pixels


@pytest.fixture
def dlib(monkeypatch, tmp_path):
    "A stand-in for dlib whose predictor puts 68 points along the diagonal of the box; its log and a model file."
    log, module, model = [], ModuleType("dlib"), tmp_path / "shape_predictor_68_face_landmarks.dat"
    model.write_bytes(b"weights")

    def predictor(path):
        log.append(path)
        return lambda image, box: SimpleNamespace(parts=lambda: [
            SimpleNamespace(x=box.left + k, y=box.top + k) for k in range(68)])

    module.rectangle = lambda *sides: SimpleNamespace(**dict(zip(("left", "top", "right", "bottom"), sides)))
    module.shape_predictor = predictor
    module.get_frontal_face_detector = lambda: lambda image, times: [module.rectangle(5, 6, 80, 90)]
    monkeypatch.setitem(sys.modules, "dlib", module)
    return SimpleNamespace(log=log, model=model)


def test_boxes_and_dlibs_own_search(dlib):
    landmarker = DlibLandmarker(dlib.model)
    assert dlib.log == [str(dlib.model)]
    image = np.zeros((120, 100, 3), np.uint8)
    given = landmarker.find(image, [[9.6, 20.2, 60, 70], [1, 2, 50, 60]])
    assert given.shape == (2, 68, 2) and given[0, 0].tolist() == [10.5, 20.5] and given[1, 3].tolist() == [4.5, 5.5]
    assert landmarker.find(image)[0, 0].tolist() == [5.5, 6.5]
    assert landmarker.find(image, np.zeros((0, 4))).shape == (0, 68, 2)
    with pytest.raises(PictureError, match="uint8 RGB array"):
        landmarker.find(image / 255)


def test_dlibs_points_align_a_picture(dlib):
    points = DlibLandmarker(dlib.model).find(np.zeros((120, 100, 3), np.uint8), [[1, 2, 50, 60]])[0]
    assert align_face(np.full((120, 100, 3), 9, np.uint8), points + np.random.default_rng(0).normal(0, 5, (68, 2)),
                      64).shape == (64, 64, 3)


def test_missing_model_and_missing_dlib_say_what_to_do(dlib, monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.dat: no such file.*licence excludes commercial use"):
        DlibLandmarker(tmp_path / "nothing.dat")
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(ImportError, match=r"pip install 'aufacs_nb\[dlib\]'"):
        DlibLandmarker(dlib.model)


def test_the_models_package_is_looked_up_and_never_run(tmp_path):
    package = tmp_path / "face_recognition_models"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("import pkg_resources\nraise SystemExit('this code must not run')\n")
    (package / "models" / "shape_predictor_68_face_landmarks.dat").write_bytes(b"weights")
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from aufacs_nb.registration.planar import find_dlib_model; "
            "print(find_dlib_model()); assert not {'pkg_resources', 'face_recognition_models'} & set(sys.modules)")
    said = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith("face_recognition_models/models/shape_predictor_68_face_landmarks.dat")
    assert find_dlib_model(package / "__init__.py").name == "__init__.py"


def test_flat_and_solid_frames_lie_on_one_another():
    canon = canonical_face().vertices * [1, -1, -1]
    for size in (96, 224):
        solid = frontal_pixels(canon, size)[LANDMARKS_68, :2]
        assert np.abs(solid - frontal_template(size)).max() < 1e-3 * size
    assert FACE_CM > 15 and abs(CENTRE_CM) < 2

"""Our three networks beside Google's own runtime (LiteRT) on the same crops: within a thousandth of the crop's width.

The mesh network is tested twice, as PyTorch modules and as the compiled loops that a CPU gets. The graphs are those of tests/data/face_landmarker.task, from which the weights of the package were converted.
"""
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from aufacs_nb.registration.blendshapes import ACTIONS, POINTS, actions, load_actions
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import face_truth, render_person, sample_scene
from aufacs_nb.registration.detection import FaceLandmarker, Square, cut, load_networks, square_from_landmarks
from aufacs_nb.facs import FERA_POSES

TASK = Path(__file__).parent / "data" / "face_landmarker.task"
TOLERANCE = 1e-3    # of the crop's width; of 1 for scores and actions
BATCHED = 5e-5      # the same units: between a batch of eight and its members alone
SHIFTS = [(0, 0, 1, 0), (9, -6, 1.1, 20), (-12, 4, .9, -35), (0, 15, 1.3, 60), (20, 0, 1, -90), (-5, -20, .8, 8)]
# Built without the runtime the tests skip; the developer requirements bring it, so CI always runs them.
RUNTIME = "ai-edge-litert, a developer requirement, is not installed: pip install -e '.[dev]'"


@pytest.fixture(scope="module")
def google():
    """`google(graph, examples)`: LiteRT's outputs for examples one by one, {name: (n, …)}; images are (n, 3, S, S)."""
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason=RUNTIME)
    with zipfile.ZipFile(TASK) as archive:
        runtimes = {name: litert.Interpreter(model_content=archive.read(f"{name}.tflite"), num_threads=1)
                    for name in ("face_detector", "face_landmarks_detector", "face_blendshapes")}

    def one(runtime, example):
        runtime.set_tensor(runtime.get_input_details()[0]["index"], np.ascontiguousarray(example[None], np.float32))
        runtime.invoke()
        return {output["name"]: runtime.get_tensor(output["index"]).copy() for output in runtime.get_output_details()}

    def run(graph, examples):
        runtimes[graph].allocate_tensors()
        examples = examples.transpose(0, 2, 3, 1) if examples.ndim == 4 else examples
        answers = [one(runtimes[graph], example) for example in examples]
        return {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}
    return run


def people():
    """(picture, truth (468, 3)) of two virtual people at the nine poses of FERA 2017, in changing light, smiling."""
    for number, view in enumerate(list(FERA_POSES.values()) * 2):
        person, scene = sample_person(number), sample_scene(number, "fera17")
        aus = {12: number % 6, 4: (number + 2) % 4, 26: number % 3}
        yield (render_person(person, aus, scene=scene, size=224, view=view),
               face_truth(person, aus, scene=scene, size=224, view=view))


@pytest.fixture(scope="module")
def squares():
    """(picture, square around its face, square of the whole) of every crop."""
    astronaut, cases = data.astronaut(), []
    for x, y, scale, degrees in SHIFTS:
        cases.append((astronaut, Square(225 + x, 118 + y, 190 * scale, np.radians(degrees)),
                      Square(256 + x, 256 + y, 512 * scale, np.radians(degrees))))
    for picture, truth in people():
        cases.append((picture, square_from_landmarks(truth), Square(112, 112, 224)))
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    return cases + [(shade, Square(128, 128, 256), Square(128, 128, 256)) for shade in (noise, 0 * noise)]


@pytest.fixture(scope="module")
def faces(squares):
    """(n, 3, 256, 256) in [0, 1], what the mesh network sees."""
    torch.set_num_threads(1)
    return torch.stack([cut(picture, face, 256) for picture, face, _ in squares])


@pytest.fixture(scope="module")
def wholes(squares):
    """(n, 3, 128, 128) in [-1, 1], what the detector sees."""
    return torch.stack([cut(picture, whole, 128) for picture, _, whole in squares]) * 2 - 1


@pytest.fixture(scope="module")
def google_landmarks(google, faces):
    """LiteRT's landmarks (n, 478, 3) and presence logits (n,)."""
    answers = google("face_landmarks_detector", faces.numpy())
    return answers["Identity"].reshape(-1, 478, 3), answers["Identity_1"].reshape(-1)


@pytest.fixture(params=["modules", "as used on a CPU"])
def mesh(request):
    """The mesh network."""
    return load_networks()[1] if request.param == "modules" else FaceLandmarker.from_pretrained().mesh


@torch.inference_mode()
def ours(network, inputs, batch):
    """A network's outputs, as arrays, for inputs given `batch` at a time."""
    outputs = [network(inputs[start:start + batch]) for start in range(0, len(inputs), batch)]
    return [torch.cat(output).numpy() for output in zip(*outputs)]


def chance(logits):
    """Logits as probabilities, float64."""
    return 1 / (1 + np.exp(-np.clip(np.asarray(logits, np.float64), -100, 100)))


def apart(one, other):
    """Largest absolute difference of two arrays of one shape."""
    assert one.shape == other.shape
    return np.abs(one - other).max()


def test_the_weights_come_from_this_file(root):
    card = json.loads((root / "aufacs_nb/assets/detection/card.json").read_text(encoding="utf-8"))
    assert hashlib.sha256(TASK.read_bytes()).hexdigest() == card["sha256"]


@pytest.mark.parametrize("batch", [1, 8])
def test_the_detector(google, wholes, batch):
    scores, boxes = ours(load_networks()[0], wholes, batch)
    answers = google("face_detector", wholes.numpy())
    assert apart(boxes / 128, answers["regressors"][:, 0] / 128) < TOLERANCE
    assert apart(chance(scores), chance(answers["classificators"][:, 0, :, 0])) < TOLERANCE


@pytest.mark.parametrize("batch", [1, 8])
def test_the_landmarks(google_landmarks, mesh, faces, batch):
    landmarks, presence = ours(mesh, faces, batch)
    assert apart(landmarks / 256, google_landmarks[0] / 256) < TOLERANCE
    assert apart(chance(presence), chance(google_landmarks[1])) < TOLERANCE


@pytest.mark.parametrize("batch", [1, 8])
def test_the_actions_of_the_same_landmarks(google, google_landmarks, batch):
    answers = google("face_blendshapes", google_landmarks[0][:, POINTS, :2])
    found = actions(load_actions(), google_landmarks[0], batch=batch)
    assert apart(found, next(iter(answers.values()))) < TOLERANCE


def test_pixels_to_actions(google, google_landmarks, mesh, faces):
    landmarks, _ = ours(mesh, faces, 8)
    answers = google("face_blendshapes", google_landmarks[0][:, POINTS, :2])
    assert apart(actions(load_actions(), landmarks), next(iter(answers.values()))) < TOLERANCE


def test_eight_faces_answer_as_each_alone(mesh, faces):
    (one_face, one_presence), (landmarks, presence) = ours(mesh, faces, 1), ours(mesh, faces, 8)
    assert apart(landmarks / 256, one_face / 256) < BATCHED and apart(chance(presence), chance(one_presence)) < BATCHED
    assert apart(actions(load_actions(), landmarks, 8), actions(load_actions(), landmarks, 1)) < BATCHED


def test_eight_pictures_answer_as_each_alone(wholes):
    (one_score, one_box), (scores, boxes) = (ours(load_networks()[0], wholes, batch) for batch in (1, 8))
    assert apart(boxes / 128, one_box / 128) < BATCHED and apart(chance(scores), chance(one_score)) < BATCHED


def test_the_layout_of_the_memory_does_not_matter(mesh, faces):
    plain, _ = ours(mesh, faces[:4], 4)
    mixed = torch.stack([faces[:4], faces[4:8]], 1)[:, 0]
    assert not mixed.is_contiguous()
    for same in (faces[:4].contiguous(memory_format=torch.channels_last), mixed):
        assert apart(ours(mesh, same, 4)[0] / 256, plain / 256) < BATCHED


def test_the_crops_are_worth_comparing(google, google_landmarks, faces):
    landmarks, presence = google_landmarks
    shown = chance(presence) > .5
    assert shown[:6].sum() >= 4 and shown[6:-2].sum() >= 12 and not shown[-2:].any()
    values = next(iter(google("face_blendshapes", landmarks[:, POINTS, :2]).values()))
    assert len(ACTIONS) == values.shape[1] and (np.ptp(values[shown], axis=0) > .1).sum() > 15
    assert np.ptp(landmarks[shown], axis=0)[:, :2].max() > 40

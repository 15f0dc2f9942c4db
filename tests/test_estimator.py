"""The estimator as people use it: films with several faces or none, long films, damaged folders, other programs."""
import json
import shutil
import subprocess
import sys
import warnings

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.data import astronaut, chelsea

from aufacs_nb.databases import fera17_manifest, sample_database, write_video
from peak import PEAK


@pytest.fixture(scope="module")
def clip():
    clips = fera17_manifest(sample_database())
    return clips[clips.partition == "Test"].path.iloc[0]


@pytest.fixture(scope="module")
def two_people(tmp_path_factory):
    "A film in which the astronaut stands beside her mirrored, smaller self, who moves."
    folder = tmp_path_factory.mktemp("two")
    small = np.asarray(Image.fromarray(astronaut()[:, ::-1]).resize((440, 440)))
    frames = []
    for k in range(6):
        frame = np.full((512, 960, 3), 128, np.uint8)
        frame[:, :512], frame[2 * k:440 + 2 * k, 516:956] = astronaut(), small
        frames.append(frame)
    path = folder / "two.mp4"
    write_video(path, frames, 10)
    return path


def test_everybody_in_a_film(aufacs, two_people, tmp_path):
    done = aufacs("predict", two_people, "--faces", "all", "--out", tmp_path / "au.csv", "--quiet",
                  "--plot", tmp_path / "au.png", "--overlay", tmp_path / "au.mp4")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "au.csv")
    assert table.groupby("frame").size().tolist() == [2] * 6 and table.face_id.nunique() == 2
    means = table.groupby("face_id").AU12_r.mean()
    assert (means > 1).all(), "both smile"
    with av.open(str(tmp_path / "au.mp4")) as film:
        drawn = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(drawn) == 6 and drawn[0].shape[1] > 960
    assert Image.open(tmp_path / "au.png").size[0] > 500


def test_one_person_stays_the_same_person(aufacs, two_people, tmp_path):
    assert aufacs("predict", two_people, "--out", tmp_path / "au.csv", "--quiet").returncode == 0
    table = pd.read_csv(tmp_path / "au.csv")
    assert len(table) == 6 and table.face_id.nunique() == 1 and table.success.all()


def test_film_without_a_face(aufacs, tmp_path):
    write_video(tmp_path / "cat.mp4", [chelsea()[:, :450]] * 4, 10)
    done = aufacs("predict", tmp_path / "cat.mp4", "--out", tmp_path / "au.csv", "--quiet")
    assert done.returncode == 1 and "no face in any of 4 frames" in done.stderr
    table = pd.read_csv(tmp_path / "au.csv")
    assert table.success.tolist() == [0] * 4 and table.filter(like="_r").isna().all(axis=None)


@pytest.fixture(scope="module")
def personalized(aufacs, tmp_path_factory):
    "A folder with a photograph of two faces, pair.png, and me/, what `personalize` made of it; the finished process."
    folder = tmp_path_factory.mktemp("personalized")
    Image.fromarray(np.concatenate([astronaut()[:, :350], astronaut()[:, 60:]], axis=1)).save(folder / "pair.png")
    return folder, aufacs("personalize", folder / "pair.png", "--out", folder / "me", "--quiet")


def test_which_of_two_faces(aufacs, personalized, tmp_path):
    folder, done = personalized
    assert done.returncode == 0 and "2 faces; the largest is taken" in done.stderr
    chosen = aufacs("personalize", folder / "pair.png", "--out", tmp_path / "left", "--face", 1, "--quiet")
    assert chosen.returncode == 0 and "faces" not in chosen.stderr
    left, largest = ((place / "classifiers" / "weights.safetensors").read_bytes()
                     for place in (tmp_path / "left", folder / "me"))
    assert left != largest
    wrong = aufacs("personalize", folder / "pair.png", "--out", tmp_path / "third", "--face", 3, "--quiet")
    assert wrong.returncode == 1 and "there is no face 3; it shows 2" in wrong.stderr
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("options, said", [(("--overlay", "a.gif"), "must end in .mp4"),
                                           (("--plot", "a.txt"), ".png or .svg or .pdf"), (("--faces", "two"), "choose main or all")])
def test_options_that_cannot_be(aufacs, clip, tmp_path, options, said):
    done = aufacs("predict", clip, "--out", tmp_path / "au.csv", "--quiet", *options)
    assert done.returncode == 2 and said in done.stderr and not (tmp_path / "au.csv").exists()


def test_overlay_of_a_photograph(aufacs, tmp_path):
    Image.fromarray(astronaut()).save(tmp_path / "me.png")
    done = aufacs("predict", tmp_path / "me.png", "--overlay", tmp_path / "a.mp4")
    assert done.returncode == 2 and "a.mp4: of a photograph, its name must end in .png" in done.stderr


@pytest.fixture
def person(personalized, tmp_path):
    "A copy of a person's folder that a test may spoil."
    return shutil.copytree(personalized[0] / "me", tmp_path / "me")


def broken_card(folder):
    (folder / "card.json").write_text("{")


def truncated_weights(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:500])


def other_base(folder):
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"base_sha256": "0" * 64}))


def other_registration(folder):
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"registration": "thin-plate"}))


@pytest.mark.parametrize("damage, said", [(broken_card, "no readable weights card"), (truncated_weights, "damaged"),
                                          (other_base, "has changed since; personalise again"),
                                          (other_registration, "registered by 'thin-plate'")])
def test_damaged_model_folder(aufacs, person, clip, tmp_path, damage, said):
    damage(person / "classifiers")
    done = aufacs("predict", clip, "--model", person, "--out", tmp_path / "au.csv", "--quiet")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "au.csv").exists()


def test_frames_are_registered_as_the_model_was_trained():
    from aufacs_nb.estimation.storage import AUClassifiers
    from aufacs_nb.estimation.estimator import AUEstimator
    from aufacs_nb.registration.collections import register_photo

    small = AUClassifiers.from_pretrained("small")
    flat = AUEstimator(AUClassifiers(small.models, small.preset, {**small.card, "registration": "procrustes"}))
    assert np.array_equal(flat.face(astronaut()), register_photo(astronaut(), method="procrustes").image)
    assert not np.array_equal(flat.face(astronaut()), AUEstimator(small).face(astronaut()))


@pytest.fixture(scope="module")
def virtual_pair(tmp_path_factory):
    "A film of two virtual people who smile and frown by turns, and its frames."
    from aufacs_nb.simulation.appearance import sample_person
    from aufacs_nb.simulation.camera import render_person

    people = [sample_person(seed) for seed in (31, 32)]
    frames = np.stack([np.concatenate([render_person(one, {12: k, 4: 4 - k}, yaw=5 * k - 8, size=180)
                                       for one, k in zip(people, (step, 4 - step))], 1) for step in range(5)])
    path = tmp_path_factory.mktemp("virtual") / "pair.mp4"
    write_video(path, frames, 10)
    return path, frames


@pytest.mark.parametrize("model", ["small", "mesh18"])
@pytest.mark.parametrize("form", ["film", "frames", "photographs"])
@pytest.mark.filterwarnings("ignore:.*faces; the largest")
def test_a_face_reads_the_same_in_any_company(model, form, virtual_pair):
    "To the bit: alone or with everybody, one frame at a time or all at once, in any order of the photographs."
    from aufacs_nb.estimation.estimator import AUEstimator

    path, frames = virtual_pair
    source = {"film": path, "frames": frames, "photographs": list(frames)}[form]
    estimator = AUEstimator.from_pretrained(model)
    every, main = (estimator.predict(source, faces=faces, landmarks=478) for faces in ("all", "main"))
    assert len(every) == 10 and len(main) == 5 and every.groupby("face_id").size().tolist() == [5, 5]
    for faces, table in (("all", every), ("main", main)):
        assert estimator.predict(source, faces=faces, landmarks=478, batch=1).equals(table)
    chosen = every.merge(main[["frame", "face_x", *(["file"] if form == "photographs" else [])]])
    numbers = [name for name in main.columns if name not in ("frame", "face_id", "file")]
    assert chosen[numbers].equals(main[numbers])
    if form == "photographs":
        backwards = estimator.predict(source[::-1], landmarks=478)
        assert backwards[numbers][::-1].reset_index(drop=True).equals(main[numbers])


@pytest.mark.filterwarnings("ignore:.*faces; the largest")
def test_the_zero_of_a_film_is_the_same_in_any_company(virtual_pair):
    from aufacs_nb.estimation.estimator import AUEstimator

    film = np.concatenate([virtual_pair[1]] * 3)
    estimator = AUEstimator.from_pretrained("mesh18").neutral("clip")
    plain = AUEstimator.from_pretrained("mesh18").predict(film, faces="all")
    every = [estimator.predict(film, faces="all", batch=batch) for batch in (1, 32)]
    assert every[0].equals(every[1]) and not every[0].equals(plain)


def test_the_example_of_the_issue_reads_as_it_is_written(clip):
    "One photograph is the zero of a film, whatever form it has."
    from PIL import Image

    from aufacs_nb import AUEstimator
    from aufacs_nb.estimation.sources import frame_stream

    first = next(iter(frame_stream(clip))).image
    photo = Image.fromarray(first)
    table = AUEstimator.from_pretrained("mesh18").neutral(photo).predict(clip)
    assert table.equals(AUEstimator.from_pretrained("mesh18").neutral(first / 255).predict(clip))
    assert len(table) == 24 and table.filter(regex="_r$").iloc[0].max() < .5
    less = AUEstimator.from_pretrained("small").neutral(photo).predict(clip).filter(regex="_r$")
    said = AUEstimator.from_pretrained("small").predict(clip).filter(regex="_r$")
    assert np.allclose(less, np.clip(said - said.iloc[0], 0, 5), atol=.02) and less.iloc[0].max() < .02


MEMORY = PEAK + """
import sys
import torch
torch.set_num_threads(1)
from aufacs_nb.estimation.estimator import AUEstimator
from aufacs_nb.estimation.tables import to_openface_csv
estimator = AUEstimator.from_pretrained("small")
to_openface_csv(estimator.stream(sys.argv[1], batch=8), sys.argv[1] + ".csv")
print(peak())
"""


def test_memory_does_not_grow_with_the_film(tmp_path):
    "Both films are long enough for every buffer to be full: below some 90 frames the peak still climbs towards its level."
    peaks = []
    for repeats in (24, 56):
        path = tmp_path / f"{repeats}.mp4"
        write_video(path, (np.roll(astronaut(), k % 8, axis=1) for k in range(4 * repeats)), 25)
        done = subprocess.run([sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
        assert len(pd.read_csv(f"{path}.csv")) == 4 * repeats
    assert peaks[1] < peaks[0] + 40, f"{peaks} MiB: 128 frames of 0.8 MiB more must not stay in memory"
    assert peaks[1] < 1300, f"{peaks} MiB, with libraries and weights; some 1,050 were measured"


def test_py_feat_reads_the_table(aufacs, clip, tmp_path):
    "Against what `feat.utils.io.read_openface` does (py-feat 2.1.5): strip the names, take OpenFace's, else keep all."
    assert aufacs("predict", clip, "--out", tmp_path / "au.csv", "--quiet").returncode == 0
    table = pd.read_csv(tmp_path / "au.csv", sep=",")
    table.columns = table.columns.str.strip(" ")
    known = {"frame", "face_id", "timestamp", "confidence", "success", "pose_Rx", "pose_Ry", "pose_Rz", "gaze_angle_x",
             "gaze_angle_y", *("face_x", "face_y", "face_w", "face_h")}  # the last four are ours
    openface = {f"AU{au:02}_{kind}" for kind in "rc" for au in (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)}
    assert set(table.columns) <= known | openface, "no column that OpenFace does not have, but the box"
    assert {"frame", "timestamp", "confidence", "success"} <= set(table.columns)
    assert table.filter(regex="_r$").map(lambda v: 0 <= v <= 5).all(axis=None) and not table.isna().any(axis=None)
    io = pytest.importorskip("feat.utils.io", reason="py-feat is not installed")
    assert len(io.read_openface(str(tmp_path / "au.csv"))) == len(table)


def test_seven_trainings_in_two_processes():
    "The number of processes changes nothing in the result."
    import torch

    from aufacs_nb.estimation.classifiers import train_classifiers
    from aufacs_nb.experiments.stages import partition_frames
    from aufacs_nb.presets import TINY
    from aufacs_nb.registration.collections import sample_registered
    from aufacs_nb.estimation.resampling import real_set

    train = partition_frames(sample_registered(), "Train", 32)
    with warnings.catch_warnings(action="ignore"):
        balanced = real_set(train.frames, train.manifest, per_intensity=4)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, two = (train_classifiers(balanced, preset=TINY, seed=2, progress=False, n_jobs=n) for n in (1, 2))
    finally:
        torch.set_num_threads(before)
    for au, model in one.models.items():
        for name, value in model.state_dict().items():
            assert torch.equal(value, two.models[au].state_dict()[name]), f"AU{au} {name}"

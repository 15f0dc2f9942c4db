"""The reader of meshes and its zeros: weights that ship, files, films, several faces, and what is not possible."""
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from skimage.data import astronaut, chelsea

from typer.testing import CliRunner

from aufacs_nb.apps.cli import app
from aufacs_nb.databases import fera17_manifest, sample_database
from aufacs_nb.estimation.estimator import AUEstimator
from aufacs_nb.estimation.mesh import ALL_AUS, MeshReader, as_intensity, calibrate, left_out, mesh_features, ridge
from aufacs_nb.estimation.zero import ClipZeros, calm_zero, for_aus, photo_zero, said_by
from aufacs_nb.facs import au_columns
from aufacs_nb.presets import WeightsError
from aufacs_nb.registration.detection import NoFaceError
from aufacs_nb.registration.frontal import frontal_pixels
from aufacs_nb.simulation.face_model import facemesh_vertices, head_vertices, sample_identity

COLUMNS = [f"{column}_r" for column in au_columns(ALL_AUS)]


@pytest.fixture(scope="module")
def estimator():
    return AUEstimator.from_pretrained("mesh18")


@pytest.fixture(scope="module")
def clip():
    clips = fera17_manifest(sample_database())
    return clips[clips.partition == "Test"].path.iloc[0]


def mesh(seed, **levels):
    "The registered mesh of a virtual person, without a camera."
    asked = {int(au[2:]): level for au, level in levels.items()}
    return frontal_pixels(facemesh_vertices(head_vertices(sample_identity(seed), asked)) * [1, -1, -1], 224)


def test_ridge_shrinks_towards_the_mean():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 5))
    truth = features @ rng.normal(size=(5, 2)) + [3, -1]
    exact, offset = ridge(features, truth, 0)
    assert np.allclose(features @ exact + offset, truth)
    heavy, offset = ridge(features, truth, 1e9)
    assert np.abs(heavy).max() < 1e-5 and np.allclose(offset, truth.mean(0), atol=1e-4)


def test_nobody_is_judged_by_a_regression_that_knew_them():
    "Labels that are random for each person can be learned by heart, but not be left out."
    rng = np.random.default_rng(1)
    people = np.repeat(np.arange(40), 5)
    features = np.eye(40)[people] + .01 * rng.normal(size=(200, 40))
    labels = rng.integers(0, 6, (40, 1))[people].astype(float)
    weights, offset = ridge(features, labels, 1e-3)
    assert np.corrcoef((features @ weights + offset)[:, 0], labels[:, 0])[0, 1] > .99
    assert abs(np.corrcoef(left_out(features, labels, people, 1e-3)[:, 0], labels[:, 0])[0, 1]) < .5


def test_calibration_undoes_shrinking_and_an_offset():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 6, (400, 3)).astype(float)
    said = .4 * labels + [1, 0, -2] + .05 * rng.normal(size=labels.shape)
    read = as_intensity(said, *calibrate(said, labels))
    assert np.abs(read - labels).mean() < .3 and read.min() == 0 and read.max() == 5


def test_both_sides_of_a_face_count_the_same(estimator):
    smile = mesh(3, AU12=4., AU06=3.)
    mirrored = AUEstimator.from_pretrained("mesh18").landmarker.find_all([astronaut()[:, ::-1].copy()])[0][0]
    straight = estimator.landmarker.find_all([astronaut()])[0][0]
    read = [estimator.classifiers.predict(frontal_pixels(face.landmarks, 224))[0] for face in (straight, mirrored)]
    assert np.abs(read[0] - read[1]).mean() < .5
    assert mesh_features(smile).shape == (1, 1404)


@pytest.mark.parametrize("au", (1, 4, 12, 17, 43))
def test_shipped_reader_sees_what_a_face_shows(estimator, au):
    "Exact meshes of people it never saw, less their neutral one: the AU that is there is the strongest."
    reader = estimator.classifiers
    for seed in (901, 902, 903):
        zero = photo_zero(reader, mesh(seed))
        read = reader.predict(mesh(seed, **{f"AU{au:02d}": 4.}), zero=zero)[0]
        assert read[ALL_AUS.index(au)] > 2 and ALL_AUS[read.argmax()] == au, (seed, dict(zip(ALL_AUS, read.round(1))))
        assert reader.predict(mesh(seed), zero=zero).max() < .5, "a face at rest less itself"


def test_card_names_its_command_and_its_scores():
    card = MeshReader.from_pretrained("mesh18").card
    assert card["command"].startswith("python tools/mesh_training.py") and "seed" in card
    assert set(card["icc"]) == {"none", "photo", "clip"} and len(card["icc"]["photo"]) == 19
    assert card["icc"]["photo"]["mean"][0] > card["icc"]["none"]["mean"][0] > .5


def test_photographs_films_and_frames(estimator, clip):
    smile = estimator.predict(astronaut())
    assert smile.shape[0] == 1 and (smile.AU12_r > 3).all() and (smile.AU10_r < smile.AU12_r).all()
    film = estimator.predict(clip, batch=7)
    assert [name for name in film.columns if name.endswith("_r")] == COLUMNS
    assert film[COLUMNS].to_numpy().min() >= 0 and film[COLUMNS].to_numpy().max() <= 5
    change = film[COLUMNS] - estimator.predict(clip, batch=32)[COLUMNS]
    assert np.abs(change.to_numpy()).mean() < .2, "a face is followed a little differently in other batches"
    two = estimator.predict(np.stack([astronaut()] * 2))
    assert np.allclose(two[COLUMNS], smile[COLUMNS].to_numpy().repeat(2, 0), atol=1e-4)
    with pytest.raises(NoFaceError):
        estimator.predict(chelsea())


def test_three_zeros(estimator, clip, tmp_path):
    none, by_film = (estimator.neutral(way).predict(clip)[COLUMNS].to_numpy() for way in (None, "clip"))
    assert np.array_equal(none, estimator.predict(clip)[COLUMNS].to_numpy())
    kept = ~np.isin(ALL_AUS, estimator.classifiers.clip_aus)
    assert np.array_equal(none[:, kept], by_film[:, kept]) and not np.array_equal(none, by_film)
    of_photo = estimator.neutral(astronaut())
    at_rest = of_photo.predict(astronaut())[COLUMNS].to_numpy()
    assert at_rest.max() < .5, "the photograph is its own zero"
    assert np.allclose(of_photo.classifiers.zero, estimator.neutral([astronaut()] * 2).classifiers.zero, atol=1e-4)
    assert estimator.classifiers.zero is None, "the old one stays what it was"
    again = AUEstimator.from_pretrained(of_photo.save(tmp_path / "me"))
    assert again.predict(clip).equals(of_photo.predict(clip))


def test_zero_of_the_film_is_each_persons_own(estimator):
    reader = estimator.classifiers
    people = [np.stack([mesh(seed), mesh(seed, AU12=5.)] * 6) for seed in (911, 912)]
    zeros = ClipZeros(reader)
    for frame in range(12):
        zeros.add([("film", 0), ("film", 1)], np.stack([own[frame] for own in people]))
    found = zeros.zeros()
    assert len(found) == 2
    for own, zero in zip(people, found.values()):
        calm = reader.predict(own[:2]).sum(1).argmin()
        expected = for_aus(said_by(reader, own[[calm]])[0], ALL_AUS, reader.clip_aus)
        assert np.allclose(zero, expected, atol=1e-3, equal_nan=True)
    assert not np.allclose(*found.values(), equal_nan=True)


def test_a_photograph_has_no_calm_frames(estimator):
    with pytest.warns(UserWarning, match="no film with enough frames"):
        read = estimator.neutral("clip").predict(astronaut())
    assert read.equals(estimator.predict(astronaut()))
    with pytest.raises(ValueError, match="no frames"):
        calm_zero(np.zeros((0, 18)), np.zeros((0, 18)))


def test_a_reader_of_meshes_is_not_fine_tuned_but_has_a_zero(estimator):
    with pytest.raises(ValueError, match="neutral"):
        estimator.personalize(astronaut())
    less = AUEstimator.from_pretrained("small").neutral(astronaut()).predict(astronaut())
    assert less.filter(regex="_r$").to_numpy().max() < 1e-4, "classifiers of pixels have one, too"
    with pytest.raises(WeightsError, match="nowhere"):
        AUEstimator.from_pretrained("nowhere")


def test_damaged_weights_are_named(tmp_path):
    MeshReader.from_pretrained("mesh18").save(tmp_path / "mesh")
    (tmp_path / "mesh" / "weights.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="weights.safetensors"):
        AUEstimator.from_pretrained(tmp_path)
    card = json.loads((tmp_path / "mesh" / "card.json").read_text())
    assert card["clip_aus"]


@pytest.mark.parametrize("wrong", (np.zeros((3, 478, 3)), np.full((468, 3), np.nan), np.zeros((468, 2))))
def test_meshes_of_another_shape(wrong):
    with pytest.raises(ValueError, match="registered vertices"):
        mesh_features(wrong)


def test_the_shell_takes_a_zero(tmp_path):
    Image.fromarray(astronaut()).save(tmp_path / "me.png")
    call = ["predict", str(tmp_path / "me.png"), "--model", "mesh18", "--out", str(tmp_path / "au.csv"), "--quiet"]
    done = CliRunner().invoke(app, [*call, "--neutral", str(tmp_path / "me.png")], prog_name="aufacs")
    assert done.exit_code == 0, done.output
    assert pd.read_csv(tmp_path / "au.csv")[COLUMNS].to_numpy().max() < .5
    for model in ("small", "face18"):
        done = CliRunner().invoke(app, [*call[:3], model, "--neutral", call[1], *call[4:]], prog_name="aufacs")
        assert done.exit_code == 0, done.output
        assert pd.read_csv(tmp_path / "au.csv").filter(regex="_r$").to_numpy().max() < .5
    for words, noted in (([], True), (["--neutral", "none"], False)):  # who says nothing is told what a zero is for
        done = CliRunner().invoke(app, [*call, *words], prog_name="aufacs")
        assert done.exit_code == 0 and ("is not told what this face looks like at rest" in done.output) == noted


@pytest.mark.parametrize("tensor", ["plain.weights", "difference.rest", "plain.gain"])
def test_weights_far_larger_than_a_fit_makes_are_refused(tmp_path, tensor):
    "With them every face would read as 0 or 5 in every AU."
    MeshReader.from_pretrained().save(tmp_path)
    tensors = load_file(tmp_path / "weights.safetensors")
    tensors[tensor].flat[0] = 1e20
    with safe_open(tmp_path / "weights.safetensors", "np") as file:
        metadata = file.metadata()
    save_file(tensors, tmp_path / "weights.safetensors", metadata)
    with pytest.raises(WeightsError, match=rf"'{tensor}' holds 1e\+20, and no fit makes numbers above 10,000"):
        MeshReader.from_pretrained(tmp_path)

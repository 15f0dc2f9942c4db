"""Readers of meshes and pictures: their zeros, their weights, and the company a face is in."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from aufacs_nb.databases import write_video
from aufacs_nb.estimation import pixels
from aufacs_nb.estimation.estimator import AUEstimator, meshes_of, pictures_of
from aufacs_nb.estimation.mesh import MeshReader, as_intensity, calibrate, mesh_features
from aufacs_nb.estimation.pixels import (FaceReader, PixelNetwork, changed, degraded, found_in, least_weight,
                                         rescaled, seen_by)
from aufacs_nb.estimation.zero import calm_zero, for_aus, photo_zero
from aufacs_nb.presets import WeightsError
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person


def rounded(said, regression):
    "Said values as intensities, the floor rounded over half a level."
    return np.clip(.5 * np.log1p(np.exp((said - regression.rest) * regression.gain / .5)), 0, 5)


@pytest.fixture(scope="module")
def reader():
    "A reader whose network was never trained, with the ridges of the shipped reader of meshes."
    mesh = MeshReader.from_pretrained("mesh18")
    torch.manual_seed(0)
    network = PixelNetwork(18).eval().requires_grad_(False)
    network.head[2].weight *= 30
    return FaceReader(mesh.plain, mesh.difference, network=network, weight=.4, clip_aus=(1, 12))


@pytest.fixture(scope="module")
def frames():
    "Twelve frames of a person: at rest in the first four, then raised brows and a smile."
    person = sample_person(31)
    return np.stack([render_person(person, {1: level, 12: level} if level else {}, yaw=k - 6, size=200, seed=k)
                     for k, level in enumerate([0] * 4 + [1, 2, 3, 4, 5, 5, 4, 3])])


@pytest.fixture(scope="module")
def seen(reader, frames):
    "Meshes and pictures of the frames."
    faces = AUEstimator(reader).landmarker.find_batch(list(frames))
    return meshes_of(faces), pictures_of(reader, frames, faces)


def test_what_is_said_is_the_mean_of_ridge_and_network_by_weight(reader, seen):
    vertices, pictures = seen
    found = found_in(reader.network, pictures)
    for weight in (0., .4, 1.):
        said = (1 - weight) * mesh_features(vertices) @ reader.plain.weights + weight * seen_by(reader.network, found)
        by_both = replace(reader, weight=weight).predict(vertices, pictures=pictures)
        np.testing.assert_allclose(by_both, rounded(said, reader.plain), atol=1e-4)
    assert np.abs(reader.predict(vertices, pictures=pictures) - by_both).max() > .05


def test_a_photograph_is_subtracted_in_the_middle_and_from_the_mesh(reader, seen):
    vertices, pictures = seen
    zero = photo_zero(reader, vertices[:1], pictures=pictures[:1])
    assert zero.shape == (18 + 64 * 12 * 12,)
    read = reader.predict(vertices, zero=zero, pictures=pictures)
    found = found_in(reader.network, pictures)
    by_mesh = (reader.said(vertices, pictures=pictures) - zero)[:, :18]
    own = seen_by(reader.network, found[:1], found[0])
    said = .6 * by_mesh + .4 * (seen_by(reader.network, found, found[0]) - own)
    np.testing.assert_allclose(read, rounded(said, reader.difference), atol=1e-3)
    assert not np.allclose(seen_by(reader.network, found, found[0])[8], seen_by(reader.network, found)[8], atol=1e-3)


def test_a_photograph_less_itself_is_a_face_at_rest_whatever_it_shows(reader, seen):
    vertices, pictures = (values[8:9] for values in seen)
    zero = photo_zero(reader, vertices, pictures=pictures)
    at_rest = rounded(np.zeros((1, 18)), reader.difference)
    np.testing.assert_allclose(reader.predict(vertices, zero=zero, pictures=pictures), at_rest, atol=1e-3)
    assert not changed(reader.network, found_in(reader.network, pictures), found_in(reader.network, pictures)[0]).any()


def test_the_zero_of_a_film_is_of_its_calm_frames_for_the_aus_that_gain(frames, tmp_path):
    reader = replace(FaceReader.from_pretrained(), clip_aus=(1, 12))
    write_video(tmp_path / "film.mkv", np.concatenate([frames] * 2), 10)
    plain = AUEstimator(reader)
    pairs = [(item.image, face[0]) for batch in plain.batches(tmp_path / "film.mkv")
             for item, face in zip(batch.items, batch.faces)]
    vertices, pictures = meshes_of([face for _, face in pairs]), pictures_of(reader, *zip(*pairs))
    read, said = reader.predict(vertices, pictures=pictures), reader.said(vertices, pictures=pictures)
    calmest = np.argsort(read.sum(1))[:int(.2 * len(read))]
    zero = for_aus(np.append(calm_zero(read, said[:, :18]), said[calmest, 18:].mean(0)), reader.aus, (1, 12))
    assert np.isfinite(zero[:18]).sum() == 2 and np.isfinite(zero[18:]).all()
    expected = reader.predict(vertices, zero=zero, pictures=pictures)
    table = plain.neutral("clip").predict(tmp_path / "film.mkv").filter(regex="_r$").to_numpy()
    np.testing.assert_allclose(table, expected, atol=.01)
    wrong = np.append(zero[:18], reader.said(vertices, pictures=pictures[:, ::-1].copy())[calmest, 18:].mean(0))
    assert np.abs(reader.predict(vertices, zero=wrong, pictures=pictures) - expected).max() > .05, "the picture counts"
    assert np.abs(table - read).max() > .1 and (np.abs(table - read).max(0) > .01).sum() <= 2


def test_what_did_not_change_is_as_good_as_unknown(reader, seen):
    found = found_in(reader.network, seen[1])
    np.testing.assert_allclose(seen_by(reader.network, found, found), seen_by(reader.network, found), atol=1e-4)


def test_a_face_reads_the_same_alone_in_a_list_and_beside_another(reader, frames):
    estimator = AUEstimator(reader)
    double = np.concatenate([frames[8], render_person(sample_person(32), {4: 3}, size=200)], 1)
    every = estimator.predict([double, frames[8]], faces="all")
    again = estimator.predict([double, frames[8]], faces="all", batch=1)
    assert every.equals(again) and len(every) == 3
    alone = estimator.predict(frames[8]).filter(regex="_r$").iloc[0]
    assert (every.filter(regex="_r$").iloc[2] == alone).all()


def test_saved_with_its_zero_it_is_the_reader_of_one_person(reader, seen, tmp_path):
    vertices, pictures = seen
    own = replace(reader, zero=photo_zero(reader, vertices[:1], pictures=pictures[:1]))
    folder = AUEstimator(own).save(tmp_path / "me")
    kept = AUEstimator.from_pretrained(folder).classifiers
    assert isinstance(kept, FaceReader) and kept.clip_aus == (1, 12) and kept.weight == .4
    assert np.array_equal(kept.predict(vertices, pictures=pictures), own.predict(vertices, pictures=pictures))


def test_weights_of_something_else_are_refused_by_name(reader, seen, tmp_path):
    with pytest.raises(WeightsError, match="face"):
        FaceReader.from_pretrained(tmp_path)
    from safetensors.numpy import load_file, save_file
    path = reader.save(tmp_path / "face") / "weights.safetensors"
    tensors = load_file(path)
    save_file({name: value for name, value in tensors.items() if name != "network.early.0.0.weight"}, path)
    with pytest.raises(WeightsError, match="not the weights of a reader of faces"):
        FaceReader.from_pretrained(tmp_path / "face")
    with pytest.raises(ValueError, match="12 meshes, 0 pictures"):
        reader.predict(seen[0])


def test_worse_pictures_keep_their_mask_and_follow_the_generator(seen):
    pictures = torch.tensor(seen[1])
    made = [degraded(pictures, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert torch.equal((made[0] > 0).any(-1), (pictures > 0).any(-1))


def test_the_least_weight_that_is_enough():
    assert least_weight({0.: .5, .5: .69, 1.: .7}) == .5
    assert least_weight({0.: .5, .5: .67, 1.: .7}) == 1.
    assert least_weight({0.: .5, 1.: .4}) == 0.



def test_a_scale_set_by_people_who_show_it_is_kinder_to_faces_at_rest(reader, monkeypatch):
    rng, n = np.random.default_rng(1), 240
    monkeypatch.setattr(pixels, "found_in", lambda network, pictures: np.asarray(pictures))
    monkeypatch.setattr(pixels, "seen_by", lambda network, found, rest=None: found)
    monkeypatch.setattr(pixels, "changed", lambda network, found, rest: found - rest)
    labels = rng.integers(1, 6, (n, 18)) * (rng.random((n, 18)) < .4)
    labels[0] = 0
    seen = .6 * labels + .5 * rng.normal(size=(n, 18))
    meshes = np.repeat(rng.normal(size=(1, 468, 3)), n, 0)
    scaled = rescaled(reader, {"vertices": meshes, "pictures": seen, "labels": labels, "neutral": np.zeros(n, int)})
    assert scaled.plain.weights is not reader.plain.weights and scaled.network is reader.network
    np.testing.assert_array_equal(scaled.plain.weights, np.float32(reader.plain.weights))
    by_mesh = (1 - reader.weight) * mesh_features(meshes) @ reader.plain.weights
    read = rounded(by_mesh + reader.weight * seen, scaled.plain)
    assert np.quantile(read[labels == 0], .9) < .6 and np.abs(read[labels == 3].mean() - 3) < .8


def test_calm_frames_without_a_unit_count_for_a_scale_on_request():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, (600, 3)) * (rng.random((600, 3)) < .5)
    said = .4 * labels + .7 * rng.normal(size=labels.shape)
    restless = [(as_intensity(said, *calibrate(said, labels, calm_share=share))[labels == 0] >= .5).mean()
                for share in (0., .9)]
    assert restless[1] < .8 * restless[0] and restless[1] < .15

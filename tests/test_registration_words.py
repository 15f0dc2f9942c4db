"""How frames were registered is said whole, by folders, sets and differences, and compared before a network is asked."""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aufacs_nb.apps import cli
from aufacs_nb.experiments import conditions, protocol
from aufacs_nb.facs import au_columns
from aufacs_nb.registration.collections import registration_of, sample_registered


@pytest.fixture(scope="module")
def sample():
    return sample_registered()


def a_folder(place: Path, sample, facts: dict, side: int = 96) -> Path:
    "A registered folder of three frames, with what registration.json says of it."
    place.mkdir()
    np.save(place / "frames.npy", np.asarray(sample.frames[:3])[:, :side, :side])
    sample.manifest[:3].drop(columns="registration").to_parquet(place / "manifest.parquet")
    (place / "registration.json").write_text(json.dumps(facts))
    return place


@pytest.mark.parametrize("facts, words", [
    ({}, "mesh"), ({"method": "mesh", "size": 96, "fill": "black", "uv": None}, "mesh"),
    ({"method": "mesh", "fill": "mirror"}, "mesh --fill mirror"), ({"method": "prnet", "fill": "keep"}, "prnet --fill keep"),
    ({"method": "procrustes", "fill": "mirror"}, "procrustes"),
    ({"method": "procrustes", "landmarks": "dlib 0123"}, "procrustes --landmarks dlib 0123"),
    ({"method": "prnet", "prnet": "ours 0123"}, "prnet --prnet ours 0123")])
def test_a_folder_says_all_that_changes_its_pixels(facts, words, tmp_path, sample):
    folder = a_folder(tmp_path / "frames", sample, facts)
    assert registration_of(folder) == words
    (folder / "normalization.json").write_text('{"method": "mean", "registration": "%s"}' % words)
    assert registration_of(folder) == f"{words} minus mean"


@pytest.mark.parametrize("learned, way", [
    ("mesh", "register with --method mesh, or train anew"),
    ("mesh --fill keep", "register with --method mesh --fill keep, or train anew"),
    ("mesh --fill keep minus mean", "--method mesh --fill keep, then `aufacs normalize --method mean`")])
def test_frames_with_another_fill_are_refused(learned, way, tmp_path, sample):
    folder = a_folder(tmp_path / "frames", sample, {"method": "mesh", "fill": "mirror"})
    with pytest.raises(ValueError, match="holds 'mesh --fill mirror', but small learned from") as told:
        cli._check_same(folder, learned, "small")
    assert way in str(told.value)
    cli._check_same(folder, "mesh --fill mirror", "small")


@pytest.mark.parametrize("opened", [cli._registered, lambda data, side: cli._faces(data, side=side)])
def test_frames_smaller_than_a_network_takes_are_refused(opened, tmp_path, sample):
    folder = a_folder(tmp_path / "frames", sample, {}, side=48)
    assert opened(folder, 48).frames.shape[1] == 48
    with pytest.raises(ValueError, match="frames of 48 pixels, and the network takes 64.*--size 64 or more"):
        opened(folder, 64)


def test_differences_and_drawn_sets_say_what_they_were_made_from(sample):
    few = sample.select(sample.manifest.subject == sample.manifest.subject[0])
    flat = few._replace(manifest=few.manifest.assign(registration="procrustes"))
    assert set(conditions.differences(few, "mean").manifest.registration) == {"mesh minus mean"}
    assert set(conditions.differences(flat, "au0").manifest.registration) == {"procrustes minus au0"}
    pairs = pd.DataFrame({"source_row": [1, 0], "target_row": [2, 3], "au": [12, 6], "intensity": [4, 2]})
    mixed = flat.manifest.assign(registration=["prnet", "procrustes", *flat.manifest.registration[2:]])
    made = protocol._labelled(pairs, few.manifest, mixed)
    assert made.registration.tolist() == ["procrustes", "prnet"] and made.AU12[0] == 4 and made.AU06[1] == 2
    assert made.subject.tolist() == [few.manifest.subject[0]] * 2
    older = protocol._labelled(pairs, few.manifest, few.manifest.drop(columns="registration"))
    pd.testing.assert_frame_equal(older, protocol._labelled(pairs, few.manifest, few.manifest))
    assert set(older.registration) == {"mesh"} and set(au_columns()) <= set(older)

"""Faces, differences and other registrations are never mixed: not in a training, not in its Valid part, not for a person."""
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from aufacs_nb.estimation.classifiers import train_classifiers
from aufacs_nb.estimation.estimator import AUEstimator
from aufacs_nb.estimation.personalization import (PersonalizationError, calibrated, personalize, personalize_all,
                                                  read_pictures)
from aufacs_nb.estimation.resampling import ResampledSet
from aufacs_nb.estimation.storage import AUClassifiers
from aufacs_nb.experiments.stages import evaluate
from aufacs_nb.facs import au_columns
from aufacs_nb.presets import WeightsError
from aufacs_nb.registration.collections import RegisteredFrames

FRAMES = np.full((12, 32, 32, 3), 128, np.uint8)


def table(registration):
    """Of twelve frames: two of each intensity, of two people."""
    labels = pd.DataFrame({name: np.repeat(np.arange(6.), 2) for name in au_columns()})
    own = labels.assign(au=12, intensity=np.repeat(np.arange(6), 2), subject=["A", "B"] * 6, valid=True, partition="Test",
                        source_row=np.arange(12), target_row=np.arange(12), synthetic=False)
    return own if registration is None else own.assign(registration=registration)


@pytest.mark.parametrize("learned, valid, said", [
    ("mesh", "mesh minus mean", "by 'mesh', those of Valid by 'mesh minus mean'"), ("mesh", "procrustes", "'procrustes'"),
    ("mesh minus au0", "mesh", "'mesh minus au0', those of Valid by 'mesh'"), (None, "prnet", "'mesh', .* 'prnet'"),
    (["mesh"] * 11 + ["prnet"], "mesh", "by mesh and prnet")])
def test_valid_is_registered_as_what_is_learned(learned, valid, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        train_classifiers(ResampledSet(FRAMES, table(learned)), FRAMES, table(valid), "tiny", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def small():
    return AUClassifiers.from_pretrained("small")


def of(classifiers, registration):
    """The same networks, said to have learned from other frames."""
    c = classifiers
    return AUClassifiers(c.models, c.preset, {**c.card, "registration": registration}, c.calibration, c.source, c.base)


@pytest.mark.parametrize("work", [
    lambda c: personalize(c, None, FRAMES[0]), lambda c: personalize_all(c, None, {"A": FRAMES[0]}),
    lambda c: calibrated(c, None, FRAMES[:1]), lambda c: read_pictures(c, None, FRAMES[0])])
def test_no_generator_makes_differences(small, work):
    with pytest.raises(PersonalizationError, match="learned from differences .mesh minus au0., and a generator makes faces"):
        work(of(small, "mesh minus au0"))


def test_photographs_are_no_differences_for_an_estimator(small, tmp_path):
    with pytest.raises(WeightsError, match="'mesh minus mean'"):
        AUEstimator(of(small, "mesh minus mean"))
    of(small, "mesh minus mean").save(tmp_path / "classifiers")
    with pytest.raises(WeightsError, match="'mesh minus mean'"):
        AUEstimator.from_pretrained(tmp_path)
    card = json.loads((tmp_path / "classifiers" / "card.json").read_text())
    assert card["registration"] == "mesh minus mean"
    shutil.rmtree(tmp_path / "classifiers")


@pytest.mark.parametrize("learned, given", [("mesh", "mesh minus mean"), ("mesh minus mean", "mesh"), ("mesh", "prnet"),
                                            ("procrustes", "mesh")])
def test_scores_are_of_frames_as_they_were_learned(small, learned, given):
    with pytest.raises(ValueError, match=f"registered by '{learned}', not '{given}'"):
        evaluate(of(small, learned), RegisteredFrames(FRAMES, table(given)), n=1)

"""Who makes a person's pictures: three generators by name, each with a calibration of the shipped classifiers."""
from hashlib import sha256

import numpy as np
import pytest
import torch
from safetensors import safe_open

from aufacs_nb.estimation.personalization import (OTHER_GENERATORS, PICTURE_MAKERS, PersonalizationError, calibrated,
                                                  fingerprint, personal_generator, personalize, pictures_by)
from aufacs_nb.estimation.estimator import AUEstimator
from aufacs_nb.estimation.storage import AUClassifiers
from aufacs_nb.experiments.stages import _fit_generators
from aufacs_nb.generation.runs import load_generator
from aufacs_nb.presets import ASSETS, get_preset


@pytest.fixture(scope="module")
def generic():
    """The shipped classifiers."""
    return AUClassifiers.from_pretrained("small")


@pytest.fixture(scope="module")
def photo(root):
    """One registered frame."""
    return np.array(np.load(root / "data_samples" / "registered" / "frames.npy", mmap_mode="r")[0])


def test_a_generator_is_chosen_by_name_and_the_presets_without_one(generic):
    assert tuple(personal_generator(name).preset.gen_arch for name in PICTURE_MAKERS) == PICTURE_MAKERS
    assert fingerprint(personal_generator("small", generic.preset)) == fingerprint(
        personal_generator(generic.preset.per_arch))


def test_small_takes_the_ratio_generator_and_a_folder_what_it_holds(generic, tmp_path, monkeypatch):
    assert generic.preset.per_arch == get_preset("small").per_arch == "ratio"
    assert personal_generator().preset.gen_arch == "ratio" and personal_generator().n_aus == len(generic.aus)
    assert personal_generator(ASSETS / "small" / "generator").preset.gen_arch == "ganimation", "it holds no other"
    monkeypatch.setattr("aufacs_nb.experiments.stages.fit_generator", lambda *_: "of the training sets")
    made, personal = _fit_generators(None, get_preset("small"), tmp_path, 0, False)
    assert made == "of the training sets" and personal.preset.gen_arch == "ratio"
    assert fingerprint(personal_generator(tmp_path, generic.preset)) == fingerprint(personal_generator("ratio"))


def test_a_person_saved_before_still_loads_and_says_whose_pictures_they_were(root, generic, photo):
    """They were made when `small` took flow: personalize without a name, and with ratio's."""
    flow, ratio = (AUEstimator.from_pretrained(root / "tests" / "data" / "persons" / name).classifiers
                   for name in ("flow", "ratio"))
    assert (pictures_by(flow), pictures_by(ratio), pictures_by(generic)) == ("flow", "ratio", None)
    again = personalize(generic, personal_generator("flow"), photo)
    assert pictures_by(again) == again.card["personal"]["generator"] == "flow"
    said = again.predict(photo[None])
    assert np.abs(flow.predict(photo[None]) - said).max() < 0.02 < np.abs(ratio.predict(photo[None]) - said).max()


def test_the_stored_calibrations_are_of_these_weights_and_of_the_others_by_name(generic):
    folder = ASSETS / "small" / "classifiers"
    with safe_open(folder / OTHER_GENERATORS, "numpy") as stored:
        facts, marks = stored.metadata(), set(stored.keys())
        values = [stored.get_tensor(mark) for mark in marks]
    assert facts["classifiers_sha256"] == sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    own = {generic.card["calibrated"]["generator"]}
    assert marks | own == {fingerprint(personal_generator(name)) for name in PICTURE_MAKERS} and not marks & own
    assert all(np.allclose(value.sum(-1), 1, atol=1e-3) and value.shape == (7, 6, 7, 6) for value in values)


def test_each_of_them_personalises_the_shipped_ones_and_those_made_from_them(generic, photo, tmp_path):
    last = lambda made: made.models[12].classifier[-1].weight
    flow, paper = (personalize(generic, personal_generator(name), photo, epochs=2) for name in ("flow", "ganimation"))
    assert not torch.equal(last(flow), last(paper))
    flow.save(tmp_path)
    again = personalize(AUClassifiers.from_pretrained(tmp_path), personal_generator("ratio"), photo, epochs=1)
    assert not torch.equal(last(again), last(flow))


def test_one_that_nobody_calibrated_for_is_refused_until_it_is(generic, photo):
    stargan = load_generator(arch="stargan")
    with pytest.raises(PersonalizationError, match="not calibrated for this generator"):
        personalize(generic, stargan, photo, epochs=1)
    personalize(calibrated(generic, stargan, photo[None]), stargan, photo, epochs=1)
    alone = AUClassifiers(generic.models, generic.preset, generic.card)  # nobody knows where these come from
    with pytest.raises(PersonalizationError, match="not calibrated for this generator"):
        personalize(alone, personal_generator("ratio"), photo, epochs=1)

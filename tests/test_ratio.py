"""The ratio generator and its training on a CPU, and photographs edited with it."""
import json
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.data import astronaut

from aufacs_nb import synthesize
from aufacs_nb.estimation import resampling
from aufacs_nb.facs import AU_NAMES, LabelError, au_columns, intensity_to_unit
from aufacs_nb.generation.photographs import (_hidden, Editor, au_vector, edit_film, edit_photograph, face_at,
                                              fit_drift, repair_open, steady_landmarks)
from aufacs_nb.generation.ratio import (RatioFlow, RatioValues, apply_change, canonical_sides, crisp_resize,
                                        edit_frames, load_ratio)
from aufacs_nb.generation.runs import load_generator
from aufacs_nb.presets import WeightsError
from aufacs_nb.registration.detection import FaceLandmarker, NoFaceError
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person

UNITS = (2, 12, 14)  # in the tests of the training


@pytest.fixture(scope="module")
def model():
    """The shipped generator with all its action units."""
    return load_ratio("medium", aus=None)


@pytest.fixture(scope="module")
def frame(root):
    """One registered frame, (1, S, S, 3)."""
    return np.array(np.load(root / "data_samples" / "registered" / "frames.npy", mmap_mode="r")[:1])


@pytest.fixture(scope="module")
def landmarker():
    """The detector."""
    return FaceLandmarker.from_pretrained()


@pytest.fixture(scope="module")
def photo():
    """A virtual person that no training saw, turned by 15 degrees, 300 px."""
    return render_person(sample_person(5_000_003), {}, yaw=15, size=300)


@pytest.fixture(scope="module")
def editor(photo, model, landmarker):
    """The photograph, registered."""
    return Editor(photo, model, landmarker=landmarker)


def labels(**aus):
    """A label vector of the shipped generator: AU26=5 → (18,)."""
    return au_vector(aus)


def apart(a, b):
    """Mean difference in grey levels."""
    return float(np.abs(a.astype(int) - b).mean())


# ---------------------------------------------------------------- the generator

def test_it_works_at_the_frames_own_size_and_asked_for_nothing_it_changes_little(model, frame):
    still, smile = (edit_frames(model, frame, row) for row in (labels(), labels(AU12=5)))
    assert smile.shape == frame.shape and smile.dtype == np.uint8
    assert apart(smile, frame) > 2 * apart(still, frame)


def test_it_is_called_like_the_other_generators(frame):
    model = load_ratio("medium")
    made = synthesize(model, frame, np.eye(7)[4])
    assert made.shape == (1, 128, 128, 3) and model.preset.gen_arch == "ratio" and model.n_aus == 7
    same = edit_frames(model, np.asarray(synthesize(model, frame, np.zeros(7))), np.zeros(7))
    assert apart(made, same) > 1, "it does what it is asked"


def test_seven_labels_are_columns_of_eighteen_and_the_others_are_zero():
    wide = load_ratio("medium").widen(torch.arange(1, 8)[None] / 10)
    assert wide.shape == (1, 18) and np.count_nonzero(wide) == 7 and float(wide.sum()) == pytest.approx(2.8)
    assert wide[0, list(AU_NAMES).index(14)] == pytest.approx(0.6)


def test_what_is_asked_and_what_is_shown_cancel(model, frame):
    asked = labels(AU4=3, AU12=2)[None]
    assert apart(edit_frames(model, frame, asked, sources=asked), edit_frames(model, frame, 0 * asked)) < 3
    image, mesh = torch.tensor(frame).permute(0, 3, 1, 2) / 255, torch.tensor(canonical_sides())[None]
    with torch.no_grad():
        change = model.change(crisp_resize(image, 128), mesh, *2 * [torch.tensor(asked)])
    assert change.prior_flow.abs().max() < 0.02, "the head model moves nothing but the points between the lips"


def test_a_mirrored_picture_gives_a_mirrored_change():
    torch.manual_seed(0)
    tiny = RatioFlow(RatioValues(aus=(12, 26), size=32, width=0.25), (12, 26))
    mesh, zero, asked = torch.tensor(canonical_sides())[None], torch.zeros(1, 2), torch.ones(1, 2)
    image = torch.rand(1, 3, 32, 32)
    plain = tiny.prior(mesh, zero, asked, 32)
    turned = tiny.prior(mesh, zero, asked, 32, torch.tensor([True]))
    assert torch.equal(turned[0][:, 0], -plain[0][:, 0].flip(-1)) and torch.equal(turned[0][:, 1], plain[0][:, 1].flip(-1))
    assert apply_change(image, tiny.change(image, mesh, zero, asked)).shape == image.shape


def test_an_outline_stays_sharp_when_a_frame_is_resized():
    frame = torch.zeros(1, 3, 14, 14)
    frame[:, :, :, 5:] = 0.5
    small = crisp_resize(frame, 8)
    assert all(min(abs(v), abs(v - 0.5)) < 1e-6 for v in small.unique().tolist())


def test_bad_labels_and_bad_weights_are_named(model, frame, tmp_path):
    with pytest.raises(LabelError, match="not in"):
        edit_frames(model, frame, labels(AU12=5) * 2)
    with pytest.raises(ValueError, match="one row, or one per frame"):
        edit_frames(model, frame, np.zeros((3, 18)))
    with pytest.raises(WeightsError, match="nowhere"):
        load_ratio("nowhere")
    (tmp_path / "card.json").write_text(json.dumps({"config": {"aus": [4]}}))
    (tmp_path / "weights.safetensors").write_bytes(b"half a file")
    with pytest.raises(WeightsError, match="not the weights of a ratio generator"):
        load_ratio(tmp_path)


# ---------------------------------------------------------------- photographs

def test_what_lies_outside_of_the_face_is_the_photograph(editor, photo):
    edited, at = editor({"AU26": 5, "AU04": 3}), editor.maps.window
    outside = np.ones(photo.shape[:2], bool)
    outside[at.y0:at.y1, at.x0:at.x1] = False
    assert (edited[outside] == photo[outside]).all() and apart(edited, photo) > 0.3
    assert (editor({}) == photo).all()


def test_it_comes_nearer_to_the_true_photograph_where_that_changes(editor, photo):
    for aus in ({26: 4}, {4: 5}, {12: 4, 6: 3}):
        truth = render_person(sample_person(5_000_003), aus, yaw=15, size=300).astype(int)
        error = lambda picture: np.abs(picture.astype(int) - truth).mean(-1)
        changed = error(photo) > 8
        assert error(editor(aus))[changed].mean() < 0.7 * error(photo)[changed].mean(), aus


def test_an_action_unit_leaves_the_rest_of_the_face_alone(editor, photo):
    difference = np.abs(editor({1: 5}).astype(int) - photo).mean(-1)
    mouth, brow = (editor.face.landmarks[k, :2].astype(int) for k in (13, 107))
    around = lambda at: difference[at[1] - 6:at[1] + 6, at[0] - 6:at[0] + 6].mean()
    assert around(mouth) == 0 and around(brow) > 2


def test_teeth_stay_when_the_jaw_drops(model, landmarker):
    photo = astronaut()
    editor = Editor(photo, model, landmarker=landmarker)
    change = np.abs(editor({"AU26": 4}).astype(int) - photo).mean(-1)
    points = editor.face.landmarks[:, :2]
    x, y = ((points[13] + points[14]) / 2).astype(int)  # between the lips
    assert change[y - 1:y + 2, x - 4:x + 5].mean() < 3, "upper teeth belong to the skull"
    x, y = points[17].astype(int)  # below the lower lip
    assert change[y - 2:y + 6, x - 6:x + 7].mean() > 10


def test_lids_do_not_shine(editor):
    parts, shape = editor.maps.parts, editor.maps.parts.mouth.shape
    light = np.ones((3, *shape), np.float32)
    shift, alpha, lit = repair_open(parts, np.zeros((2, *shape)), np.zeros((1, *shape)), light, editor.maps.window.step)
    lids = parts.lids > 0.6
    assert lids.any() and (parts.cells + lit)[:, lids].max() <= max(parts.skin.max(), parts.cells.max()) + 1e-5
    assert (lit[:, parts.lids < 1e-4] == 1).mean() > 0.99 and not alpha.any() and not shift.any()


def test_the_drift_of_the_whole_face_is_found_and_nothing_else():
    mesh, still = torch.tensor(canonical_sides()), torch.zeros(468)
    flow = torch.zeros(1, 2, 64, 64)
    flow[:, 1] = 0.01
    assert fit_drift(flow, mesh, still).tolist() == pytest.approx([0, 0.01, 0, 0], abs=1e-3)
    assert fit_drift(flow, mesh, still + 1).abs().max() < 1e-3, "where all skin moves, nothing is known of the head"


def test_a_large_photograph_is_edited_like_a_small_one(photo, model, landmarker):
    large = photo.repeat(5, 0).repeat(5, 1)
    big, small = (edit_photograph(each, {26: 4}, model, landmarker=landmarker) for each in (large, photo))
    assert big.shape == large.shape and apart(big.reshape(300, 5, 300, 5, 3).mean((1, 3)), small) < 1.5


def test_two_faces_need_a_choice_and_a_turned_head_a_warning(photo, model, landmarker):
    twins = np.concatenate([photo, photo], 1)
    with pytest.raises(ValueError, match="choose one with which="):
        edit_photograph(twins, {12: 3}, model, landmarker=landmarker)
    halves = [(edit_photograph(twins, {12: 3}, model, which=k, landmarker=landmarker) != twins).any((0, 2))
              for k in (0, 1)]
    assert not (halves[0] & halves[1]).any() and all(half.any() for half in halves)
    turned = render_person(sample_person(5_000_003), {}, yaw=50, size=300)
    with pytest.warns(UserWarning, match="did not see"):
        Editor(turned, model, landmarker=landmarker)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Editor(photo, model, landmarker=landmarker)
    assert _hidden(50, 0) == "the far cheek, eye and corner of the mouth" and _hidden(0, 50) == "mouth and chin"
    assert _hidden(-50, -50).endswith("corner of the mouth and brows and forehead")


def test_bad_labels_and_other_generators_are_refused(photo, model, landmarker):
    for aus, said in (({"AU12": 6}, "outside 0–5"), ({"AU3": 1}, "no action unit"), ({"smile": 1}, "no action unit"),
                      ({"AU12": 4, 12: 2}, "AU12 is named twice")):
        with pytest.raises(LabelError, match=said):
            edit_photograph(photo, aus, model, landmarker=landmarker)
    with pytest.raises(ValueError, match="load_ratio"):
        edit_photograph(photo, {12: 3}, load_generator("small"), landmarker=landmarker)


def test_a_film_is_edited_frame_by_frame_and_a_lost_face_stays(photo, model, landmarker):
    grey = np.full_like(photo, 120)
    film = list(edit_film([(0.0, photo), (0.1, photo), (0.2, grey)], lambda t: {26: 40 * t}, model,
                          landmarker=landmarker))
    assert [time for time, _ in film] == [0.0, 0.1, 0.2]
    assert (film[0][1] == photo).all() and apart(film[1][1], photo) > 0.3 and (film[2][1] == grey).all()


def test_trembling_landmarks_are_steadied_and_a_jump_stays_where_it_is(editor):
    true = np.repeat(editor.face.landmarks[None], 9, 0)
    true[5:, :, 0] += 30
    found = true + np.random.default_rng(0).normal(0, 0.3, true.shape)
    error = lambda points, at: np.abs(points - true[at])[:, :2].mean()
    for at, most in ((2, 0.75), (4, 1.05), (5, 1.05), (6, 1.05), (7, 0.75)):
        assert error(steady_landmarks(found, at), at) < most * error(found[at], at), at


def test_a_film_is_steadied_and_other_faces_are_left_alone(photo, model, landmarker):
    twins = [(k / 25, np.concatenate([photo, photo], 1)) for k in range(3)]
    seen = []
    film = list(edit_film(twins, {26: 4}, model, lambda faces: seen.append(faces) or max(faces, key=lambda f: f.box[0]),
                          landmarker=landmarker))
    assert len(seen) == 1 and len(seen[0]) == 2, "asked once, of all faces"
    assert all((image[:, :300] == photo).all() and (image[:, 300:] != photo).any() for _, image in film)


def test_a_film_warns_once_and_also_when_the_head_turns_late(photo, model, landmarker):
    turned = render_person(sample_person(5_000_003), {}, yaw=50, size=300)
    with pytest.warns(UserWarning, match="did not see") as said:
        list(edit_film([(0.0, photo), (1.0, turned), (1.1, turned)], {4: 3}, model, landmarker=landmarker))
    assert len([each for each in said if "did not see" in str(each.message)]) == 1


def test_the_face_at_a_place(editor):
    face = editor.face
    x, y = face.box.reshape(2, 2).mean(0)
    assert face_at([face], x, y) is face
    with pytest.raises(NoFaceError, match="no face at"):
        face_at([face], 1, 1)


# ---------------------------------------------------------------- training

@pytest.fixture(scope="module")
def training(root):
    """tools/ratio_training.py."""
    sys.path.insert(0, str(root))
    import tools.ratio_training

    yield tools.ratio_training
    sys.path.remove(str(root))


def people(numbers, seed=0):
    """Frames of invented people: one instant of four variants each, 32 px; AU12 darkens the middle."""
    random, rows = np.random.default_rng(seed), []
    mesh = np.c_[canonical_sides() * 32, np.zeros(468)].astype(np.float16)
    for person in numbers:
        face = np.zeros((32, 32, 3), np.uint8)
        face[4:28, 6:26] = random.integers(90, 200, (24, 20, 3))
        for level in range(4):
            shown = face.copy()
            shown[12:20, 10:22] = shown[12:20, 10:22] * (1 - 0.2 * level)
            label = np.zeros(len(UNITS), np.float32)
            label[UNITS.index(12)] = level / 5
            rows.append((shown, label, person, 0, level, mesh))
    columns = [np.array(column) for column in zip(*rows)]
    return dict(zip(("frames", "labels", "person", "instant", "variant", "vertices"), columns)) | {
        "names": np.array(UNITS), "held_out": np.array([0])}


@pytest.fixture(scope="module")
def trainer(training):
    """A function that makes a small trainer on five people, of whom the first is held out; seed 0 unless given."""
    config = training.replace(training.config_for(32), batch=4, warmup=1)

    def make(seed=0):
        made = training.Trainer(people(range(5)), config, "cpu", seed, lambda *_: None)
        made.prepare(0.1)
        return made
    return make


def test_a_training_that_was_stopped_takes_the_same_next_step(training, trainer, tmp_path):
    first, again = trainer(), trainer()
    for _ in range(2):
        first.step(0.1)
    training.save_progress(tmp_path, first, 7.0)
    assert training.load_progress(tmp_path, again) == 7.0 and again.steps == 2
    one, two = first.step(0.2), again.step(0.2)
    assert {k: float(v) for k, v in one.items()} == pytest.approx({k: float(v) for k, v in two.items()}, rel=1e-4)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(first.average.mean, again.average.mean))
    with pytest.raises(ValueError, match="seed 0, not 1"):
        training.load_progress(tmp_path, trainer(seed=1))


def test_people_join_while_it_trains_but_not_those_held_out(trainer):
    running, new = trainer(), [people([0, 5, 6])]
    running.grow(lambda: new.pop() if new else None)
    running.grow(lambda: new.pop() if new else None)
    assert set(running.bank.person) == {1, 2, 3, 4, 5, 6} and set(running.test.person) == {0}
    assert np.isfinite(float(sum(running.step(0.5).values())))


def test_a_balanced_set_tells_it_what_each_source_shows(monkeypatch):
    told, frames = [], np.zeros((3, 32, 32, 3), np.uint8)
    table = pd.DataFrame(0., index=range(3), columns=au_columns()).assign(
        AU06=[5, 2.5, 0], AU12=[0, 3, 5], subject="A", partition="Train")

    def edit(network, some, targets, vertices, shown, batch):
        told.append(shown)
        return some

    monkeypatch.setattr(resampling, "edit_frames", edit)
    with warnings.catch_warnings(action="ignore"):
        made = resampling.semantic_resample(frames, table, load_ratio(), (12,), per_intensity=2, seed=0, progress=False)
    sources = made.manifest.source_row.to_numpy()
    assert set(sources) == {0}  # the one frame without AU12
    assert np.allclose(np.concatenate(told), intensity_to_unit(table[au_columns()].to_numpy()[sources]))
    assert np.concatenate(told).max() == 1


def test_what_was_trained_can_be_loaded_and_trained_on(training, trainer, tmp_path):
    card = training.train(people(range(3)), 1.0, tmp_path, "cpu", log=lambda *_: None,
                          config=training.replace(training.config_for(32), batch=4))
    model = load_ratio(tmp_path, aus=None)
    assert card["finished"] and model.card["people"] == 2 and model.config.aus == UNITS
    assert edit_frames(model, people([0])["frames"][:1], np.zeros(3)).shape == (1, 32, 32, 3)
    again = trainer()
    again.prepare(0.1, start=tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(again.model.parameters(), model.parameters()))


def test_pairs_are_of_one_instant_and_weak_units_are_drawn_more_often(training):
    frames = people(range(6))
    frames["labels"][3::4, UNITS.index(14)] = 1.0  # the last variant of each shows AU14
    bank = training.PairBank(frames, np.arange(24), 32, "cpu", (14,), 4.0)
    bank.add(training.PairBank(people(range(6, 8)), np.arange(8), 32, "cpu", (14,), 4.0))
    source, target = bank.draw(4000, torch.Generator().manual_seed(0))
    assert (bank.group[source] == bank.group[target]).all() and set(bank.group[source]) == set(range(8))
    aimed = target[bank.group[target] < 6]
    share = float(((aimed % 4) == 3).float().mean() / ((aimed % 4) == 1).float().mean())
    assert 3.5 < share < 6.5, "five times as often as a variant that shows nothing weak"


def test_faint_pairs_and_the_skin_that_is_asked_for_weigh_more(training):
    bank = training.PairBank(people(range(3)), np.arange(12), 32, "cpu")
    batch = bank.take(torch.tensor([0, 0]), torch.tensor([1, 3]))
    regions = torch.zeros(3, 32, 32)
    regions[UNITS.index(12), 4:8] = 1
    config = training.RatioConfig(size=32)
    plain, whole = (training.weigh(batch, regions, training.replace(config, **change)) for change in (
        training.AS_SHIPPED, {}))
    assert torch.equal(plain, training.pair_weight(batch.source, batch.target, config.changed_weight))
    region = (whole / whole[:, :, 26:27, 15:16])[:, 0, 6, 15] / (plain / plain[:, :, 26:27, 15:16])[:, 0, 6, 15]
    assert region.tolist() == pytest.approx([1.6, 2.8], rel=1e-3), "1 + 3 times the change of the label"
    assert whole[0, 0, 26, 15] > whole[1, 0, 26, 15]


def test_a_set_is_edited_by_the_difference_to_what_its_sources_show():
    from aufacs_nb.databases import sample_data
    from aufacs_nb.experiments.protocol import _edited, _with_meshes
    from aufacs_nb.facs import au_columns, intensity_to_unit
    from aufacs_nb.registration.collections import open_registered
    from aufacs_nb.tensors import resize_frames

    part = _with_meshes(open_registered(sample_data("registered")), None, 96, True)  # as many pixels as they have
    part = part._replace(frames=np.asarray(resize_frames(part.frames, 128)), vertices=part.vertices * (128 / 96))
    levels = part.manifest[au_columns()].to_numpy(float)
    rows = np.argsort(levels.sum(1))[-4:]  # those that show most
    change = lambda labels: np.abs(_edited(load_ratio(), part, rows, labels) - part.frames[rows].astype(float)).mean((1, 2, 3))
    assert (change(intensity_to_unit(levels[rows])) < 0.6 * change(np.zeros((4, 7)))).all()

"""The stages of single experiments, by hand on the sample and on made-up tables; the claims that are no estimates'."""
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import save_file

from aufacs_nb.estimation.resampling import ResampledSet, real_set
from aufacs_nb.estimation.storage import AUClassifiers
from aufacs_nb.estimation.trunk import SlimVGG, seeded
from aufacs_nb.experiments import tables, variants
from aufacs_nb.experiments.claims import drawn_difference, interval_of
from aufacs_nb.experiments.conditions import differences, photographs
from aufacs_nb.experiments.graph import GraphError, Stage, make, run
from aufacs_nb.experiments.protocol import START_VALUES, preset_values
from aufacs_nb.experiments.stages import partition_frames
from aufacs_nb.experiments.variants import FOLDS, PaperChains
from aufacs_nb.facs import AU_SETS, AUS, FERA_POSES, au_columns
from aufacs_nb.registration.collections import RegisteredFrames, open_registered, sample_registered
from aufacs_nb.registration.planar import align_face

TINY = PaperChains("tiny")


@pytest.fixture(scope="module")
def sample():
    """The sample database, registered."""
    return sample_registered()


@pytest.fixture
def work(sample, tmp_path):
    """A folder in which the sample lies as a stage `frames` leaves it, with its meshes."""
    variants._keep(sample, tmp_path / "frames", tmp_path)
    np.save(tmp_path / "frames" / "vertices.npy", sample.vertices)
    return tmp_path


def fresh(work, name):
    """A new folder for what a stage makes."""
    (work / name).mkdir()
    return work / name


@pytest.mark.parametrize("method", ["au0", "mean"])
def test_differences_of_a_set_of_real_frames_are_those_of_the_frames(sample, work, method):
    train = partition_frames(sample, "Train", 96)
    real = real_set(train.frames, train.manifest, (6, 12), 2)
    real.save(work / "set")
    variants._less_reference(fresh(work, "less"), method, work / "set", work)
    made = ResampledSet.open(work / "less")
    np.testing.assert_array_equal(made.frames, differences(train, method).frames[real.manifest.source_row])
    pd.testing.assert_frame_equal(made.manifest, real.manifest)


def test_a_face_that_is_turned_to_the_front_is_only_aligned(sample):
    frame, mesh = sample.frames[5], np.asarray(sample.vertices[5], float)
    aligned, turned = align_face(frame, mesh, 96), variants._turned(frame, mesh, 6, 96)
    assert FERA_POSES[6] == (0, 0) and (turned == aligned).mean() > 0.97
    assert (variants._turned(frame, mesh, 1, 96) == aligned).mean() < 0.9


def test_a_turned_set_has_as_many_frames_of_each_pose(sample, work):
    train = partition_frames(sample, "Train", 96)
    real_set(train.frames, train.manifest, (12,), 3).save(work / "set")
    variants._rotated(fresh(work, "turned"), 1, 48, 0, work / "set", work)
    made = ResampledSet.open(work / "turned")
    assert made.frames.shape == (6 * len(FERA_POSES), 48, 48, 3)
    assert set(made.manifest.groupby(["au", "intensity", "pose"]).size()) == {1}


def disfa_like(sample, work):
    """The sample as a database that does not code AU10 and AU14."""
    table = sample.manifest.assign(database="disfa", AU10=np.nan, AU14=np.nan)
    variants._keep(RegisteredFrames(sample.frames, table), work / "disfa" / "frames", work)
    return table


def test_folds_divide_people_and_fill_uncoded_aus_in_train_alone(sample, work):
    disfa_like(sample, work)
    AUClassifiers.from_pretrained("small").save(work / "known" / "classifiers")
    tested = []
    for number in range(FOLDS):
        for way, known in (("zero", {}), ("estimated", {"known": work / "known"})):
            variants._fold(fresh(work, f"{way}{number}"), number, 0, work / "disfa", **known)
            table = open_registered(work / f"{way}{number}" / "frames").manifest
            people = table.groupby("partition").subject.agg(set)
            assert sum(map(len, people)) == len(set.union(*people)) == 12
            learns = table.partition == "Train"
            assert (table.AU10.notna() == learns).all() and (table.AU12 == sample.manifest.AU12).all()
            filled = table.loc[learns, ["AU10", "AU14"]].to_numpy()
            assert (filled == 0).all() if way == "zero" else filled.max() > 0 and (filled % 1 == 0).all()
        tested += people["Test"]
    assert sorted(tested) == sorted(set(sample.manifest.subject)), "everybody is tested once"


def test_same_domain_networks_are_of_coded_aus_and_never_see_their_test_people():
    for database in ("disfa", "unbc"):
        for stage in TINY.same_domain(database):
            coded = {f"au{au:02}" for au in AU_SETS[database] if au in AUS}
            assert {name for name in stage.needs if name.startswith("au")} == coded
            assert all(stage.needs[name].needs["frames"].key == stage.needs["frames"].key for name in coded)


def test_the_critic_says_intensities_and_a_subtraction_is_one(sample, work):
    make(TINY.generator().said(), work / "generator", {"frames": work})
    variants._critic(fresh(work, "critic"), "D_exp", "Test", work, work / "generator")
    said = [f"{name}_r" for name in au_columns()]
    table = pd.read_parquet(work / "critic" / "estimates.parquet")
    test = partition_frames(sample, "Test", 64)
    assert len(table) == len(test.manifest) - test.manifest.subject.nunique()
    assert table[said].stack().between(0, 5).all() and table[said].notna().all(axis=None)
    AUClassifiers.from_pretrained("small").save(work / "known" / "classifiers")
    variants._subtracted(fresh(work, "less"), "less neutral", "Test", work, known=work / "known")
    plain = AUClassifiers.from_pretrained("small").predict(test.frames)
    shots = photographs(test.manifest)
    calm = plain[[shots[name] for name in test.manifest.subject]]
    scored = np.setdiff1d(np.arange(len(plain)), list(shots.values()))
    found = pd.read_parquet(work / "less" / "estimates.parquet")[said].to_numpy()
    np.testing.assert_allclose(found, np.clip(plain - calm, 0, 5)[scored], atol=1e-5)


def test_a_generator_is_no_better_than_itself(work):
    values = preset_values(TINY.protocol, START_VALUES)
    with seeded(0):
        start = SlimVGG(values["cls_size"], values["cls_dim"])
    (work / "start").mkdir()
    save_file(start.features.state_dict(), work / "start" / "start.safetensors")
    same = "lambda/ids_100"
    variants._quality(fresh(work, "quality"), values, 5, 0, work, work / "start", idiosyncratic=same, without=same)
    drawn = pd.read_csv(work / "quality" / "fid.csv").pivot(index="draw", columns="way", values="fid")
    assert len(drawn) == 6 and (drawn.idiosyncratic == drawn.without).all() and (drawn > 0).all(axis=None)
    ssim = pd.read_parquet(work / "quality" / "ssim.parquet")
    one, other = (ssim[ssim.way == way].ssim.to_numpy() for way in ("idiosyncratic", "without"))
    assert (one == other).all() and 0.3 < one.mean() < 1


def test_the_frechet_distance_of_one_dimension_is_the_closed_form():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, (20000, 1)), rng.normal(2, 3, (20000, 1))
    assert variants._frechet(one.astype(np.float32), other.astype(np.float32)) == pytest.approx(2 ** 2 + (3 - 1) ** 2, rel=.05)


def test_the_loss_away_from_the_front_is_the_difference_of_two_scores():
    rng = np.random.default_rng(1)
    labels = np.column_stack([rng.integers(0, 6, (900, 2)), np.arange(900) % 9 == 5]).astype(float)
    sure, noise = labels[:, :2] * 2 + 1, rng.normal(size=(900, 2))
    assert tables._loss_of_score(labels, sure) == pytest.approx(0, abs=1e-9)
    front = labels[:, -1:] == 1
    assert tables._loss_of_score(labels, np.where(front, labels[:, :2], noise)) == pytest.approx(1, abs=0.1)
    assert tables._loss_of_score(labels, np.where(front, noise, labels[:, :2])) == pytest.approx(-1, abs=0.3)


def test_a_difference_per_person_is_drawn_over_people():
    change = np.random.default_rng(2).normal(0.4, 1, 100)
    found = drawn_difference(np.zeros(100), change)
    half = 1.96 * change.std() / 10
    assert found.value == pytest.approx(change.mean()) and found.low == pytest.approx(change.mean() - half, abs=0.05)
    assert found.high == pytest.approx(change.mean() + half, abs=0.05)
    with_gap = drawn_difference([0, 0, np.nan], [1, 3, 9])
    assert (with_gap.value, with_gap.low, with_gap.high) == (2, 1, 3), "who has one number alone is left out"
    assert np.isnan(drawn_difference([0], [1]).low), "one person gives no interval"
    assert interval_of([7, *range(101)]) == (7, 2.5, 97.5)


TOY = '''
def count(out, n):
    "Write n."
    (out / "n.txt").write_text(str(n))

def double(out, first):
    "Twice what was written."
    (out / "n.txt").write_text(str(2 * int((first / "n.txt").read_text())))
'''


def test_what_only_finished_stages_need_is_not_made_again(tmp_path, monkeypatch):
    (tmp_path / "countings.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    large, root = Stage("count", "countings:count", dict(n=4)), tmp_path / "runs"
    done = Stage("double", "countings:double", needs=dict(first=large))
    later = Stage("again", "countings:double", needs=dict(first=done))
    (folder,) = run([done], root, progress=False)
    shutil.rmtree(large.folder(root))
    assert run([done], root, progress=False) == [folder] and not large.folder(root).exists()
    (last,) = run([later], root, progress=False)
    assert (last / "n.txt").read_text() == "16" and not large.folder(root).exists()
    fresh_one = Stage("other", "countings:double", dict(), dict(first=large), 2)
    run([fresh_one], root, progress=False)
    assert large.folder(root).exists(), "a stage that is not there needs it"
    assert json.loads((large.folder(root) / "stage.json").read_text())["params"] == {"n": 4}


def test_a_stage_that_fails_is_named_and_its_needs_stay(tmp_path, monkeypatch):
    (tmp_path / "countings2.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    first = Stage("count", "countings2:count", dict(n="many"))
    broken = Stage("double", "countings2:double", needs=dict(first=first))
    with pytest.raises(GraphError, match="ValueError"):
        run([broken], tmp_path / "runs", progress=False)
    assert first.folder(tmp_path / "runs").exists()

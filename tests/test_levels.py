"""What an intensity means: people whom no reader knows show everything, and the tables say what a reader gets wrong."""
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from aufacs_nb.facs import AU_SETS, au_columns
from aufacs_nb.simulation.time_courses import ALL_AUS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # tools/ is no package of the project
from tools import measure_levels as tool  # noqa: E402


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Intervals from few draws."""
    monkeypatch.setattr(tool, "draw_counts", partial(tool.draw_counts, n=60))


def truth_of(number):
    """True levels (n, 18) of a person's photographs."""
    return np.array([[shot.levels[au] for au in ALL_AUS] for shot in tool.shots_of(number)], float)


def read(number, answer, lost=()):
    """The rows of a person by a reader that says `answer(truth, shots, has_zero)`; frames `lost` show no face."""
    shots, truth = tool.shots_of(number), truth_of(number)
    found = np.setdiff1d(np.arange(len(shots)), lost)

    def predict(vertices, size, zero=None, pictures=None):
        assert len(vertices) == len(pictures) == len(found) and size == tool.MESH
        if zero is not None:
            assert zero == found[0]      # what was said of the first neutral photograph
        return answer(truth, shots, zero is not None)[found]

    reader = SimpleNamespace(said=lambda vertices, size, pictures=None: found, predict=predict)
    shard = {"found": found, "vertices": np.zeros((len(found), 1)), "pictures": np.zeros((len(found), 1)),
             "melanin": .2 + .15 * (number % 5), "age": 20. + 12 * (number % 5), "sex": float(number % 2)}
    return tool.read_person(reader, number, shard)


def people(answer, numbers=range(6)):
    """The rows of several people."""
    return pd.concat([read(number, answer) for number in numbers], ignore_index=True)


def test_everybody_shows_every_level_alone_and_all_together_in_company():
    alone, company = set(), set()
    for number in range(3):
        shots = tool.shots_of(number)
        assert shots == tool.shots_of(number)
        active = [{au: level for au, level in shot.levels.items() if level} for shot in shots]
        own = [levels for levels, shot in zip(active, shots) if shot.kind == "alone"]
        assert all({au: level}.items() <= levels.items() and set(levels) <= {au, 25}
                   for levels, (au, level) in zip(own, [(au, level) for au in ALL_AUS for level in range(1, 6)]))
        alone |= {pair for levels in own for pair in levels.items()}
        company |= {pair for levels, shot in zip(active, shots) if shot.kind == "company" for pair in levels.items()}
        assert not any(levels for levels, shot in zip(active, shots) if shot.kind in ("rest", "neutral"))
    every = {(au, level) for au in ALL_AUS for level in range(1, 6)}
    assert alone == every == company


def test_people_are_none_of_training_and_their_neutral_light_is_not_used_again():
    assert tool.FIRST > 80 * 1_000_003   # people of seed s are numbered from s * 1,000,003 on
    for number in (0, tool.PEOPLE):
        shots = tool.shots_of(number)
        assert [shot.kind for shot in shots[:2]] == ["neutral"] * 2
        assert not {shot.scene for shot in shots[:2]} & {shot.scene for shot in shots[2:]}


def test_conditions_repeat_the_same_moments_within_their_bins():
    shots = [shot for shot in tool.shots_of(1) if shot.kind == "moments"]
    straight = [shot for shot in shots if shot.name == tool.STRAIGHT]
    for factor, name in tool.CONDITIONS:
        own = [shot for shot in shots if (shot.factor, shot.name) == (factor, name)]
        assert [(shot.levels, shot.speech, shot.sides, shot.scene) for shot in own] == [
            (shot.levels, shot.speech, shot.sides, shot.scene) for shot in straight]
        yaw, pitch = (np.abs([shot.head[axis] for shot in own]) for axis in (0, 1))
        for axis, angles in (("yaw", yaw), ("pitch", pitch)):
            low, high = tool.BINS[name if factor == axis else "0-10"]
            assert low <= angles.min() and angles.max() <= high
        assert {shot.before for shot in own} == {name if name in tool.BEFORE else ""}
        assert {shot.light for shot in own} == {name if factor == "light" else "wide"}
        assert {bool(np.hypot(*shot.smear)) for shot in own} == {name == "smear"}


def test_the_zero_is_that_of_the_first_neutral_photograph_and_lost_faces_are_gaps():
    rows = read(0, lambda truth, shots, zero: truth + 1. * zero, lost=(0, 5))
    assert len(rows) == len(tool.shots_of(0)) - 2 and rows["none AU01"].isna().sum() == 1   # frame 0 is no row
    kept = rows[rows["none AU01"].notna()]
    np.testing.assert_allclose(tool.values_of(kept, "photograph"), tool.values_of(kept, "true") + 1)


def test_levels_of_a_reader_that_shrinks_and_reads_people_apart():
    def answer(truth, shots, zero):
        return .5 * truth + (0 if zero else (shots[0].gaze[0] > 0))

    table = tool.level_table(people(answer)).set_index(["zero", "context", "au", "level"])
    with_photo = table.loc["photograph"].dropna()
    np.testing.assert_allclose(with_photo["mean"], .5 * with_photo.index.get_level_values("level"))
    np.testing.assert_allclose(with_photo.p10, with_photo.p90)
    np.testing.assert_allclose(with_photo["mean low"], with_photo["mean high"])
    without = table.loc[("none", "alone", "AU12", 3)]
    share = np.mean([tool.shots_of(number)[0].gaze[0] > 0 for number in range(6)])
    assert without.frames == 6 and without["mean"] == pytest.approx(1.5 + share)
    assert without["mean low"] < without["mean"] < without["mean high"]


def test_rest_counts_faces_below_the_goal_on_each_and_on_all():
    def answer(truth, shots, zero):
        read = truth.copy()
        rest = [k for k, shot in enumerate(shots) if shot.kind == "rest"]
        read[rest[:2], 0], read[rest[1:4], 1] = .6, .5   # AU1 in two frames of six, AU2 in three, one of both
        return read

    assert tool.RESTS == 6
    table = tool.rest_table(people(answer)).set_index(["zero", "au"]).below
    assert table["none"][["AU01", "AU02", "all"]].tolist() == pytest.approx([4 / 6, 3 / 6, 2 / 6])
    assert table["photograph", "AU43"] == 1


def test_failures_are_found_where_they_are_and_nowhere_else():
    rng = np.random.default_rng(0)

    def answer(truth, shots, zero):
        dark = np.array([shot.name == "dark" for shot in shots])[:, None]
        return np.where(dark, rng.uniform(0, 5, truth.shape), truth)

    table = tool.failure_table(people(answer)).query("au == 'mean' and zero == 'photograph'")
    table = table.set_index(["factor", "bin"]).sort_index()
    dark = table.loc[("light", "dark")]
    assert dark["icc change high"] < -.3 and dark["mae change low"] > .5
    other = table.loc[["yaw", "pitch", "before the face"]]
    np.testing.assert_allclose(other.icc, 1)
    np.testing.assert_allclose(other["icc change"], 0, atol=1e-9)
    for axis in ("yaw", "pitch"):   # straight frames stand for both
        assert table.loc[(axis, "0-10"), "frames"] == 6 * tool.MOMENTS
    assert all(table.loc[trait].people.sum() == 6 for trait in ("skin", "age", "sex"))


def test_faces_that_are_lost_count_as_not_found():
    lost = [k for k, shot in enumerate(tool.shots_of(0)) if shot.name == "mug"]
    rows = pd.concat([read(0, lambda truth, shots, zero: truth, lost), read(1, lambda truth, shots, zero: truth)])
    table = tool.failure_table(rows).query("au == 'mean' and zero == 'none'").set_index("bin")
    assert table.found["mug"] == .5 and table.found["microphone"] == 1


def test_prototypes_lead_or_do_not():
    values = np.zeros((2, 18))
    values[:, [ALL_AUS.index(6), ALL_AUS.index(12)]] = 3, 4
    values[1, ALL_AUS.index(10)] = 5
    scores = tool.emotion_scores(values, "joy")
    assert scores["members lead"].tolist() == [1, .5] and scores["all three"].tolist() == [True, False]
    table = tool.emotion_table(people(lambda truth, shots, zero: truth, [tool.PEOPLE, tool.PEOPLE + 1]))
    table = table.set_index(["emotion", "levels", "zero", "what"]).value
    assert table["surprise", "D", "photograph", "AU05"] == 4 and table["joy", "CDE", "none", "AU12"] == 4
    assert all(table[name, "CDE", "none", "members lead"] == 1 for name in tool.EMOTIONS)
    assert table["joy", "CDE", "none", "all three"] == 1


def test_layouts_take_the_photograph_from_other_light_and_the_clip_from_calm_frames():
    light, rest = np.array([0, 0, 1, 1]), np.array([True, False, True, False])
    said = np.outer([1., 5, 2, 6], np.ones(18))
    reader = SimpleNamespace(aus=ALL_AUS, clip_aus=(1,), said=lambda vertices, size, pictures: said[pictures],
                             predict=lambda vertices, size, zero=None, pictures=None:
                             said[pictures] - (0 if zero is None else np.nan_to_num(zero)))
    shard = {"vertices": np.zeros((4, 1)), "pictures": np.arange(4), "subject": np.array(["a"] * 4), "light": light,
             "rest": rest}
    ways = tool.layout_ways(reader, shard)
    np.testing.assert_allclose(ways["photograph"][:, 0], [1 - 2, 5 - 2, 2 - 1, 6 - 1])
    np.testing.assert_allclose(ways["clip"][:, :2], [[0, 1], [4, 5], [1, 2], [5, 6]])
    coded = tool.as_coded(np.full((1, 18), 4.), AU_SETS["unbc"], "unbc")
    assert coded[0].tolist() == [4.] * 9 + [1.]


def test_the_stored_tables_are_whole():
    folder = ROOT / "data_samples" / "results"
    if not (folder / "levels.csv").is_file():
        pytest.skip("levels.csv is not there: run tools/measure_levels.py")
    levels = pd.read_csv(folder / "levels.csv")
    assert set(levels.au) == set(au_columns(ALL_AUS)) and set(levels.level) == set(range(6))
    assert (levels.query("context == 'alone' and level > 0 and au != 'AU25'").frames >= 60).all()
    failures = pd.read_csv(folder / "levels_failures.csv")
    known = failures[failures.icc.notna()]
    assert ((known["icc low"] <= known.icc) & (known.icc <= known["icc high"])).mean() > .97
    layouts = pd.read_csv(folder / "levels_layouts.csv")
    assert {database: set(own.au) - {"mean"} for database, own in layouts.groupby("database")} == {
        database: set(au_columns(AU_SETS[database])) for database in ("disfa", "unbc")}
    assert sum((folder / f"{name}.csv").stat().st_size for name in (
        "levels", "levels_rest", "levels_failures", "levels_layouts", "levels_emotions", "levels_run")) < 300_000

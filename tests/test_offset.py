"""Is a gain an offset? Shifts, slopes and the order of frames are told apart, and the stored comparison is whole."""
import numpy as np
import pandas as pd
import pytest

from aufacs_nb.evaluation.scores import icc_3_1
from aufacs_nb.experiments.offset import (WAY_SCORES, change_moments, change_shares, line_alone, person_moments,
                                          score_ways, share_of_gain, shift_alone)
from aufacs_nb.experiments.results import stored
from test_style import ROOT
from tools import compare_zeros

STORED = ROOT / "data_samples" / "results" / "offset.csv"
AUS = (4, 12)


def drawn(people=6, seed=0):
    """Labels, generic estimates with an error of each person, and subjects; people have different numbers of frames."""
    rng = np.random.default_rng(seed)
    who = np.repeat([f"p{k}" for k in range(people)], rng.integers(10, 30, people))
    labels = rng.integers(0, 6, (len(who), 2)).astype(float)
    number = np.unique(who, return_inverse=True)[1]
    return labels, 0.6 * labels + rng.normal(0, 1, (people, 2))[number] + rng.normal(0, 0.5, labels.shape), who


def values(table):
    """A table of intervals as plain numbers."""
    return table.map(lambda score: score.value).astype(float)


def test_scores_of_moments_are_those_of_the_frames():
    labels, said, who = drawn()
    row = values(score_ways(person_moments(labels, {"it": said}, who, AUS), n=5)).loc["it"]
    assert row.ICC == pytest.approx(np.mean([icc_3_1(y, x) for y, x in zip(labels.T, said.T)]))
    assert row["mean error"] == pytest.approx(np.abs(said - labels).mean())
    assert row[["common", "between", "within"]].sum() == pytest.approx(((said - labels) ** 2).mean())
    each = [np.corrcoef(labels[who == p, k], said[who == p, k])[0, 1] for p in np.unique(who) for k in range(2)]
    assert row["r within"] == pytest.approx(np.mean(each))


def test_a_shift_moves_neither_r_nor_error_within_people_and_the_best_leaves_nothing_between():
    labels, said, who = drawn(seed=1)
    ways = {"generic": said, "best": shift_alone(said, labels, who)}
    found = values(score_ways(person_moments(labels, ways, who, AUS), n=5))
    np.testing.assert_allclose(found.loc["best", ["r within", "within"]], found.loc["generic", ["r within", "within"]])
    np.testing.assert_allclose(found.loc["best", ["common", "between"]], 0, atol=1e-12)
    assert found.loc["best", "ICC"] > found.loc["generic", "ICC"]


@pytest.mark.parametrize("part, change", [
    ("for everybody", lambda x, number, rng: np.full_like(x, -0.7)),
    ("for each person", lambda x, number, rng: np.where(number % 2 == 0, 1.0, -1.0)[:, None] * np.ones_like(x)),
    ("slope", lambda x, number, rng: 0.5 * x),
    ("left", lambda x, number, rng: rng.normal(0, 1, x.shape))])
def test_a_change_is_called_by_its_name(part, change):
    rng = np.random.default_rng(2)
    number = np.repeat(np.arange(6), 200)
    before = rng.normal(0, 1, (1200, 2))
    before -= [[before[number == k, a].mean() for a in range(2)] for k in number]  # so that a slope moves no mean
    shares = values(change_shares(change_moments(before, before + change(before, number, rng), number, AUS), n=5))
    assert shares.loc["mean", part] > 0.95
    np.testing.assert_allclose(shares[["for everybody", "for each person", "slope", "left"]].sum(axis=1), 1)


def test_a_line_makes_anything_that_is_a_line_and_nothing_of_a_constant():
    labels, said, who = drawn(seed=3)
    lines = shift_alone(said, labels, who) * 1.5 + 2
    np.testing.assert_allclose(line_alone(said, lines, who), lines)
    flat = np.where(who[:, None] == "p0", 1.0, said)
    made = line_alone(flat, labels, who)[who == "p0"]
    np.testing.assert_allclose(made, np.broadcast_to(labels[who == "p0"].mean(0), made.shape))


def test_the_share_of_a_gain_is_one_for_all_of_it_and_none_for_nothing():
    labels, said, who = drawn(seed=4)
    ways = {"generic": said, "fine-tuned": shift_alone(said, labels, who), "same": said}
    table = person_moments(labels, ways, who, AUS)
    assert share_of_gain(table, "fine-tuned", n=20) == pytest.approx((1, 1, 1))
    assert share_of_gain(table, "same", n=20) == pytest.approx((0, 0, 0))


def test_differences_are_drawn_on_the_same_people():
    labels, said, who = drawn(seed=5)
    table = person_moments(labels, {"a": said, "b": said + 0.3}, who, AUS)
    assert score_ways(table, ["b"], before="a", scores=["ICC"], n=50).loc["b", "ICC"] == pytest.approx((0, 0, 0))
    assert list(score_ways(table, n=2).columns) == list(WAY_SCORES)


@pytest.fixture(scope="module")
def table():
    """The stored comparison."""
    return pd.read_csv(STORED, header=[0, 1], index_col=[0, 1, 2, 3])


@pytest.mark.parametrize("database, people", [("disfa", 27), ("unbc", 25)])
def test_what_is_stored_is_figure_6_of_everybody(table, database, people):
    part = table.loc[(database, "ganimation")].dropna(axis=1, how="all")
    assert len(part.index.unique("subject")) == people
    means = stored("figure-6")[0].query("au == 'mean' and database == @database").set_index("condition").value
    found = values(score_ways(part, n=2)).ICC
    for way, condition in (("generic", "generic"), ("fine-tuned", "personal"),
                           ("less photograph", "generic less neutral")):
        assert found[way] == pytest.approx(means[condition], abs=1e-3)
    for name in ("sd", "r"):  # a shift moves neither
        np.testing.assert_allclose(part["shift alone"][name], part["generic"][name], atol=2e-4)
    assert STORED.stat().st_size < 180_000   # two readers with three zeros each are in it


def test_calm_frames_are_those_of_each_film():
    names = [f"AU{au:02d}_r" for au in (1, 4, 6, 10, 12, 14, 17)]
    rows = pd.DataFrame(np.repeat(np.arange(20.0)[:, None] % 10 / 4, 7, axis=1), columns=names)
    rows.loc[10:, names] += 1
    found = compare_zeros.less_calm(rows.assign(subject="p", session=[1] * 10 + [2] * 10))
    np.testing.assert_allclose(found[:10], found[10:])  # the second film has a zero of its own
    assert found.min() == 0 and found.max() == pytest.approx(9 / 4 - 1 / 8)


def test_a_folder_without_the_stages_says_how_to_make_them(tmp_path):
    chains = compare_zeros.PaperChains("small")
    with pytest.raises(SystemExit, match="aufacs reproduce figure-6"):
        compare_zeros.compare(chains, tmp_path, "disfa", mesh=False)

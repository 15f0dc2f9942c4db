"""What is stored of a run of all experiments: files that are missing are named, verdicts follow from their intervals."""
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from aufacs_nb.evaluation.intervals import Interval
from aufacs_nb.experiments import results
from aufacs_nb.experiments.claims import verdict
from aufacs_nb.experiments.tables import EXPERIMENTS
from aufacs_nb.facs import au_columns
from test_style import NOTEBOOKS, ROOT, cells

FOLDER = ROOT / "data_samples" / "results" / "reproduce" / "small"
SCORES = sorted(FOLDER.glob("*_scores.csv"))
EVERY = results.all_verdicts(FOLDER)
PAGES = {path.stem: path for path in NOTEBOOKS if path.parent.name == "experiments"}


def page_of(name):
    """The page of an experiment: table-2 → table_2."""
    return name.replace("-", "_")


def markdown(path):
    """The prose of a notebook."""
    return "\n".join("".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown")


def follows(row):
    """Is the word of a stored verdict the one that its own numbers give?"""
    change = Interval(row.difference, row.low, row.high)
    return row.verdict == verdict(change, row.equal, (row.worse, row.better))


@pytest.fixture
def copy(tmp_path):
    """A copy of what is stored of Table 4."""
    for path in FOLDER.glob("table-4_*"):
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize("row", list(EVERY.itertuples()), ids=lambda row: f"{row.experiment}: {row.claim}, {row.database}")
def test_a_stored_verdict_follows_from_its_numbers(row):
    assert follows(row)
    assert row.difference == pytest.approx(abs(row.better - row.worse) * np.sign(row.difference), abs=3e-5)
    assert row.low <= row.difference <= row.high, "an interval over people holds the difference of all of them"


def test_a_word_that_was_changed_by_hand_does_not_follow(copy):
    path = copy / "table-4_verdicts.csv"
    path.write_text(path.read_text().replace("does not hold", "holds").replace("cannot tell", "holds"))
    found = results.stored("table-4", copy)[1]
    assert [follows(row) for row in found.itertuples()] == [
        word == "holds" for word in results.stored("table-4", FOLDER)[1].verdict]


@pytest.mark.parametrize("name", EVERY.experiment.unique())
def test_stored_verdicts_are_those_of_the_claims(name):
    asked, found = EXPERIMENTS[name].claims, EVERY[EVERY.experiment == name]
    if asked:
        words = [f"{c.better} {'=' if c.equal else '>'} {c.worse}" for c in asked]
        assert found.claim.tolist() == words and found.paper.tolist() == [c.said for c in asked]
        assert found.equal.tolist() == [c.equal for c in asked] and found.database.tolist() == [c.database for c in asked]


@pytest.mark.parametrize("name", [n for n in EVERY.experiment.unique() if EXPERIMENTS[n].claims])
def test_stored_verdicts_and_scores_are_of_one_run(name):
    scores, verdicts = results.stored(name, FOLDER)
    means = scores[scores.au == "mean"].set_index(["condition", "database", "score"]).value
    for row in verdicts.itertuples():
        better, worse = re.split(" [>=] ", row.claim)
        for condition, value in ((better, row.better), (worse, row.worse)):
            assert means[condition, row.database, row.score] == pytest.approx(value, abs=2e-4)


@pytest.mark.parametrize("path", SCORES, ids=lambda path: path.stem)
def test_stored_scores_have_a_mean_of_their_aus(path):
    table = pd.read_csv(path)
    if not {"au", "low", "score", "condition"} <= set(table):
        return
    assert set(table.au) <= {*au_columns(), "mean"}
    keys = [name for name in ("database", "condition", "pose", "score") if name in table]
    for _, rows in table.groupby(keys):
        rows = rows.set_index("au").value
        assert rows["mean"] == pytest.approx(rows.drop("mean").mean(), abs=2e-3)


def test_a_missing_file_is_named_with_the_command_that_makes_it(copy):
    with pytest.raises(FileNotFoundError, match=r"table-2_scores.csv is not in .* aufacs reproduce table-2 --preset small"):
        results.stored("table-2", copy)
    (copy / "table-4_verdicts.csv").unlink()
    with pytest.raises(FileNotFoundError, match="table-4_verdicts.csv"):
        results.stored("table-4", copy)
    assert not len(results.all_verdicts(copy))
    with pytest.raises(ValueError, match="'table-9' is no experiment: choose one of table-1"):
        results.stored("table-9", copy)


@pytest.mark.parametrize("value, low, high, expected", [
    (.11, .06, .15, "0.11 [0.06, 0.15]"), (.11, -.004, .2, "0.110 [-0.004, 0.200]"),
    (.11, -.0001, .2, "0.1100 [-0.0001, 0.2000]"), (-.001, -.1, .1, "0.00 [-0.10, 0.10]")])
def test_a_reader_sees_the_sign_of_both_ends(value, low, high, expected):
    row = dict(claim="a > b", database="disfa", score="ICC", worse=.3, better=.41, difference=value, low=low, high=high,
               verdict="holds", paper="+13 %", experiment="figure-6", equal=0.0)
    told = results.verdict_table(pd.DataFrame([row])).loc["a > b"]
    assert told.tolist() == ["DISFA", "ICC", "0.410 against 0.300", expected, "holds", "+13 %"]


def test_words_say_every_claim_that_does_not_hold_and_whose_reading_it_is():
    said = results.in_words(EVERY, dict.fromkeys(EVERY.claim, "so we think."))
    open_claims = EVERY[EVERY.verdict != "holds"]
    assert said.count("\n- ") == said.count("Our reading: so we think.") == len(open_claims)
    assert "Our reading" not in results.in_words(EVERY)


def test_the_paper_s_difference_is_read_from_two_numbers_alone():
    found = {words: results.paper_difference(pd.Series({"paper": words, "score": "ICC"}))
             for words in ("0.525 against 0.489", "+13 %", "above")}
    assert found["0.525 against 0.489"] == pytest.approx(0.036)
    assert np.isnan(found["+13 %"]) and np.isnan(found["above"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_page_that_the_summary_links_to(name):
    assert f"]({page_of(name)}.ipynb)" in markdown(PAGES["claims"])
    page = PAGES[page_of(name)]
    assert "](claims.ipynb)" in markdown(page) and f"aufacs reproduce {name} --preset small" in markdown(page)
    code = "\n".join("".join(cell["source"]) for cell in cells(page) if cell["cell_type"] == "code")
    assert f'stored("{name}")' in code

"""Tables and figures as graphs of stages: what they share, whose data they take, and what a verdict means."""
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from aufacs_nb.evaluation.intervals import Interval
from aufacs_nb.experiments.graph import ordered, run
from aufacs_nb.experiments.protocol import PROTOCOLS, EstimateChains
from aufacs_nb.experiments.reproduce import EXPERIMENTS, Claim, judge, reproduce, tidy, verdict
from aufacs_nb.facs import au_columns

MICRO = replace(PROTOCOLS["tiny"], name="micro", people=(2, 1, 2), clips=(1, 6), per_intensity=1,
                others={"disfa": dict(subjects=2, frames=5, size=[160, 120])})


def graph(name, protocol="small", **options):
    """All stages of an experiment, key → stage."""
    return {stage.key: stage for stage in ordered(EXPERIMENTS[name].stages(EstimateChains(protocol, **options)))}


def kinds(stages):
    """How many stages there are of each kind."""
    return pd.Series([stage.name for stage in stages]).value_counts().to_dict()


@pytest.mark.parametrize("name, expected", [
    ("table-2", dict(database=1, frames=2, pretrain=2, generator=2, balanced=5, classifier=35, estimates=5)),
    ("figure-6", dict(database=3, frames=3, pretrain=1, generator=1, balanced=1, classifier=7, estimates=3, personal=3)),
    ("table-6", dict(database=3, frames=3, pretrain=1, generator=1, balanced=3, combined=2, classifier=35,
                     estimates=10))])
def test_an_experiment_makes_every_stage_once(name, expected):
    assert kinds(graph(name).values()) == expected
    assert list(graph(name)) == list(graph(name))
    assert not set(graph(name)) & set(graph(name, seed=1)), "another seed is another run from the first stage on"


@pytest.mark.parametrize("one, other, expected", [
    ("table-2", "figure-6", dict(database=1, frames=1, pretrain=1, generator=1, balanced=1, classifier=7)),
    ("table-2", "table-6", dict(database=1, frames=1, pretrain=1, generator=1, balanced=2, classifier=14)),
    ("figure-6", "figure-7", kinds(graph("figure-6").values()))])
def test_experiments_share_their_stages(one, other, expected):
    first, second = graph(one), graph(other)
    assert kinds(first[key] for key in first if key in second) == expected


def test_keys_are_the_same_in_another_process():
    code = ("from aufacs_nb.experiments.graph import ordered\n"
            "from aufacs_nb.experiments.protocol import EstimateChains\n"
            "from aufacs_nb.experiments.reproduce import EXPERIMENTS\n"
            "print(*[s.key for n in ('table-2', 'figure-6', 'table-6')\n"
            "        for s in ordered(EXPERIMENTS[n].stages(EstimateChains('small')))])")
    said = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": "7"}, text=True,
                          capture_output=True, check=True).stdout
    assert said.split() == [key for name in ("table-2", "figure-6", "table-6") for key in graph(name)]


def test_a_value_of_the_generator_changes_what_comes_after_it_alone():
    changed = replace(PROTOCOLS["small"], values=PROTOCOLS["small"].values | {"lambda_idt": 3.0})
    before, after = graph("figure-6"), graph("figure-6", changed)
    kept = kinds(after[key] for key in after if key in before)
    assert {"database", "frames"} <= set(kept) and not {"generator", "balanced", "personal"} & set(kept)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "table-1"])
def test_every_claim_is_about_conditions_that_are_made(name):
    asked = {(stage.params["condition"], stage.needs["frames"].params["name"])
             for stage in EXPERIMENTS[name].stages(EstimateChains("small"))}
    for claim in EXPERIMENTS[name].claims:
        assert {(claim.better, claim.database), (claim.worse, claim.database)} <= asked


def test_a_folder_of_the_users_own_gives_the_same_estimates(tmp_path):
    virtual = EstimateChains(MICRO)

    def estimates(chains):
        """Of FERA's Test people and of a whole other database."""
        stages = [chains.estimates("real", chains.balanced("real"), database=name) for name in ("fera17", "disfa")]
        with warnings.catch_warnings(action="ignore"):  # two people do not show every level
            run(stages, tmp_path, progress=False)
        return stages, tidy(stages, tmp_path)

    stages, made = estimates(virtual)
    folders = {name: virtual.database(name).folder(tmp_path) / name for name in ("fera17", "disfa")}
    own = EstimateChains(MICRO, licensed=folders)
    again, theirs = estimates(own)
    assert "database" not in kinds(ordered(again)) and not {s.key for s in stages} & {s.key for s in again}
    pd.testing.assert_frame_equal(made, theirs)
    assert set(made.database) == {"fera17", "disfa"} and made.AU12_r.notna().all()


def test_an_experiment_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'table-9' is no experiment: choose one of table-1, table-2"):
        reproduce("table-9", root=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ends, equal, scores, expected", [
    ((.02, .2), 0, (), "holds"), ((-.2, -.02), 0, (), "does not hold"), ((-.1, .2), 0, (), "cannot tell"),
    ((-.01, .02), .03, (.5, .5), "holds"), ((.04, .2), .03, (.4, .5), "does not hold"),
    ((.01, .2), .03, (.4, .5), "cannot tell"), ((float("nan"),) * 2, .03, (.5, .5), "cannot tell"),
    ((-.01, .02), .03, (.01, -.02), "cannot tell"), ((-.01, .02), .03, (.01, .06), "holds"),
    ((.001, .02), 0, (.0, .01), "holds")])
def test_a_verdict_is_read_off_interval_and_scores(ends, equal, scores, expected):
    assert verdict(Interval(np.mean(ends), *ends), equal, scores) == expected


def test_two_estimators_that_follow_nothing_are_not_called_equal():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"database": "fera17", "subject": np.repeat(list("abcdefgh"), 200), "session": "T1",
                         "frame": np.tile(range(200), 8)})
    labels = dict(zip(au_columns(), rng.integers(0, 6, (7, 1600)).astype(float)))
    noise = [dict(zip([f"{name}_r" for name in au_columns()], rng.normal(size=(7, 1600)))) for _ in range(2)]
    both = pd.concat([rows.assign(condition=name, **labels, **said) for name, said in zip(("one", "other"), noise)])
    found = judge(both, Claim("one", "other", "", equal=0.5), 100)
    assert max(abs(found["worse"]), abs(found["better"])) < 0.05 and found["verdict"] == "cannot tell"

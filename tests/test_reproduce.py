"""Tables and figures as graphs of stages: what they share, whose data they take, and what a verdict means."""
import json
import os
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from aufacs_nb.estimation.storage import AUClassifiers
from aufacs_nb.evaluation.intervals import Interval
from aufacs_nb.experiments import conditions, protocol, variants
from aufacs_nb.experiments.graph import GraphError, ordered, run
from aufacs_nb.experiments.claims import Claim, _over_people, judge, verdict
from aufacs_nb.experiments.protocol import PROTOCOLS
from aufacs_nb.experiments.reproduce import estimated_seconds, reproduce, reproduce_all
from aufacs_nb.experiments.stages import partition_frames
from aufacs_nb.experiments.tables import EXPERIMENTS, LAMBDAS, tidy
from aufacs_nb.experiments.variants import PaperChains
from aufacs_nb.facs import au_columns
from aufacs_nb.files import OutputError
from aufacs_nb.presets import SMALL, ClassifierValues, GeneratorValues
from aufacs_nb.registration.collections import sample_registered

MICRO = replace(PROTOCOLS["tiny"], name="micro", people=(2, 1, 2), clips=(1, 6), per_intensity=1,
                others={"disfa": dict(subjects=2, frames=5, size=[160, 120])})


def graph(name, protocol="small", **options):
    """All stages of an experiment, key → stage."""
    return {stage.key: stage for stage in ordered(EXPERIMENTS[name].stages(PaperChains(protocol, **options)))}


def kinds(stages):
    """How many stages there are of each kind."""
    return pd.Series([stage.name for stage in stages]).value_counts().to_dict()


@pytest.mark.parametrize("name, expected", [
    ("table-2", dict(database=1, frames=2, pretrain=2, generator=2, balanced=5, classifier=35, estimates=5)),
    ("figure-7", dict(database=3, frames=3, pretrain=1, generator=1, balanced=1, classifier=7, estimates=3, personal=3)),
    ("table-6", dict(database=3, frames=3, pretrain=1, generator=1, balanced=3, combined=2, classifier=35,
                     estimates=10))])
def test_an_experiment_makes_every_stage_once(name, expected):
    assert kinds(graph(name).values()) == expected
    assert list(graph(name)) == list(graph(name))
    assert not set(graph(name)) & set(graph(name, seed=1)), "another seed is another run from the first stage on"


@pytest.mark.parametrize("one, other, expected", [
    ("table-2", "figure-7", dict(database=1, frames=1, pretrain=1, generator=1, balanced=1, classifier=7)),
    ("table-2", "table-6", dict(database=1, frames=1, pretrain=1, generator=1, balanced=2, classifier=14)),
    ("figure-7", "figure-7", kinds(graph("figure-7").values()))])
def test_experiments_share_their_stages(one, other, expected):
    first, second = graph(one), graph(other)
    assert kinds(first[key] for key in first if key in second) == expected


def test_keys_are_the_same_in_another_process():
    code = ("from aufacs_nb.experiments.graph import ordered\n"
            "from aufacs_nb.experiments.tables import EXPERIMENTS\n"
            "from aufacs_nb.experiments.variants import PaperChains\n"
            "print(*[s.key for n in ('table-2', 'figure-7', 'table-6')\n"
            "        for s in ordered(EXPERIMENTS[n].stages(PaperChains('small')))])")
    said = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": "7"}, text=True,
                          capture_output=True, check=True).stdout
    assert said.split() == [key for name in ("table-2", "figure-7", "table-6") for key in graph(name)]


def test_a_value_of_the_generator_changes_what_comes_after_it_alone():
    changed = replace(PROTOCOLS["small"], values=PROTOCOLS["small"].values | {"lambda_idt": 3.0})
    before, after = graph("figure-7"), graph("figure-7", changed)
    kept = kinds(after[key] for key in after if key in before)
    assert kept == dict(database=3, frames=3, pretrain=1)


PLACE = "aufacs_nb.experiments.protocol"


def test_a_value_of_the_shipped_preset_changes_what_reads_it_alone(monkeypatch):
    before = graph("table-2")
    monkeypatch.setattr(f"{PLACE}.get_preset", lambda name: replace(SMALL, lambda_exp=11.0))
    after = graph("table-2")
    assert kinds(after[key] for key in after if key in before) == dict(
        database=1, frames=2, pretrain=2, balanced=3, classifier=21, estimates=3), "real sets and the oracle stay"
    monkeypatch.setattr(f"{PLACE}.get_preset", lambda name: replace(SMALL, cls_batch=16))
    assert not {"pretrain", "classifier", "estimates"} & set(kinds(s for k, s in graph("table-2").items() if k in before))


def test_a_function_that_does_something_else_has_another_version():
    versions = {stage.name: stage.version for stage in graph("table-2").values()}
    assert versions["classifier"] == versions["pretrain"] == 2 and versions["generator"] == 1


def test_the_presets_values_come_back_from_a_key():
    for name, size in PROTOCOLS.items():
        stages = {stage.name: stage for stage in graph("figure-7", name).values()}
        for kind, stage in ((GeneratorValues, "generator"), (ClassifierValues, "classifier")):
            made, preset = kind(**stages[stage].params["values"]), size.preset()
            assert all(np.all(getattr(made, key) == np.array(getattr(preset, key))) for key in asdict(made))


def test_a_licensed_fera_has_no_oracle():
    chains = PaperChains("small", licensed={"fera17": "their/FERA17"})
    asked = [stage.params["condition"] for stage in EXPERIMENTS["table-2"].stages(chains)]
    assert asked == ["2D real", "2D synthetic", "3D real", "3D synthetic"]
    assert "database" not in kinds(ordered(EXPERIMENTS["table-2"].stages(chains)))
    assert {c.better for c in EXPERIMENTS["table-2"].claims if c.virtual} == {"3D oracle"}
    with pytest.raises(ValueError, match="licensed FERA 2017"):
        chains.balanced("oracle")


def test_table_3_compares_two_generators_that_differ_in_one_value():
    stages = {stage.params["condition"]: stage for stage in EXPERIMENTS["table-3"].stages(PaperChains("small"))}
    (claim,) = EXPERIMENTS["table-3"].claims
    one, other = (stages[name].needs["au12"].needs["balanced"].needs["generator"].params["values"]
                  for name in (claim.better, claim.worse))
    assert {key for key in one if one[key] != other[key]} == {"lambda_ids"}


@pytest.mark.parametrize("size", list(PROTOCOLS))
def test_every_lambda_is_tried_below_and_above_the_presets(size):
    made = [stage.needs["au12"].needs["balanced"].needs["generator"].params["values"]
            for stage in EXPERIMENTS["figure-3"].stages(PaperChains(size))]
    for name in LAMBDAS:
        own = made[0][name]
        assert sorted({values[name] for values in made}) == pytest.approx([own / 10, own, own * 10])


def test_the_start_learns_from_train_alone_on_any_number_of_threads(tmp_path):
    frames = PaperChains(MICRO).frames()
    (folder,) = run([frames], tmp_path, progress=False)
    stage, before, starts = PaperChains(MICRO).start(), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out = tmp_path / f"start{threads}"
        out.mkdir()
        protocol._pretrain(out, **stage.params, frames=folder)
        starts.append((out / "start.safetensors").read_bytes())
        assert torch.get_num_threads() == threads
        pictures = np.load(folder / "frames" / "frames.npy")
        pictures[(pd.read_parquet(folder / "frames" / "manifest.parquet").partition != "Train").to_numpy()] = 0
        np.save(folder / "frames" / "frames.npy", pictures)  # the second time Valid and Test are black
    torch.set_num_threads(before)
    assert starts[0] == starts[1]


def database_of(frames):
    """The database of a stage of frames, of their differences or of a fold."""
    return frames.params["name"] if frames.name == "frames" else database_of(frames.needs["frames"])


@pytest.mark.parametrize("name", [name for name, experiment in EXPERIMENTS.items() if experiment.claims])
def test_every_claim_is_about_conditions_that_are_made(name):
    asked = {(stage.params["condition"], database_of(stage.needs["frames"]))
             for stage in EXPERIMENTS[name].stages(PaperChains("small"))}
    for claim in EXPERIMENTS[name].claims:
        assert {(claim.better, claim.database), (claim.worse, claim.database)} <= asked


def test_a_folder_of_the_users_own_gives_the_same_estimates(tmp_path):
    virtual = PaperChains(MICRO)

    def estimates(chains):
        """Of FERA's Test people and of a whole other database."""
        stages = [chains.estimates("real", chains.balanced("real"), database=name) for name in ("fera17", "disfa")]
        with warnings.catch_warnings(action="ignore"):  # two people do not show every level
            run(stages, tmp_path, progress=False)
        return stages, tidy(stages, tmp_path)

    stages, made = estimates(virtual)
    folders = {name: virtual.database(name).folder(tmp_path) / name for name in ("fera17", "disfa")}
    own = PaperChains(MICRO, licensed=folders)
    again, theirs = estimates(own)
    assert "database" not in kinds(ordered(again)) and not {s.key for s in stages} & {s.key for s in again}
    pd.testing.assert_frame_equal(made, theirs)
    assert set(made.database) == {"fera17", "disfa"} and made.AU12_r.notna().all()


def test_what_was_made_from_other_content_is_not_kept(tmp_path):
    "Neither of a licensed database in the same folder, nor of first weights in the same file."
    labels, weights = tmp_path / "disfa" / "labels.csv", tmp_path / "vgg16.pth"
    labels.parent.mkdir()

    def keys(text):
        """Of all stages between the database and estimates of it; of those that begin with the file of weights."""
        labels.write_text(text), weights.write_text(text)
        own, begun = PaperChains(MICRO, licensed={"disfa": labels.parent}), PaperChains(MICRO, init=str(weights))
        same = {stage.key for stage in ordered(own.same_domain("disfa"))}
        return same, {stage.key for stage in begun.networks(begun.balanced("real")).values()}

    first, again, other = keys("1,0"), keys("1,0"), keys("1,3")
    assert first == again and not first[1] & other[1]
    made = {stage.key for stage in ordered([PaperChains(MICRO).generator(), *PaperChains(MICRO).networks(
        PaperChains(MICRO).balanced("semantic")).values()])}
    assert first[0] & other[0] <= made  # of FERA alone


def test_stages_are_not_written_among_other_things(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match="--root .*: holds other things .photo.png. and nothing of this command"):
        reproduce_all(["table-1"], MICRO, tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_a_database_without_the_nine_poses_is_named_by_the_figures_that_need_them(tmp_path):
    frontal = PaperChains(MICRO).database("fera17")
    run([frontal], tmp_path, progress=False)
    own = {"fera17": frontal.folder(tmp_path) / "fera17"}
    with pytest.raises(GraphError, match="fera17 has no recording of pose 1, 2, 3, 4, 5, 7, 8, 9: Figures 2 and 5 need"):
        reproduce("figure-2", MICRO, tmp_path, licensed=own, progress=False)


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


def test_an_au_that_the_drawn_people_do_not_show_is_left_out():
    labels = np.array([[0., 0], [1, 0], [2, 0], [float("nan"), 0]])
    estimates = labels + np.array([[0, .1], [0, .3], [0, .2], [0, .1]])
    people = np.array(list("abab"))
    for at in (0, 1):
        found = _over_people(Claim("", "", "", at=at), labels, (estimates, estimates), people, (1, 4), 20, 0)
        assert found.before.value == found.after.value == pytest.approx(1) and found.difference.value == 0


def test_two_estimators_that_follow_nothing_are_not_called_equal():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"database": "fera17", "subject": np.repeat(list("abcdefgh"), 200), "session": "T1",
                         "frame": np.tile(range(200), 8), "pose_yaw": 0, "pose_pitch": 0})
    labels = dict(zip(au_columns(), rng.integers(0, 6, (7, 1600)).astype(float)))
    noise = [dict(zip([f"{name}_r" for name in au_columns()], rng.normal(size=(7, 1600)))) for _ in range(2)]
    both = pd.concat([rows.assign(condition=name, **labels, **said) for name, said in zip(("one", "other"), noise)])
    found = judge(both, Claim("one", "other", "", equal=0.5), 100)
    assert max(abs(found["worse"]), abs(found["better"])) < 0.05 and found["verdict"] == "cannot tell"


def test_every_experiment_runs_at_tiny_and_makes_nothing_twice(tmp_path):
    """`aufacs reproduce all --preset tiny`, with networks that learn for one epoch."""
    once = dict(cls_epochs=1, per_epochs=1)
    tiny = replace(PROTOCOLS["tiny"], values=PROTOCOLS["tiny"].values | once)
    root, out, told = tmp_path / "stages", tmp_path / "results", []
    options = dict(protocol=tiny, root=root, out=out, progress=False)
    with warnings.catch_warnings(action="ignore"):  # three people do not show every level
        verdicts = reproduce_all(list(EXPERIMENTS), report=lambda name, found: told.append(name), **options)
    assert told == list(EXPERIMENTS)
    asked = {name: len(e.claims) for name, e in EXPERIMENTS.items()} | {
        "figure-2": 1, "figure-5": 2, "figure-8": 2, "image-quality": 3}
    assert verdicts.groupby("experiment").size().to_dict() == {name: n for name, n in asked.items() if n}
    assert verdicts.verdict.isin(["holds", "does not hold", "cannot tell"]).all()
    assert verdicts[["worse", "better", "difference"]].notna().all(axis=None)
    without = {"scores": {"figure-4"}, "verdicts": {"figure-4", "table-1"}}
    expected = {f"{name}_{word}.csv" for word, lacking in without.items() for name in EXPERIMENTS if name not in lacking}
    assert {path.name for path in out.iterdir()} == expected | {"claims.csv", "figure-2.jpg", "figure-4.jpg"}
    assert all(len(pd.read_csv(path)) for path in out.glob("*.csv"))
    assert pd.read_csv(out / "claims.csv").verdict.tolist() == verdicts.verdict.tolist()
    before = {path.name: path.stat().st_mtime_ns for path in root.iterdir()}
    with warnings.catch_warnings(action="ignore"):
        pd.testing.assert_frame_equal(reproduce_all(["table-2", "figure-6"], **options | dict(out=None)),
                                      verdicts[verdicts.experiment.isin(["table-2", "figure-6"])].reset_index(drop=True),
                                      check_like=True)
    assert {path.name: path.stat().st_mtime_ns for path in root.iterdir()} == before
    stages = [stage for name in EXPERIMENTS for stage in EXPERIMENTS[name].stages(PaperChains(tiny))]
    assert estimated_seconds(stages, root, "tiny") == 0 < estimated_seconds(stages, tmp_path / "new", "tiny")


def test_kinds_that_nobody_timed_have_no_estimate(monkeypatch, tmp_path):
    (tmp_path / "reproduce_seconds.csv").write_text("protocol,kind,seconds\nsmall,database disfa,60\n")
    monkeypatch.setattr("aufacs_nb.experiments.reproduce.ASSETS", tmp_path)
    chains = PaperChains("small")
    assert estimated_seconds([chains.database("disfa")], tmp_path, "small") == 60
    assert np.isnan(estimated_seconds([chains.frames("disfa")], tmp_path, "small"))
    assert np.isnan(estimated_seconds([chains.database("disfa")], tmp_path, "paper"))


def test_the_tool_keeps_the_median_of_each_kind(tmp_path, root, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(root / "tools"))
    import stage_seconds as tool

    chains, table = PaperChains("tiny"), tmp_path / "seconds.csv"
    for seconds in (4, 9):
        for name, stage in chains.networks(chains.balanced("real")).items():
            folder = stage.folder(tmp_path / f"run{seconds}")
            folder.mkdir(parents=True)
            (folder / "stage.json").write_text(json.dumps({"seconds": seconds + (name == "au01") * 100}))
    table.write_text("protocol,kind,seconds\nsmall,classifier,7\ntiny,classifier,1\ntiny,fold,2\n")
    call = ["stage_seconds.py", "tiny", str(tmp_path / "run4"), str(tmp_path / "run9"), "--out", str(table)]
    monkeypatch.setattr(sys, "argv", call)
    tool.main()
    found = pd.read_csv(table).set_index(["protocol", "kind"]).seconds.to_dict()
    assert found == {("small", "classifier"): 7, ("tiny", "classifier"): 9, ("tiny", "fold"): 2}
    assert "not timed: balanced oracle" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*call[:2], str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="no such folder"):
        tool.main()


@pytest.mark.parametrize("work", [
    lambda part, small: protocol._estimates(None, "x", None, Path("frames"), au01=None),
    lambda part, small: protocol._personal(None, "x", None, 0, Path("frames"), "small", au01=None),
    lambda part, small: variants._subtracted(None, "x", None, Path("frames"), au01=None),
    lambda part, small: conditions.personal_estimates(small, None, part),
    lambda part, small: conditions.fit_a_person(part, small, {}, None),
    lambda part, small: conditions.across_folds(part, lambda rest, k: small, 2)])
def test_networks_read_only_frames_registered_as_those_they_learned_from(work, monkeypatch):
    small, sample = AUClassifiers.from_pretrained("small"), sample_registered()
    flat = sample._replace(manifest=sample.manifest.assign(registration="procrustes"))
    for module in (protocol, variants):
        monkeypatch.setattr(module, "open_registered", lambda folder: flat)
        monkeypatch.setattr(module, "joined_networks", lambda folders: small)
    part = partition_frames(flat, None, 64)
    with pytest.raises(ValueError, match="small learned from frames registered by 'mesh', not 'procrustes'"):
        work(part, small)
    assert conditions.check_registered(AUClassifiers(small.models, small.preset), part) is None, "older cards say nothing"

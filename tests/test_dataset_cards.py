"""Cards beside simulated databases: valid Croissant, true numbers, and no reader that trips over them."""
import json
import os

import pandas as pd
import pytest
import yaml

from aufacs_nb.databases import fera17_manifest
from aufacs_nb.simulation.cards import dataset_people, write_dataset_card
from aufacs_nb.simulation.layouts import PLAN_FILE, SimulationError
from aufacs_nb.simulation.simulate import make_plan, read_truth, simulate_fera17

mlcroissant = pytest.importorskip("mlcroissant")
FEW = dict(train=1, valid=0, test=0, tasks=1, frames=3, size=32, progress=False)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return simulate_fera17(tmp_path_factory.mktemp("db") / "fera17", **FEW)


def test_cards_are_two_more_files_and_readers_and_later_runs_see_no_difference(rendered):
    before = {path: path.read_bytes() for path in rendered.rglob("*") if path.is_file() and path.name not in (
        "README.md", "croissant.json")}
    manifest = fera17_manifest(rendered)
    made = write_dataset_card(rendered)
    assert made == (rendered / "README.md", rendered / "croissant.json")
    first = [path.read_bytes() for path in made]
    simulate_fera17(rendered, **FEW)  # goes on where it was: at the end
    write_dataset_card(rendered)
    assert [path.read_bytes() for path in made] == first
    assert {path: path.read_bytes() for path in before} == before
    assert {p for p in rendered.rglob("*") if p.is_file()} == {*before, *made}
    pd.testing.assert_frame_equal(fera17_manifest(rendered), manifest)


def test_croissant_is_valid_and_its_tables_are_the_truth(rendered):
    page, machine = write_dataset_card(rendered)
    data = mlcroissant.Dataset(machine)
    assert not data.metadata.ctx.issues.errors
    levels = {row["levels/AU"]: row for row in data.records("levels")}
    truth = read_truth(next((rendered / "truth").rglob("*.npz")))["intensity"]
    name = next(name for name in levels if name in (b"AU12", "AU12"))
    assert levels[name]["levels/frames"] == len(truth) and len(levels) == truth.shape[1]
    assert len(list(data.records("people"))) == 1
    for part in json.loads(machine.read_text())["distribution"]:
        assert all(list(rendered.glob(pattern)) for pattern in part.get("includes", []))
    head = yaml.safe_load(page.read_text(encoding="utf-8").split("---\n")[1])
    assert head["license"] == "apache-2.0" and "synthetic" in head["tags"]


@pytest.mark.parametrize("database, options", [("disfa", dict(subjects=3)), ("unbc", dict(subjects=2)),
                                               ("multipie", dict(subjects=5)), ("fera17", dict(train=2, valid=1, test=1))])
def test_every_layout_has_valid_cards_even_before_anything_is_rendered(database, options, tmp_path):
    plan = make_plan(database, **options)
    (tmp_path / PLAN_FILE).write_text(json.dumps(plan))
    page, machine = write_dataset_card(tmp_path, licence="CC0-1.0")
    assert not mlcroissant.Dataset(machine).metadata.ctx.issues.errors
    assert "No truth was stored." in page.read_text(encoding="utf-8") and "cc0-1.0" in page.read_text(encoding="utf-8")
    people = dataset_people(plan)
    assert len(people) == sum(options.values()) and {row["skin"] for row in people} <= {"light", "medium", "dark"}


def test_groups_of_many_people_are_as_drawn():
    people = pd.DataFrame(dataset_people(make_plan("multipie", subjects=60)))
    assert people.years.between(18, 80).all() and people.melanin.between(0, 1).all()
    assert 0.55 < (people.sex == "man").mean() < 0.85  # as in MultiPIE, most of whose people are men
    assert (people.skin == "dark").equals(people.melanin >= 0.6) and (people.age == "18-35").equals(people.years < 35)


def test_pages_of_others_stay_and_what_is_no_simulation_is_refused(tmp_path):
    (tmp_path / PLAN_FILE).write_text(json.dumps(make_plan("disfa", subjects=1)))
    (tmp_path / "README.md").write_text("# my notes")
    write_dataset_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# my notes"
    for text in ("{", "[]", "{}", '{"subjects": 1}', '{"subjects": {}, "parameters": []}'):
        (tmp_path / PLAN_FILE).write_text(text)
        with pytest.raises(SimulationError, match=PLAN_FILE):
            write_dataset_card(tmp_path)
    os.remove(tmp_path / PLAN_FILE)
    with pytest.raises(SimulationError, match="give the folder"):
        write_dataset_card(tmp_path)

"""Pages beside weights say what their cards say, hubs can read them, and those of shipped weights are up to date."""
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from aufacs_nb import model_cards
from aufacs_nb.estimation.pixels import FaceReader
from aufacs_nb.files import WriteError
from aufacs_nb.model_cards import WEIGHT_KINDS, weights_kind, model_card
from aufacs_nb.presets import ASSETS, TINY, save_weights

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.with_name("README.md") for path in ASSETS.glob("**/card.json"))
name_of = lambda path: str(path.parent.relative_to(ASSETS))


def test_pages_of_shipped_weights_are_up_to_date():
    done = subprocess.run([sys.executable, "tools/model_cards.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"run python tools/model_cards.py: {done.stdout}{done.stderr[-500:]}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_page_has_what_a_reader_and_a_hub_ask_for(path):
    _, head, text = path.read_text(encoding="utf-8").split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["license"] == "apache-2.0" and data["library_name"] == "aufacs_nb" and data["tags"]
    for title in ("Use", "Intended use", "Out of scope", "Training data", "Scores", "Limits", "Biases"):
        assert f"\n## {title}\n\n" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|") and "nan" not in line
    assert "None" not in text and "/work/" not in text and "home/" not in text


def test_a_hub_reads_the_scores():
    card = pytest.importorskip("huggingface_hub").ModelCard.load(ASSETS / "face18/face/README.md")
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    icc = json.loads((ASSETS / "face18/face/card.json").read_text())["icc"]
    assert values["ICC(3,1), mean of all AUs (none)"] == icc["none"]["mean"][0] and card.data.license == "apache-2.0"


def test_only_what_was_measured_is_said_by_group():
    by_group = {name_of(path) for path in PAGES if "| skin tone | dark |" in path.read_text(encoding="utf-8")}
    not_measured = {name_of(path) for path in PAGES if "**not measured**" in path.read_text(encoding="utf-8")}
    assert by_group == {"face18/face"} and by_group | not_measured == set(map(name_of, PAGES))


def test_saving_writes_the_page_and_leaves_that_of_others(tmp_path):
    folder = save_weights(tmp_path / "run", {"w": np.zeros(1)}, TINY, part="generator", architecture="flow", seed=3)
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "license: \"other\"" in page and "Seed 3." in page and "The card does not say" in page
    (folder / "README.md").write_text("# mine")
    save_weights(folder, {"w": np.zeros(1)}, TINY)
    assert (folder / "README.md").read_text() == "# mine"


def test_a_page_that_cannot_be_written_leaves_the_older_one_and_nothing_else(tmp_path, monkeypatch):
    folder = save_weights(tmp_path / "run", {"w": np.zeros(1)}, TINY, seed=3)
    before, write = {path.name: path.read_bytes() for path in folder.iterdir()}, Path.write_text

    def half(path, text, **options):
        write(path, text[:len(text) // 2], **options)
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(WriteError, match="README.md: could not be written .*No space"):
        model_cards.write_model_card(folder, "another name")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_weights_of_a_person_say_so(tmp_path):
    reader = FaceReader.from_pretrained("face18")
    assert "adapted to one person" not in (reader.save(tmp_path / "all") / "README.md").read_text(encoding="utf-8")
    mine = replace(reader, zero=np.zeros(len(reader.aus) + 9216, np.float32)).save(tmp_path / "mine")
    assert "adapted to one person" in (mine / "README.md").read_text(encoding="utf-8")
    assert "adapted to one person" in model_card({"personal": {"epochs": 3}, "aus": [1]}, "me")


def test_every_kind_of_shipped_weights_is_known():
    assert {weights_kind(json.loads(path.with_name("card.json").read_text())) for path in PAGES} == set(WEIGHT_KINDS)

"""The first cell for Colab: put in once, silent elsewhere, and on Colab it fetches the clone, installs it and goes to the folder."""
import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import colab_cells  # noqa: E402

FOLDER = "nbs/0_start"


@pytest.fixture
def book():
    """A copy of a notebook of the checkout, without the cell."""
    return colab_cells.without_cell(json.loads((ROOT / FOLDER / "01_facs.ipynb").read_text(encoding="utf-8")))


def run(source, where):
    """Run a cell; the folder afterwards."""
    before = os.getcwd()
    try:
        exec(compile(source, "cell", "exec"), {})
        return os.getcwd()
    finally:
        os.chdir(before)


def test_the_cell_is_the_first_code_once_and_can_be_taken_out(book):
    asked = copy.deepcopy(book)
    new = colab_cells.with_cell(book, FOLDER)
    assert book == asked and colab_cells.with_cell(new, FOLDER) == new and colab_cells.without_cell(new) == book
    assert [i for i, c in enumerate(new["cells"]) if colab_cells.is_ours(c)] == [1]
    assert new["cells"][0]["cell_type"] == "markdown" and len(new["cells"]) == len(book["cells"]) + 1
    nbformat.validate(nbformat.from_dict(new))


def test_an_old_cell_is_brought_up_to_date(book):
    new = colab_cells.with_cell(book, FOLDER)
    new["cells"][1]["source"] = ["#| hide\n", 'if "google.colab" in sys.modules: pass']
    assert colab_cells.with_cell(new, FOLDER) == colab_cells.with_cell(book, FOLDER)


def test_it_does_nothing_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("something was run"))
    monkeypatch.chdir(tmp_path)
    assert run(colab_cells.colab_source(FOLDER), tmp_path) == str(tmp_path) and "AUFACS_DATA" not in os.environ


def test_on_colab_it_fetches_installs_and_goes_to_the_folder(monkeypatch, tmp_path):
    (tmp_path / FOLDER).mkdir(parents=True)
    told, gone = [], []
    monkeypatch.setitem(sys.modules, "google.colab", object())
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: told.append((a[0], k["check"])))
    monkeypatch.setattr(os, "chdir", gone.append)
    monkeypatch.delenv("AUFACS_DATA", raising=False)
    exec(compile(colab_cells.colab_source(FOLDER), "cell", "exec"), {})
    assert gone == ["/content/aufacs_nb/nbs/0_start"] and os.environ.pop("AUFACS_DATA") == "/content/aufacs_nb/data_samples"
    [(command, check)] = told
    assert check and "git clone -q --depth 1 https://github.com/aufacs-nb/aufacs_nb /content/aufacs_nb" in command
    assert command.endswith("pip install -q /content/aufacs_nb")


def test_a_notebook_without_it_is_named_only_where_settings_ask_for_it(tmp_path, book):
    from check_notebooks import colab_problems

    (tmp_path / FOLDER).mkdir(parents=True)
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    off, on = "colab_cells = False", "colab_cells = True"
    for name, content in (("with", colab_cells.with_cell(book, FOLDER)), ("without", book)):
        (tmp_path / FOLDER / f"{name}.ipynb").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "settings.ini").write_text(settings.replace(on, off), encoding="utf-8")
    assert colab_problems(tmp_path) == []
    (tmp_path / "settings.ini").write_text(settings.replace(off, on), encoding="utf-8")
    assert [p.split(":")[0] for p in colab_problems(tmp_path)] == [f"{FOLDER}/without.ipynb"]


def test_binder_installs_torch_for_cpus_and_the_package():
    script = ROOT / ".binder" / "postBuild"
    assert script.stat().st_mode & 0o111
    text = script.read_text(encoding="utf-8")
    assert "--torch-backend=cpu" in text and "set -e" in text
    assert (ROOT / ".binder" / "runtime.txt").read_text().strip() == "python-3.11"
    subprocess.run(["bash", "-n", script], check=True)

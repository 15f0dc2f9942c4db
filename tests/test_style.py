"""House rules that a machine can check: one way data flows, nothing unpickled, clean outputs, no traces of a machine."""
import ast
import json
import re
import sys
from configparser import ConfigParser
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(ROOT).parts))
MODULES = sorted(p for p in (ROOT / "aufacs_nb").glob("*.py") if p.name[0] != "_")
TEXT = {".py", ".ipynb", ".md", ".toml", ".ini", ".txt", ".yml", ".yaml", ".cfg", ".json", ".csv", ".j2", ".css", ""}
ELSEWHERE = {".git", ".venv", "build", "dist", "_docs", "_proc", "demo_out", "runs", "screenshots", "__pycache__",
             ".pytest_cache", ".ipynb_checkpoints"}
# Put together from halves: this file must pass its own check.
HOSTS = ["py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com", "deb.de" + "bian.org",
         "ana" + "conda.org", "download.py" + "torch.org"]
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|Users|root|work|tmp)/[\w.]+/[\w.]+")
NOTEBOOK_KB = 400

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
every_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)


def cells(path):
    """The cells of a notebook."""
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def outputs(path):
    """The stored outputs of a notebook."""
    return [o for cell in cells(path) if cell["cell_type"] == "code" for o in cell["outputs"]]


def text_of(path):
    """A file as text; of a notebook, sources and textual outputs without pictures."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    said = ["".join(cell["source"]) for cell in cells(path)]
    for output in outputs(path):
        said += ["".join(output.get("text", "")), "\n".join(output.get("traceback", []))]
        said += ["".join(v) for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return re.sub(r"base64,[\w+/=\s]+", "", "\n".join(said))


def project_files():
    """Text files of the checkout that a reader gets."""
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and path.suffix in TEXT and not any(p in ELSEWHERE or p.endswith(".egg-info") for p in parts):
            yield path


@cache
def room_numbers():
    """Number of the notebook that exports each module, from the notebooks' own `default_exp`."""
    rooms = {}
    for path in (p for p in NOTEBOOKS if p.parent == ROOT / "nbs" and p.name[:2].isdigit()):
        found = re.search(r"^#\|\s*default_exp\s+(\w+)", text_of(path), re.M)
        if found:
            rooms[found.group(1)] = int(path.name[:2])
    return rooms


def imports(path):
    """Dotted names that a module imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = "aufacs_nb" + (f".{node.module}" if node.module else "") if node.level else node.module
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return names


@every_module
def test_a_room_imports_only_rooms_of_lower_number(path):
    rooms = room_numbers()
    assert path.stem in rooms, f"no numbered notebook exports {path.name}"
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("aufacs_nb.")}
    assert {n for n in inside & set(rooms) if rooms[n] >= rooms[path.stem]} == set()


@every_module
def test_nothing_is_unpickled(path):
    text = path.read_text(encoding="utf-8")
    assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "cloudpickle", "dill", "shelve"}
    assert not re.search(r"\b(torch|joblib|pickle)\.load\(|allow_pickle\s*=\s*True|read_pickle|to_pickle", text)


@every_module
def test_no_star_imports(path):
    assert not [name for name in imports(path) if name.endswith(".*")]


def normal(requirement):
    """Name of a requirement as registries compare it: without version, lower case, dashes."""
    return re.split(r"[<>=!~\[]", requirement)[0].lower().replace("_", "-")


@cache
def declared():
    """Names of the requirements in settings.ini, optional ones too, and the distributions of each importable name."""
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    optional = {normal(r).removesuffix("-bin") for r in parser["DEFAULT"]["dlib_requirements"].split()}
    return {normal(r) for r in parser["DEFAULT"]["requirements"].split()} | optional, packages_distributions()


@every_module
def test_what_a_room_imports_is_declared(path):
    requirements, distributions = declared()
    outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"aufacs_nb"}
    assert {m for m in outside if not {normal(d) for d in distributions.get(m, [m])} & requirements} == set()


@every_notebook
def test_stored_outputs_are_fit_to_read(path):
    assert not [o for o in outputs(path) if o["output_type"] == "error"]
    assert path.stat().st_size <= NOTEBOOK_KB * 1024
    assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]


@every_notebook
def test_a_notebook_says_first_what_it_is(path):
    first = "".join(cells(path)[0]["source"])
    assert re.match(r"# \S.*\n\s*> \S", first), "the first cell is '# Title' and '> one line'"


@every_notebook
def test_a_notebook_is_tested(path):
    assert not re.search(r"^#\|\s*(all_slow|all_cuda|skip_exec)", text_of(path), re.M)


def test_no_file_names_a_registry_or_a_path_of_a_machine():
    found = []
    for path in project_files():
        text = text_of(path)
        found += [f"{path.relative_to(ROOT)}: {host}" for host in HOSTS if host in text]
        found += [f"{path.relative_to(ROOT)}: {m}" for m in MACHINE_PATH.findall(text)]
    assert found == []

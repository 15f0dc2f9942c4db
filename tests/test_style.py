"""House rules that a machine can check: one way data flows, nothing unpickled, clean outputs, no traces of a machine."""
import ast
import json
import re
import sys
from configparser import ConfigParser
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(ROOT).parts))
PACKAGE = ROOT / "aufacs_nb"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name[0] != "_")
# The floors of the house, lowest first: a module imports its own wing and the wings before it. "" is the package itself.
WINGS = ["", "geometry", "simulation", "registration", "generation", "evaluation", "estimation", "experiments", "apps"]
TEXT = {".py", ".ipynb", ".md", ".toml", ".ini", ".txt", ".yml", ".yaml", ".cfg", ".json", ".csv", ".j2", ".css", ""}
ELSEWHERE = {".git", ".venv", "build", "dist", "_docs", "_proc", "demo_out", "runs", "screenshots", "__pycache__",
             ".pytest_cache", ".mypy_cache", ".ipynb_checkpoints"}
# Put together from halves: this file must pass its own check.
HOSTS = ["py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com", "deb.de" + "bian.org",
         "ana" + "conda.org", "download.py" + "torch.org"]
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|Users|root|work|tmp)/[\w.]+/[\w.]+")
NOTEBOOK_KB = 400

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
every_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())


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


def wing(name):
    """The wing of a dotted module name such as `aufacs_nb.registration.frontal`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in WINGS else ""


def module_name(path):
    """The dotted name of a module's file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@cache
def exporting_notebooks():
    """{module: notebook} from the notebooks' own `default_exp`."""
    found = {}
    for path in NOTEBOOKS:
        said = re.search(r"^#\|\s*default_exp\s+([\w.]+)", text_of(path), re.M)
        if said:
            found["aufacs_nb." + said.group(1)] = path
    return found


def imports(path):
    """Dotted names that a module imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module_name(path).split(".")[:-node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return names


@every_module
def test_a_module_has_its_notebook_in_its_wing(path):
    notebook = exporting_notebooks().get(module_name(path))
    assert notebook, f"no notebook exports {path.name}"
    folder = notebook.parent.name.split("_", 1)[-1] if notebook.parent.name[0].isdigit() else notebook.parent.name
    assert folder == (wing(module_name(path)) or "start") or (folder, wing(module_name(path))) == ("start", "geometry")


@every_module
def test_a_module_imports_its_own_wing_and_the_wings_below(path):
    above = WINGS[WINGS.index(wing(module_name(path))) + 1:]
    assert {name for name in imports(path) if name.startswith("aufacs_nb.") and wing(name) in above} == set()


def test_modules_of_one_wing_do_not_import_one_another_in_a_circle():
    graph = {module_name(p): {n.rsplit(".", 1)[0] for n in imports(p)} | imports(p) for p in MODULES}
    list(TopologicalSorter({m: {n for n in needs if n in graph} for m, needs in graph.items()}).static_order())


def test_a_public_name_is_defined_once():
    where = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            named = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else [
                n.id for target in getattr(node, "targets", []) for n in ast.walk(target) if isinstance(n, ast.Name)]
            for name in named:
                if not name.startswith("_"):
                    where.setdefault(name, []).append(module_name(path))
    assert {name: homes for name, homes in where.items() if len(set(homes)) > 1} == {}


def next_notebook(path):
    """Where the last cell of a notebook leads to: 'Next: [title](file.ipynb)'."""
    last = ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown"][-1]
    found = re.search(r"Next: .*?\[[^\]]*\]\(([^)#]+\.ipynb)\)", last)
    return (path.parent / found.group(1)).resolve() if found else None


def test_next_leads_once_through_every_numbered_notebook():
    seen, room = [], next_notebook(ROOT / "nbs" / "index.ipynb")
    while room is not None:
        assert room.is_file(), f"{seen[-1].name} leads to {room.name}, which is not there"
        assert room not in seen, f"{seen[-1].name} leads back to {room.name}"
        seen.append(room)
        room = next_notebook(room)
    assert {p.resolve() for p in NOTEBOOKS if p.name[0].isdigit()} == {p for p in seen if p.name[0].isdigit()}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "data_samples/README.md"])
def test_pages_name_only_files_that_are_there(name):
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if not re.match(r"[a-z]+:", link)]
    named = re.findall(r"`((?:nbs|tools|tests|data_samples|aufacs_nb)/[\w./]+\.\w+)`", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", WINGS[1:])
def test_a_wing_says_what_it_is(name):
    tree = ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) and len(tree.body) == 1


@every_notebook
def test_links_to_files_are_alive(path):
    text = "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if not re.match(r"[a-z]+:", link)]
    assert [link for link in links if not (path.parent / link).exists()] == []


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
    optional = {normal(r).removesuffix("-bin") for extra in ("dlib", "heic", "plots", "cluster", "hub", "live")
                for r in parser["DEFAULT"][f"{extra}_requirements"].split()}
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

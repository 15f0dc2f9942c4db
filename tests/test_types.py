"""Every public argument and result says its type, and a checker finds no contradiction in what they say."""
import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aufacs_nb"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py"))
# Modules whose hints are still to be written, or still contradict each other. None; keep it so.
WITHOUT_HINTS = set()
WITH_ERRORS = set()


def relative(path):
    """The path of a module within the package, as the lists above write it."""
    return path.relative_to(PACKAGE).as_posix()


def public_functions(body, prefix=""):
    """(dotted name, function) of a module's public functions, and of the public methods of its public classes."""
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name[0] != "_":
            yield from public_functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and (node.name[0] != "_" or node.name in ("__init__", "__call__")):
            yield prefix + node.name, node


def unhinted(source):
    """What lacks a hint in a module: `function(argument)` and `function ->` for results."""
    found = []
    for name, function in public_functions(ast.parse(source).body):
        given = function.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        static = any(ast.unparse(decorator) == "staticmethod" for decorator in function.decorator_list)
        own = arguments[1:] if "." in name and not static else arguments  # without self or cls
        found += [f"{name}({argument.arg})" for argument in own if argument.annotation is None]
        found += [f"{name} ->"] * (function.returns is None and function.name != "__init__")
    return found


def test_the_counter_counts():
    """Arguments of every kind, results, methods; not `self`, private names and the result of `__init__`."""
    source = ("def f(a, /, b: int, *c, d=1, **e): ...\ndef _g(a): ...\nclass A:\n    def __init__(self, x): ...\n"
              "    @staticmethod\n    def s(y) -> int: ...\n    def _p(self, z): ...\nclass _B:\n    def m(self, x): ...\n")
    assert unhinted(source) == ["f(a)", "f(d)", "f(c)", "f(e)", "f ->", "A.__init__(x)", "A.s(y)"]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_public_argument_has_a_hint(path):
    """So that editors, checkers and readers know what a function takes and returns."""
    lacking = unhinted(path.read_text(encoding="utf-8"))
    if relative(path) in WITHOUT_HINTS:
        assert lacking, f"{relative(path)} is complete: take it off WITHOUT_HINTS"
    else:
        assert not lacking, f"{relative(path)}: {len(lacking)} without a hint: {', '.join(lacking)}"


def test_the_lists_name_modules():
    """Neither list keeps a module that is gone."""
    assert WITHOUT_HINTS | WITH_ERRORS <= {relative(path) for path in MODULES}


@pytest.fixture(scope="module")
def checked():
    """{module: its errors} of mypy with the repository's mypy.ini, whose cache makes the next call quick."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"MYPY_FORCE_COLOR": "0"})
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
    found = {}
    for line in done.stdout.splitlines():
        said = re.match(r"aufacs_nb[/\\](.+?):\d+: error: ", line)
        if said:
            found.setdefault(said.group(1).replace("\\", "/"), []).append(line)
    return found


def test_the_checker_finds_nothing(checked):
    """Hints are right: what is called, returned and read fits what is said."""
    errors = [line for module, lines in checked.items() if module not in WITH_ERRORS for line in lines]
    assert not errors, "\n".join(errors)
    clean = WITH_ERRORS - set(checked)
    assert not clean, f"take off WITH_ERRORS: {', '.join(sorted(clean))}"


def test_nothing_is_hushed_up():
    """Few places tell the checker to look away; each names the kind of error; no module is left out as a whole."""
    hushed = [line for path in MODULES for line in re.findall(r"# type: ignore.*", path.read_text(encoding="utf-8"))]
    assert all(re.match(r"# type: ignore\[[\w-]+\]", line) for line in hushed) and len(hushed) <= 10, hushed
    settings = (ROOT / "mypy.ini").read_text(encoding="utf-8")
    assert "ignore_errors" not in settings and "\ncheck_untyped_defs = True\n" in settings


def test_users_checkers_see_the_hints(tmp_path):
    """The package carries py.typed: a wrong call in somebody's own file is found."""
    mine = tmp_path / "mine.py"
    mine.write_text("from aufacs_nb.facs import au_column\nau_column(12)\nau_column('twelve')\n", encoding="utf-8")
    assert (PACKAGE / "py.typed").is_file()
    done = subprocess.run([sys.executable, "-m", "mypy", "--config-file", str(ROOT / "mypy.ini"), str(mine)],
                          cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "mine.py:3" in done.stdout and "mine.py:2" not in done.stdout, done.stdout + done.stderr


def test_what_the_checker_found_stays_mended():
    """Where a value could be None and was used: a fine-tuning none of whose epochs has a score, a set without meshes."""
    import numpy as np
    import pandas as pd
    import torch

    from aufacs_nb.estimation.trunk import build_classifier
    from aufacs_nb.estimation.vgg16 import plain_fine_tuning
    from aufacs_nb.experiments.protocol import _with_meshes
    from aufacs_nb.experiments.stages import meshes_in, training_set
    from aufacs_nb.presets import get_preset
    from aufacs_nb.registration.collections import RegisteredFrames

    images, classes = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])
    history = plain_fine_tuning(build_classifier("tiny"), images, classes, (images, np.zeros(2)), epochs=1)
    assert history.icc.isna().all()  # Valid shows one intensity only; the last epoch is kept
    table = pd.DataFrame({"valid": [True], "partition": ["Train"]})
    part = _with_meshes(RegisteredFrames(np.zeros((1, 32, 32, 3), np.uint8), table), "Train", 16, True)
    assert part.vertices is None and part.frames.shape == (1, 16, 16, 3)
    with pytest.raises(ValueError, match="have no meshes"):
        meshes_in(part)
    with pytest.raises(ValueError, match="needs a generator"):
        training_set(part, None, get_preset("tiny"), 0, "semantic")

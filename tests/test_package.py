"""The package as a user gets it: quick to import, torch only where it is needed, a wheel with what belongs in it."""
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

TORCH_FREE = ["facs", "geometry.meshes", "evaluation.scores", "evaluation.intervals", "databases", "presets", "pictures"]
NOT_SOURCE = ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "demo_out", "runs", "screenshots", "_docs",
                             "_proc", ".*_cache")


def test_importing_the_package_imports_nothing_large(run_python):
    known = "import sys, importlib.metadata as m; before = set(sys.modules); import aufacs_nb; new = set(sys.modules) - before"
    heavy = run_python(f"{known}; print({{n.split('.')[0] for n in new}} - {{'aufacs_nb'}} - set(sys.stdlib_module_names))")
    assert heavy == "set()"


def test_no_torch_where_none_is_needed(run_python):
    """In one process, one after the other: the first that brings torch is named."""
    found = run_python(f"""
import sys
from importlib import import_module
for name in {TORCH_FREE}:
    import_module("aufacs_nb." + name)
    print(name, [m for m in ("torch", "torchvision") if m in sys.modules])""")
    assert found.splitlines() == [f"{name} []" for name in TORCH_FREE]


def test_short_names_are_the_things_themselves(run_python):
    said = run_python("import aufacs_nb, sys; light = 'torch' not in sys.modules; from aufacs_nb import AUEstimator; "
                      "from aufacs_nb.estimation.estimator import AUEstimator as same; "
                      "print(light, AUEstimator is same, [n for n in aufacs_nb._SHORT if n not in dir(aufacs_nb)])")
    assert said == "True True []"


def test_every_short_name_is_there_and_no_other():
    import aufacs_nb

    assert all(getattr(aufacs_nb, name).__name__ == name for name in aufacs_nb._SHORT)
    with pytest.raises(AttributeError, match="no attribute 'AUEstimates'"):
        aufacs_nb.AUEstimates


def test_the_module_is_the_command():
    said = [subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
            for command in ([sys.executable, "-m", "aufacs_nb"], [Path(sys.executable).with_name("aufacs")])]
    listed = [re.findall(r"^\W*([a-z]+(?:-[a-z]+)*)  ", text, re.M) for text in said]
    assert "predict" in listed[0] and listed[0] == listed[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the whole checkout, so that leftovers of earlier builds cannot get in."""
    folder = tmp_path_factory.mktemp("wheel")
    copytree(Path(__file__).parents[1], folder / "source", ignore=NOT_SOURCE)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_its_assets_and_nothing_else(wheel, root):
    package = root / "aufacs_nb"
    files = {p.relative_to(root).as_posix() for p in [*package.rglob("*.py"), package / "py.typed"]}
    files |= {p.relative_to(root).as_posix() for p in (package / "assets").rglob("*") if p.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    information = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - information == {name for name in files if "__pycache__" not in name}
    assert {"LICENSE", "NOTICE", "METADATA", "RECORD", "entry_points.txt"} <= {name.split("/")[-1] for name in information}


def test_the_wheel_installs_alone_and_imports(wheel, run_python, tmp_path):
    venv.create(tmp_path / "empty", with_pip=False)  # it is filled from here, which saves unpacking another pip
    python = tmp_path / "empty" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    listed = subprocess.run([*pip, "list", "--format=freeze"], capture_output=True, text=True, check=True).stdout
    assert {line.split("==")[0].replace("-", "_") for line in listed.split()} == {"aufacs_nb"}
    where = run_python("import aufacs_nb; print(aufacs_nb.__version__, aufacs_nb.__file__)", python, tmp_path)
    version, path = where.split(" ", 1)
    assert version == wheel.name.split("-")[1] and Path(path).is_relative_to((tmp_path / "empty").resolve())


def test_the_wheel_says_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
        entry_points = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt"))).decode()
    assert "Requires-Python: >=3.11" in metadata and "Requires-Dist: torch" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert re.search(r"^aufacs\s*=\s*aufacs_nb\.apps\.cli:main$", entry_points, re.M)

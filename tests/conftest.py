"""Fixtures shared by the tests of the whole project."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:  # `tools.limits` and its like, also where pytest is not started as a module
    sys.path.insert(0, str(ROOT))

# Files that take longest, at the head: the processes that share the files of all tests then end together. Those that wait
# for a browser come first, so that others compute beside them.
SLOW_FILES = ("test_browser", "test_reproduce", "test_site", "test_ratio", "test_prnet", "test_generators", "test_corpus",
              "test_simulate", "test_demo", "test_cli", "test_detection", "test_training_runs", "test_large_sets",
              "test_package", "test_side_by_side", "test_resumed_generator", "test_personal_generators", "test_estimator",
              "test_references", "test_graph", "test_parity", "test_registration", "test_pixels", "test_tools",
              "test_resumed_runs", "test_photograph_sheet", "test_tracking", "test_torture")


def pytest_configure(config):
    """Keep the order below: pytest-xdist would hand out files with many tests first, and a long one last."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Slow files first, the others as they come."""
    items.sort(key=lambda item: SLOW_FILES.index(item.path.stem) if item.path.stem in SLOW_FILES else len(SLOW_FILES))


@pytest.fixture(scope="session")
def root():
    """The checkout."""
    return ROOT


@pytest.fixture
def run_python(root):
    """`run_python(code, python=…)` runs code in a fresh interpreter outside the checkout; returns what it prints."""
    def run(code, python=sys.executable, cwd=None):
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "IN_TEST")}
        done = subprocess.run([python, "-c", code], cwd=cwd or root.parent, env=environment, capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()
    return run


@pytest.fixture(scope="session")
def aufacs_command():
    """The installed command line, as a user's shell would find it."""
    return str(Path(sys.executable).with_name("aufacs"))


@pytest.fixture(scope="session")
def shell_aufacs(aufacs_command):
    """`shell_aufacs(*arguments)` runs the installed command from its start and returns the finished process."""
    return lambda *arguments: subprocess.run([aufacs_command, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="session")
def aufacs(shell_aufacs):
    """As `shell_aufacs`, in a process that need not load all libraries first: for what is not about the start."""
    if not hasattr(os, "fork"):
        yield shell_aufacs
        return
    from forked import Commands

    commands = Commands()
    yield commands
    commands.close()

"""The workflow file names only what exists: make targets, commands, their flags, paths; and its jobs run where they should."""
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
JOBS = WORKFLOW["jobs"]
COMMANDS = [(name, shlex.split(line)) for name, job in JOBS.items() for step in job["steps"]
            for line in step.get("run", "").splitlines()]
TARGETS = set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def steps_of(job):
    """What a job runs: its shell lines and its actions."""
    return [step.get("run") or step["uses"] for step in JOBS[job]["steps"]]


def help_of(command):
    """The `--help` text of a command of the environment that runs the tests."""
    path = Path(sys.executable).parent / command
    return subprocess.run([path, "--help"], capture_output=True, text=True, check=True).stdout


def settings():
    """settings.ini's own section."""
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def test_the_jobs_of_the_issue_are_there():
    assert {"sync", "test", "widgets", "gpu", "docs"} <= set(JOBS)
    assert JOBS["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    triggers = WORKFLOW[True]  # YAML 1.1 reads the key `on` as a boolean
    assert {"push", "pull_request", "schedule", "workflow_dispatch"} == set(triggers)


def test_every_make_target_exists():
    named = {word for _, words in COMMANDS if words[0] == "make" for word in words[1:] if "=" not in word}
    assert named and named <= TARGETS


def test_make_knows_the_targets_of_the_issue():
    assert {"demo", "test", "lab", "voila", "notebooks", "bench", "docs"} <= TARGETS


@pytest.mark.parametrize("target", ["demo", "test", "lab", "voila", "notebooks", "bench", "docs"])
def test_a_target_installs_before_it_does_its_work(target):
    plan = subprocess.run(["make", "--dry-run", "--always-make", target],
                          cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert plan.index("pip install") < plan.rindex(".venv/bin/")


def test_every_command_of_the_environment_and_its_flags_exist():
    named = [words for _, words in COMMANDS if words[0].startswith(".venv/bin/")]
    assert named
    for command, *arguments in named:
        command = Path(command).name
        assert (Path(sys.executable).parent / command).exists(), command
        flags = {a.split("=")[0] for a in arguments if a.startswith("--")}
        if flags:
            assert flags <= set(re.findall(r"--[\w-]+", help_of(command))), command


def test_every_path_exists():
    paths = {word for _, words in COMMANDS for word in words if re.match(r"(\.ci|tests|tools|nbs)/", word)}
    assert paths and all((ROOT / path).exists() for path in paths)


def test_the_flags_of_the_gpu_job_are_those_that_are_skipped_elsewhere():
    flags = re.search(r'--flags "([^"]+)"', " ".join(steps_of("gpu"))).group(1)
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    assert set(flags.split()) == set(re.search(r"^tst_flags = (.+)$", settings, re.M).group(1).split())


def test_strangers_do_not_reach_the_gpu():
    job, condition = JOBS["gpu"], JOBS["gpu"]["if"]
    assert job["runs-on"] == ["self-hosted", "linux", "x64", "gpu"]
    assert steps_of("gpu").index("nvidia-smi") < len(steps_of("gpu")) - 1
    for way in condition.split("||"):
        if "pull_request" in way:
            assert "github.event.action == 'labeled'" in way and "github.event.label.name == 'gpu'" in way
        elif "'push'" in way:
            assert "refs/heads/main" in way
        else:
            assert "workflow_dispatch" in way or "schedule" in way
    assert [name for name, other in JOBS.items() if "self-hosted" in other["runs-on"]] == ["gpu"]


def test_the_lowest_versions_are_installed_and_tested():
    install, tests = (step for step in steps_of("lowest") if not step.startswith("actions/"))
    assert shlex.split(install)[:3] == ["make", "install", "VERSIONS=lowest"]
    assert all((ROOT / path).exists() for path in re.findall(r"--ignore=(\S+)", tests)) and " tests " in tests
    plan = subprocess.run(["make", "--dry-run", "--always-make", "install", "VERSIONS=lowest"],
                          cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "/uv pip install" in plan and "--resolution=lowest-direct -c constraints.txt -e" in plan
    bare = [r for key, line in settings().items() if key.endswith("requirements") for r in line.split() if "=" not in r]
    assert bare == [], "without a bound, the lowest version is the first that was ever published"


def test_jupyterlab_asks_no_other_machine_for_news_or_versions():
    labapp, jupyterlab = pytest.importorskip("jupyterlab.labapp"), pytest.importorskip("jupyterlab")
    plan = subprocess.run(["make", "--dry-run", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    [line] = [line for line in plan.splitlines() if "/jupyter lab " in line]
    lab = labapp.LabApp()
    lab.parse_command_line(shlex.split(line)[2:])
    assert lab.news_url is None and lab.check_for_updates_class is jupyterlab.NeverCheckForUpdate


def test_screenshots_are_kept_when_the_browser_tests_fail():
    upload = next(step for step in JOBS["widgets"]["steps"] if "upload-artifact" in step.get("uses", ""))
    assert upload["if"] == "failure()" and upload["with"]["path"] == "screenshots/"
    assert any(step.get("env", {}).get("AUFACS_REQUIRE_BROWSER") == "1" for step in JOBS["widgets"]["steps"])


def test_the_site_that_is_published_is_the_one_that_make_builds():
    upload = next(step for step in JOBS["docs"]["steps"] if "upload-pages-artifact" in step.get("uses", ""))
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    assert upload["with"]["path"] == re.search(r"^doc_path = (.+)$", settings, re.M).group(1)
    assert any(step.startswith("make docs") for step in steps_of("docs")) and JOBS["publish"]["needs"] == "docs"
    assert "permissions" in JOBS["publish"] and "push" in JOBS["publish"]["if"]


def test_torch_for_cpus_is_asked_for_in_one_line():
    plan = subprocess.run(["make", "--dry-run", "--always-make", "install", "TORCH=cpu"],
                          cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--torch-backend=cpu -c constraints.txt -e" in plan and ".venv/bin/python -m pip install" in plan


def test_ci_run_installs_the_browser_and_never_skips_its_tests():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    lines = [line.split("#")[0].strip() for line in script.splitlines()]
    wanted = (".ci/chromium & browser=$!", "make install", 'wait "$browser"', "export AUFACS_REQUIRE_BROWSER=1", "make test")
    order = [lines.index(line) for line in wanted]
    assert order == sorted(order) and "set -euo pipefail" in lines
    assert all((ROOT / ".ci" / name).stat().st_mode & 0o111 for name in ("run", "chromium"))

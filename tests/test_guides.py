"""What guides and README tell a reader to type exists: commands, their options, make targets, extras, names of the package."""
import ast
import importlib
import re
import shlex
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.main import get_command

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "nbs" / "guides").glob("*.md"))
PAGES = [*GUIDES, ROOT / "README.md"]
TARGETS = set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)


def blocks(text, *languages):
    """The fenced blocks of a page in these languages."""
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, re.M | re.S)


def commands(text):
    """What a reader is told to type: lines of shell blocks, and code in a line that begins like one."""
    lines = [line for block in blocks(text, "sh", "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:aufacs|make|pip install|bash) [^`\n]+)`", text)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def complaint(words):
    """What is wrong with a command of the package, '' if nothing is."""
    command, path = get_command(importlib.import_module("aufacs_nb.apps.cli").app), ["aufacs"]
    words = list(words)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"{' '.join(path)} has no command {words[0]}"
        path.append(words[0])
        command = command.commands[words.pop(0)]
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    missing = [w for w in (w.split("=")[0] for w in words) if w.startswith("--") and w not in known]
    return f"{' '.join(path)} has no {missing[0]}" if missing else ""


def test_a_wrong_command_is_noticed():
    assert complaint(["predict", "film.mp4", "--out", "a.csv", "--help"]) == ""
    assert complaint(["predikt"]) == "aufacs has no command predikt"
    assert complaint(["simulate", "disfa", "--no-such"]) == "aufacs simulate disfa has no --no-such"


@every_page
def test_commands_and_options_exist(page):
    told = commands(page.read_text(encoding="utf-8"))
    assert told or page.stem in ("intensities",)
    wrong = [complaint(words[1:]) for words in told if words[0] == "aufacs"]
    wrong += [f"no target {t}" for words in told if words[0] == "make" for t in words[1:]
              if "=" not in t and t not in TARGETS]
    wrong += [f"no file {w}" for words in told for w in words if re.match(r"(tools|tests|nbs)/", w) and not (ROOT / w).exists()]
    assert [w for w in wrong if w] == []


@every_page
def test_extras_and_names_exist(page):
    text = page.read_text(encoding="utf-8")
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert all(f"{extra}_requirements" in settings["DEFAULT"] for extra in re.findall(r"'\.\[(\w+)\]'", text))
    for block in blocks(text, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("aufacs_nb"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, a.name) for a in node.names), ast.unparse(node)


def test_guides_lead_to_one_another_and_are_in_the_menu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_site
    assert {p.stem for p in GUIDES} == set(make_site.GUIDES)
    for page, following in zip(make_site.GUIDES, make_site.GUIDES[1:]):
        assert f"({following}.md)" in (ROOT / "nbs" / "guides" / f"{page}.md").read_text(encoding="utf-8").splitlines()[-1]


def named_pieces(text):
    """(module, name) of the code in a text that looks like `files.shown`, where a module of the package is called so."""
    modules = {p.stem: ".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "aufacs_nb").rglob("*.py")}
    return [(modules[m], name) for m, name in re.findall(r"`(\w+)\.(\w+)`", text) if m in modules]


def test_threats_name_code_and_tests_that_exist():
    text = (ROOT / "nbs" / "guides" / "threats.md").read_text(encoding="utf-8")
    pieces, tests = named_pieces(text), set(re.findall(r"tests/test_\w+\.py", text))
    assert len(pieces) > 15 and len(tests) > 10
    assert [p for p in pieces if not hasattr(importlib.import_module(p[0]), p[1])] == []
    assert [t for t in tests if not (ROOT / t).is_file()] == []


def test_what_the_guide_says_of_intensities_is_what_was_measured():
    "The page on intensities names numbers; they are those of the stored tables, as rounded there."
    page = (ROOT / "nbs" / "guides" / "intensities.md").read_text(encoding="utf-8")
    levels = pd.read_csv(ROOT / "data_samples" / "results" / "levels.csv").query("zero == 'photograph'")
    means = levels.groupby(["context", "level", "au"])["mean"].mean().unstack("level")
    clear, all_of_them = (means.loc[name].mean() for name in ("both", "moments"))
    assert ", ".join(f"{letter} {'reads ' * (letter == 'A')}{clear[k]:.1f}" for k, letter in enumerate("ABCDE", 1)) in page
    assert ", ".join(f"{letter} {'reads ' * (letter == 'C')}{all_of_them[k]:.1f}" for k, letter in enumerate("CDE", 3)) in page
    assert f"{clear[0]:.2f} in clear frames" in page
    falls = means.loc["both"].drop(columns=0).diff(axis=1) < 0
    assert list(falls.index[falls.any(axis=1)]) == ["AU24"] and falls.loc["AU24", 5], "all others rise at every step"
    assert not ((means.loc["both"].drop(columns=0) - np.arange(1, 6)).abs() <= .3).all(axis=1).any(), "no unit holds everywhere"
    rest = pd.read_csv(ROOT / "data_samples" / "results" / "levels_rest.csv").set_index(["zero", "au"])
    assert f"all 18 stay below 0.5 in {rest.below['photograph', 'all']:.0%}".replace("%", " %") in page
    at_c = levels.query("context == 'both' and level == 3")
    assert f"eight of ten read between {at_c.p10.median():.1f} and {at_c.p90.median():.1f}" in page

"""A first cell for every notebook that makes it run on Google Colab: there, and only there, it fetches a clone and installs it.

    python tools/colab_cells.py [NOTEBOOK ...]            add the cell, or bring it up to date; all notebooks if none is named
    python tools/colab_cells.py --remove [NOTEBOOK ...]   take it out again
    python tools/colab_cells.py --check [NOTEBOOK ...]    change nothing; name the notebooks that lack it

The cell is hidden (`#| hide`, folded), comes before all other code, and does nothing elsewhere. A clone brings the sample
data and the places that notebooks name from their own folder. Doing it twice changes nothing.
"""
import json, re, sys
from pathlib import Path

from check_notebooks import notebooks, setting

ROOT = Path(__file__).resolve().parent.parent
ID = "00c01ab0"  # the cell's id, by which it is found again
CELL = '''#| hide
import sys
if "google.colab" in sys.modules:  # elsewhere the package is there already
    import os, subprocess
    if not os.path.exists("/content/{repo}"):
        subprocess.run("git clone -q --depth 1 {url} /content/{repo} && {python} -m pip install -q /content/{repo}",
                       shell=True, check=True)
    os.environ["AUFACS_DATA"] = "/content/{repo}/data_samples"
    os.chdir("/content/{repo}/{folder}")'''


def colab_source(folder, root=ROOT):
    "The cell's text for a notebook in `folder` (from the checkout)."
    return CELL.format(repo=setting(root, "repo"), url=setting(root, "git_url"), folder=folder, python="python3")


def is_ours(cell):
    "Is this the cell that we put in?"
    return cell.get("id") == ID or "google.colab\" in sys.modules" in "".join(cell["source"])


def with_cell(book, folder, root=ROOT):
    "The notebook (dict) with the cell as its first code, once."
    cells = [cell for cell in book["cells"] if not is_ours(cell)]
    first = next((i for i, cell in enumerate(cells) if cell["cell_type"] == "code"), len(cells))
    after_title = min(first, 1)
    own = {"cell_type": "code", "execution_count": None, "id": ID, "metadata": {"jupyter": {"source_hidden": True}},
           "outputs": [], "source": colab_source(folder, root).splitlines(keepends=True)}
    return {**book, "cells": [*cells[:after_title], own, *cells[after_title:]]}


def without_cell(book):
    "The notebook (dict) without the cell."
    return {**book, "cells": [cell for cell in book["cells"] if not is_ours(cell)]}


def lacking(root=ROOT, names=()):
    "The notebooks of the checkout, relative to it, that lack the cell or hold an old one."
    names = [Path(n) for n in names] or notebooks(root)
    read = {n: json.loads((root / n).read_text(encoding="utf-8")) for n in names}
    return [n for n, book in read.items() if with_cell(book, n.parent.as_posix(), root) != book]


def write(path, book):
    "Write a notebook as nbdev does, at once."
    part = path.with_suffix(".part")
    part.write_text(json.dumps(book, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def main():
    "Add, remove or check."
    flags = {word for word in sys.argv[1:] if word.startswith("--")}
    names = [Path(n).resolve().relative_to(ROOT) for n in sys.argv[1:] if n not in flags] or notebooks(ROOT)
    if flags - {"--remove", "--check"}:
        sys.exit(__doc__)
    if "--check" in flags:
        found = lacking(ROOT, names)
        print("\n".join(f"{n}: lacks the cell for Colab: run tools/colab_cells.py" for n in found) or f"{len(names)} notebooks have it")
        sys.exit(bool(found))
    for name in names:
        book = json.loads((ROOT / name).read_text(encoding="utf-8"))
        new = without_cell(book) if "--remove" in flags else with_cell(book, name.parent.as_posix())
        if new != book:
            write(ROOT / name, new)
            print(f"{name}: {'cell removed' if '--remove' in flags else 'cell in place'}")


if __name__ == "__main__":
    main()

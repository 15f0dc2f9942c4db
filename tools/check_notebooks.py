"""Are the notebooks clean, and are modules and README what the notebooks make? Reads the checkout, changes nothing in it.

    python tools/check_notebooks.py [CHECKOUT]

`nbdev_clean` and `nbdev_export` run in a temporary copy; a file that comes out different there is named with the way out.
"""
import json, re, shutil, subprocess, sys, tempfile
from configparser import ConfigParser
from pathlib import Path

from make_readme import readme

# nbdev finds its project from the folder it is started in, hence a process of its own.
REBUILD = ("from nbdev.doclinks import nbdev_export; from nbdev.clean import nbdev_clean; "
           "nbdev_export.__wrapped__(); nbdev_clean.__wrapped__()")
# Written by hand: what a package needs before any notebook has a say, in the package and in its wings.
BY_HAND = ("__init__.py", "__main__.py")
CLEAN_HELP = "run .venv/bin/nbdev_clean and look at the difference"
EXPORT_HELP = ("if you edited the notebook, run .venv/bin/nbdev_export; "
               "if you edited the module, .venv/bin/nbdev_update carries its cells back into the notebook")


def setting(root, name):
    "The value of `name` in the checkout's settings.ini."
    parser = ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"][name]


def notebooks(root):
    "The notebooks that nbdev sees, relative to `root`, sorted: nothing hidden, nothing that starts with `_`."
    books = (p.relative_to(root) for p in (root / setting(root, "nbs_path")).rglob("*.ipynb"))
    return sorted(p for p in books if not any(part[0] in "._" for part in p.parts))


def modules(root):
    "The modules of the package, relative to `root`, sorted."
    library = root / setting(root, "lib_path")
    return sorted(p.relative_to(root) for p in library.rglob("*.py"))


def rebuild(root, copy):
    "Clean and export the notebooks of `root` inside the empty folder `copy`."
    library = Path(setting(root, "lib_path"))
    (copy / library).mkdir(parents=True)
    for path in [Path("settings.ini"), *(p for p in modules(root) if p.name in BY_HAND), *notebooks(root)]:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / path, copy / path)
    subprocess.run([sys.executable, "-c", REBUILD], cwd=copy, check=True)


def first_difference(here, there):
    "`line N: 'here', not 'there'` for two texts that differ."
    here, there = here.splitlines(), there.splitlines()
    for number, (a, b) in enumerate(zip(here, there), 1):
        if a != b:
            return f"line {number}: {a[:100]!r}, exported: {b[:100]!r}"
    return f"{len(here)} lines, exported: {len(there)}"


def problems(root, copy):
    "One line for each file of `root` that is not what `copy` says it should be."
    read = lambda base, path: (base / path).read_text(encoding="utf-8")
    found = [f"{p}: not clean (execution counts, metadata or cell ids): {CLEAN_HELP}"
             for p in notebooks(root) if read(root, p) != read(copy, p)]
    here, there = modules(root), modules(copy)
    found += [f"{p}: no notebook exports it: remove it, or write its notebook" for p in here if p not in there]
    found += [f"{p}: missing: run .venv/bin/nbdev_export" for p in there if p not in here]
    return found + [f"{p}: not what its notebook exports ({first_difference(read(root, p), read(copy, p))}): {EXPORT_HELP}"
                    for p in here if p in there and read(root, p) != read(copy, p)]


def readme_problems(root):
    "One line if README.md or one of its pictures is not what nbs/index.ipynb says."
    if not (root / "nbs" / "index.ipynb").exists():
        return ["nbs/index.ipynb: missing: README.md is made from it"]
    text, pictures = readme(root)
    wanted = {"README.md": text.encode(), **pictures}
    stale = [name for name, data in wanted.items() if not (root / name).exists() or (root / name).read_bytes() != data]
    return [f"{', '.join(stale)}: not what nbs/index.ipynb says: run make readme"] if stale else []


def colab_problems(root):
    "One line for each notebook without the first cell for Colab, where settings.ini asks for it."
    from colab_cells import lacking  # which imports this file

    asked = setting(root, "colab_cells") == "True"
    return [f"{p}: lacks the cell for Colab: run .venv/bin/python tools/colab_cells.py" for p in (lacking(root) if asked else [])]


def solutions(book):
    "The code cells of a notebook (dict) below its heading *Exercises* that answer a question, **1.** and so on."
    cells, texts = book["cells"], ["".join(cell["source"]) for cell in book["cells"]]
    first = next((n for n, text in enumerate(texts) if re.search("^## Exercises$", text, re.M)), len(cells))
    asked = [bool(re.search(r"^\*\*\d+\.", text, re.M)) for text in texts]
    return [cell for n, cell in enumerate(cells) if n > first and cell["cell_type"] == "code" and (
        asked[n - 1] or cell["metadata"].get("jupyter", {}).get("source_hidden"))]


def solution_problems(root):
    "One line for each notebook whose exercises show their solutions, or what these print and draw."
    read = {p: json.loads((root / p).read_text(encoding="utf-8")) for p in notebooks(root)}
    folded = {"source_hidden", "outputs_hidden"}
    open_ones = {p: [cell["id"] for cell in solutions(book) if "#| hide" in "".join(cell["source"])
                     or not folded <= {k for k, on in cell["metadata"].get("jupyter", {}).items() if on}]
                 for p, book in read.items()}
    return [f"{p}: {', '.join(ids)}: a solution is not folded with its outputs: set \"source_hidden\": true and "
            "\"outputs_hidden\": true in the cell's metadata, under \"jupyter\", and do not hide it from the site"
            for p, ids in open_ones.items() if ids]


def main():
    "Print the problems; exit 1 if there are any."
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    with tempfile.TemporaryDirectory() as folder:
        rebuild(root, Path(folder))
        found = problems(root, Path(folder)) + readme_problems(root) + colab_problems(root) + solution_problems(root)
    print("\n".join(found) or f"{len(notebooks(root))} notebooks clean, {len(modules(root))} modules in sync")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

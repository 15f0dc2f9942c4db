"""Run the notebooks in reading order from clean kernels and store their outputs.

    python tools/run_notebooks.py [--with slow] [NOTEBOOK ...]

Cells marked with a flag of `tst_flags` in settings.ini (slow, cuda) keep the outputs they have, unless `--with` names
the flag. A notebook that fails is left as it was. Outputs are cleaned as nbdev cleans them; no widget state is stored.
"""
import argparse, re, sys, time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import nbdev_clean

from check_notebooks import notebooks, setting

ROOT = Path(__file__).resolve().parent.parent
SKIP = "skip-execution"  # nbclient's own tag for a cell that keeps its outputs; nbdev_clean takes it away again


def reading_order(root=ROOT):
    "Wing after wing by their numbers, then the experiments, the demos, and the index, which quotes them."
    folder = lambda path: ("experiments", "demos", "nbs").index(name) if (name := path.parent.name) in (
        "experiments", "demos", "nbs") else -1
    return sorted(notebooks(root), key=lambda p: (folder(p), p.as_posix()))


def mark_skipped(book, flags):
    "Tag the code cells of `book` that carry one of the directives `flags`, or `eval: false`."
    marked = re.compile(rf"^#\|\s*(?:{'|'.join(flags)}|eval:\s*false)\s*$", re.M)
    for cell in book.cells:
        if cell.cell_type == "code" and marked.search(cell.source):
            cell.metadata["tags"] = [SKIP]


def run(path, wanted=()):
    "Execute one notebook in place, cells with the flags `wanted` too; returns the seconds it took."
    book = nbformat.read(path, as_version=4)
    mark_skipped(book, [flag for flag in setting(ROOT, "tst_flags").split() if flag not in wanted])
    client = NotebookClient(book, timeout=1800, kernel_name="python3", store_widget_state=False, coalesce_streams=True,
                            resources={"metadata": {"path": str(path.parent)}})
    start = time.perf_counter()
    client.execute()
    nbformat.write(book, path)
    nbdev_clean(str(path))
    return time.perf_counter() - start


def main():
    "Run the named notebooks, or all of them."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("books", nargs="*", metavar="NOTEBOOK", help="all of them if none is named")
    parser.add_argument("--with", dest="wanted", action="append", default=[], choices=setting(ROOT, "tst_flags").split(),
                        help="run cells with this flag, too")
    a = parser.parse_args()
    books = [Path(book).resolve() for book in a.books] or [ROOT / p for p in reading_order()]
    for path in books:
        try:
            print(f"{path.relative_to(ROOT)}: {run(path, a.wanted):.0f} s, {path.stat().st_size // 1024} kB", flush=True)
        except CellExecutionError as error:
            sys.exit(f"{path.relative_to(ROOT)} failed and was left as it was:\n{error}")


if __name__ == "__main__":
    main()

"""Write README.md from nbs/index.ipynb: its prose, code and stored outputs, without running anything.

    python tools/make_readme.py

Cells marked `#| hide` stay out; of cells marked `#| echo: false` only the output is shown; other directives are not. Pictures in outputs go to index_files/, links that
start from nbs/ are turned to start from the checkout.
"""
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
PICTURES = "index_files"


def relink(text):
    "Links of a page in nbs/ as links of a page one folder up."
    text = re.sub(r"\]\((?!\w+:|#|/|\.\./|index_files/)", "](nbs/", text)
    text = re.sub(r'src="(?!\w+:|#|/|\.\./|index_files/)', 'src="nbs/', text)
    return text.replace("](../", "](").replace('src="../', 'src="')


def visible(book):
    "The notebook without hidden cells and directive lines."
    hidden = re.compile(r"^#\|\s*(hide|default_exp)\b", re.M)
    book.cells = [c for c in book.cells if not (c.cell_type == "code" and hidden.search(c.source))]
    for cell in book.cells:
        if cell.cell_type == "code":
            if re.search(r"^#\|\s*echo:\s*false", cell.source, re.M):
                cell.metadata["transient"] = {"remove_source": True}
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
        else:
            cell.source = relink(cell.source)
    return book


def readme(root=ROOT):
    "The page's text, and its pictures as {path relative to `root`: bytes}."
    book = visible(nbformat.read(root / "nbs" / "index.ipynb", as_version=4))
    book.metadata["language_info"] = {"name": "python"}
    resources = {"output_files_dir": PICTURES, "unique_key": "index"}
    text, resources = MarkdownExporter().from_notebook_node(book, resources)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", resources["outputs"]


def main():
    "Write the page and its pictures; pictures that no output shows any more are removed."
    text, pictures = readme()
    for old in (ROOT / PICTURES).glob("*"):
        old.unlink()
    for name, data in pictures.items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(data)
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    print(f"README.md: {len(text.splitlines())} lines, {len(pictures)} pictures")


if __name__ == "__main__":
    main()

"""The documentation site in _docs/: pages from the notebooks with their stored outputs, guides, a gallery, an API reference.

    python tools/make_site.py [--out _docs] [--jobs 2]

Nothing is run: what a page shows was stored when its notebook was last run. The notebooks are first copied to _proc/site
without nbdev's directives and hidden cells, with links that hold there; then Sphinx builds that folder, and warnings are
errors. A link to a file that does not exist is an error that names the page.
"""
import argparse, base64, io, json, os, re, shutil, subprocess, sys
from pathlib import Path, PurePosixPath

from check_notebooks import modules, notebooks, setting

ROOT = Path(__file__).resolve().parent.parent
FILES = "files"  # where files of the checkout that pages link to lie in the site
WINGS = ("0_start", "1_registration", "2_generation", "3_estimation", "4_evaluation", "5_simulation", "6_apps", "experiments")
GUIDES = ("my_film", "from_openface", "my_database", "gpu_and_cluster", "intensities", "privacy", "threats")
GALLERY = {  # notebook: which of its pictures, counted from 0; None, or one that is no longer there: the largest
    "0_start/05_meshes": 2, "1_registration/01_detection": None, "1_registration/06_frontal": None,
    "1_registration/08_prnet": None, "2_generation/01_geometric": None, "2_generation/06_synthesis": None,
    "2_generation/07_ratio": None, "2_generation/09_photographs": None, "3_estimation/07_personalization": 0,
    "3_estimation/10_pixels": 1, "3_estimation/13_estimator": 5, "4_evaluation/04_features": 2,
    "5_simulation/01_face_model": None, "5_simulation/03_appearance": 18, "5_simulation/04_camera": 17,
    "5_simulation/08_rich": None, "5_simulation/10_simulate": None, "6_apps/02_overlay": 4,
    "6_apps/04_registration_explorer": None, "6_apps/08_studio": None, "experiments/intensities": None,
    "experiments/mesh_and_pixels": 0, "experiments/generators": None, "experiments/virtual_people": None}
THUMBNAIL = (420, 300)  # pixels


class SiteError(ValueError):
    "What is wrong with the sources of the site; the message names the page and the way out."


# Pages from notebooks

def target(link, page, root=ROOT):
    "Where `link` on `page` (a path from the checkout) leads on the site: the same page, a staged file, or the repository."
    path, mark, fragment = link.partition("#")
    fragment = mark + fragment.lower()
    if re.match(r"\w+:", link) or not path:
        return link if path else fragment
    found = PurePosixPath(os.path.normpath(page.parent / path).replace(os.sep, "/"))
    if found.parts[0] == ".." or not (root / found).exists():
        raise SiteError(f"{page}: links to {link}, which does not exist; mend the link or write the file")
    if (root / found).is_dir() or (found.suffix in (".md", ".ipynb") and found.parts[0] != "nbs"):
        return f"{setting(root, 'git_url')}/{'tree' if (root / found).is_dir() else 'blob'}/main/{found}{fragment}"
    if found.parts[0] == "nbs" and found.suffix in (".ipynb", ".md", ".jpg", ".png"):
        return link.replace("#" + link.partition("#")[2], fragment) if mark else link
    up = "../" * (len(page.relative_to("nbs").parts) - 1)
    return f"{up}{FILES}/{found}{fragment}"


def in_both_schemes(picture, alt, folder):
    "Markdown of a picture in `folder`, and of its sister for dark screens, where there is one: NAME_dark.jpg."
    dark = f"{picture[:-4]}_dark.jpg"
    there = [(picture, "only-light"), (dark, "only-dark")] if (folder / dark).exists() else [(picture, "")]
    return "\n".join(f"```{{image}} {path}\n:alt: {alt}\n" + f":class: {kind}\n" * bool(kind) + "```" for path, kind in there)


def relink(text, page, root=ROOT):
    "Markdown with the links of `page` as they are on the site; of pictures that lie elsewhere the words stay, nothing is fetched."
    text = re.sub(r"!\[([^]]*)\]\(https?:[^)]*\)", r"\1", text)
    text = re.sub(r"^!\[([^]]*)\]\((\S*images/demos/\S*)\)$", lambda m: in_both_schemes(m[2], m[1], root / page.parent), text, flags=re.M)
    text = re.sub(r"(\]\()([^)\s]+)", lambda m: m[1] + target(m[2], page, root), text)
    return re.sub(r'(src=")([^"]+)', lambda m: m[1] + target(m[2], page, root), text)


def files_linked(text):
    "Files of the checkout, outside nbs/, that a relinked text leads to."
    return {Path(found) for found in re.findall(rf"\]\((?:\.\./)*{FILES}/([^)#\s]+)", text)}


def first_sentence(markdown):
    "The first sentence of a cell's prose without marks, at most 160 characters: what its picture shows, for those who cannot see it."
    lines = [line for line in markdown.splitlines() if line.strip() and not re.match(r"\s*([#>|$]|!\[|```)", line)]
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(lines[:3])).translate(str.maketrans("", "", "*`$\\"))
    sentence = re.split(r"(?<=[.?]) |: *$", text.strip())[0]
    return sentence if len(sentence) <= 160 else sentence[:160].rsplit(" ", 1)[0] + " …"


def shown(cell):
    "A code cell without directives, tagged as they say; None if nothing of it is shown."
    source = "".join(cell["source"])
    directives = re.findall(r"^#\|\s*(\w+):?\s*(\w*)", source, re.M)
    code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")
    if not code or any(name in ("hide", "default_exp") for name, _ in directives):
        return None
    tags = ["remove-input"] if ("echo", "false") in directives else []
    tags += ["hide-input"] if cell["metadata"].get("jupyter", {}).get("source_hidden") and not tags else []
    outputs = [o for o in cell["outputs"] if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})]
    return {**cell, "source": code, "metadata": {"tags": tags}, "outputs": outputs}


def has_picture(cell):
    "Does a code cell show a picture?"
    return any(kind.startswith("image/") for o in cell["outputs"] for kind in o.get("data", {}))


def folded(cell):
    "A solution: nothing of the cell is seen before the reader asks for it."
    words = {f"code_prompt_{what}": f"{what.title()} the solution" for what in ("show", "hide")}
    return {**cell, "metadata": {**cell["metadata"], "tags": ["hide-cell"], "mystnb": cell["metadata"].get("mystnb", {}) | words}}


def staged(book, page, root=ROOT):
    "A notebook (dict) as the site shows it; a folded cell below its exercises is a solution, folded with what it shows."
    cells, prose, exercises = [], "", False
    for cell in book["cells"]:
        if cell["cell_type"] == "markdown":
            prose = relink("".join(cell["source"]), page, root)
            exercises = exercises or bool(re.search("^## Exercises$", prose, re.M))
            cells.append({**cell, "source": prose})
        elif cell["cell_type"] == "code" and (cell := shown(cell)):
            for output in cell["outputs"]:
                if "text/markdown" in output.get("data", {}):
                    output["data"]["text/markdown"] = relink("".join(output["data"]["text/markdown"]), page, root)
            if has_picture(cell):
                cell["metadata"]["mystnb"] = {"image": {"alt": first_sentence(prose) or title(book)}}
            cells.append(folded(cell) if exercises and "hide-input" in cell["metadata"]["tags"] else cell)
    return {**book, "cells": cells}


def title(book):
    "The first heading of a notebook."
    return re.search(r"^# (.+)$", "\n".join("".join(c["source"]) for c in book["cells"]), re.M).group(1)


def subtitle(book):
    "The line below the title that says what a reader gets, without links."
    found = re.search(r"^> (.+)$", "".join(book["cells"][0]["source"]), re.M)
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", found.group(1)) if found else ""


# Gallery

def pictures(book):
    "The pictures stored in a notebook, as bytes, in order."
    data = [o.get("data", {}) for c in book["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    return [base64.b64decode("".join(v)) for d in data for k, v in d.items() if k in ("image/jpeg", "image/png")]


def thumbnail(picture):
    "A JPEG as wide as `THUMBNAIL`: the upper part of a picture that is too tall for it, and the whole of a wide one."
    from PIL import Image, ImageOps
    image = Image.open(io.BytesIO(picture)).convert("RGBA")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image.getchannel("A"))
    width, height = THUMBNAIL
    if paper.width / paper.height > width / height:
        small = ImageOps.contain(paper, THUMBNAIL)
    else:
        small = ImageOps.fit(paper, THUMBNAIL, centering=(0.5, 0))
    small.save(out := io.BytesIO(), "JPEG", quality=80)
    return out.getvalue()


def card(name, book, picture):
    "One card of the gallery: a picture that leads to its notebook."
    return (f":::{{grid-item-card}} {title(book)}\n:link: /{name}\n:link-type: doc\n:img-top: {picture}\n"
            f":img-alt: A picture from this notebook\n\n{subtitle(book)}\n:::\n")


def gallery(books):
    "The gallery's page and its thumbnails, as {path: content}."
    cards, made = [], {}
    for name, which in GALLERY.items():
        if (book := books.get(name)) and (found := pictures(book)):
            path = f"gallery/{name.replace('/', '_')}.jpg"
            made[path] = thumbnail(max(found, key=len) if which is None or which >= len(found) else found[which])
            cards.append(card(name, book, path))
    text = ("# Gallery\n\nEach picture leads to the notebook that makes it. Nobody in them exists, but for the people in "
            "photographs that scikit-image ships.\n\n::::{grid} 1 2 3 3\n:gutter: 3\n\n" + "\n".join(cards) + "::::\n")
    return {"gallery.md": text, **made}


# Menu and reference

def tree(names, caption="", hidden=True, depth=2):
    "A table of contents for the site's menu."
    options = [f":caption: {caption}"] * bool(caption) + [":hidden:"] * hidden + [f":maxdepth: {depth}"]
    return "```{toctree}\n" + "\n".join([*options, "", *names]) + "\n```\n"


def public_modules(root=ROOT):
    "Dotted names of the package's modules that a notebook exports."
    dotted = [".".join(p.with_suffix("").parts) for p in modules(root) if p.name not in ("_modidx.py", "__main__.py")]
    return [name.removesuffix(".__init__") for name in dotted]


def room(name, root=ROOT):
    "A line that leads from a module's page to the notebook that makes it."
    path = root / Path(*name.split("."))
    text = path.with_suffix(".py").read_text(encoding="utf-8") if path.with_suffix(".py").exists() else ""
    found = re.search(r"File to edit: (?:\.\./)*nbs/(\S+)\.ipynb", text)
    return f"Built, shown and tested in {{doc}}`/{found.group(1)}`.\n\n" if found else ""


def reference(root=ROOT):
    "One page for each module, and one that lists them, as {path: content}."
    names = [name for name in public_modules(root)]
    page = lambda name: (f"# {name.partition('.')[2] or name}\n\n{room(name, root)}"
                         f"```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n")
    wings = sorted({name.split(".")[1] for name in names if name.count(".") == 2})
    pages = {f"api/{name}.md": page(name) for name in names if name.count(".") != 1 or name.split(".")[1] not in wings}
    for wing in wings:
        rooms = [name for name in names if name.startswith(f"{setting(root, 'lib_name')}.{wing}.")]
        pages[f"api/{wing}.md"] = f"# {wing}\n\n" + tree(rooms, hidden=False, depth=1)
    first = [name for name in names if name.split(".")[-1] not in wings and name.count(".") < 2]
    pages["api/index.md"] = ("# Reference\n\nEvery public function and class, by module, from its docstring. How a piece "
                             "works is told by the notebook that makes it.\n\n" + tree([*first, *wings], hidden=False))
    return pages


def menu(names):
    "For each page that opens a part of the site, the table of contents that goes to its end."
    rooms = {wing: [n.partition("/")[2] for n in names if n.startswith(f"{wing}/")] for wing in (*WINGS, "demos")}
    heads = {f"{wing}/{own[0]}": tree(own[1:]) for wing, own in rooms.items() if wing in WINGS and own}
    guides = [f"guides/{n}" for n in GUIDES if f"guides/{n}" in names]
    return {**heads, "index": tree(guides, "Guides", depth=1) + tree(list(heads), "Notebooks")
            + tree(["demos", "gallery", "api/index"], "More")}


def demos(books, root=ROOT):
    "The page that shows the widget demos."
    own = [n for n in books if n.startswith("demos/")]
    cards = []
    for name in own:
        picture, text = f"images/{name}.jpg", re.sub(r":img-\w+: .*\n", "", card(name, books[name], ""))
        if (root / "nbs" / picture).exists():  # the picture, then the title
            both = in_both_schemes(picture, "A picture of this demo", root / "nbs")
            head, body = text.replace(f" {title(books[name])}\n", "\n:class-card: demo\n", 1).split("\n\n", 1)
            text = f"{head}\n\n{both}\n\n**{title(books[name])}**\n\n{body}"
        cards.append(text)
    return ("# Demos\n\nA page cannot run them; `make voila` in a clone serves them all on your own machine.\n\n"
            "::::{grid} 1 2 2 2\n:gutter: 3\n\n" + "\n".join(cards) + "::::\n\n" + tree(own))


def sources(root=ROOT):
    "Every file of the site's source folder, as {path: text or bytes}."
    books = {p.relative_to("nbs").with_suffix("").as_posix(): json.loads((root / p).read_text(encoding="utf-8"))
             for p in notebooks(root)}
    pages = {n: staged(book, PurePosixPath("nbs", f"{n}.ipynb"), root) for n, book in books.items()}
    guides = {p.relative_to(root / "nbs").with_suffix("").as_posix(): relink(p.read_text(encoding="utf-8"), PurePosixPath(
        p.relative_to(root).as_posix()), root) for p in sorted((root / "nbs" / "guides").glob("*.md"))}
    for name, text in menu([*books, *guides]).items():
        pages[name]["cells"].append({"cell_type": "markdown", "id": "menu", "metadata": {}, "source": text})
    out = {f"{n}.ipynb": json.dumps(book, ensure_ascii=False, indent=1) for n, book in pages.items()}
    out |= {f"{n}.md": text for n, text in guides.items()} | gallery(books) | reference(root)
    out["demos.md"] = demos(books, root)
    prose = [c["source"] for book in pages.values() for c in book["cells"] if c["cell_type"] == "markdown"]
    linked = set().union(*map(files_linked, [*prose, *guides.values()]))
    out |= {f"{FILES}/{path.as_posix()}": (root / path).read_bytes() for path in linked}
    images = (p for p in (root / "nbs" / "images").rglob("*") if p.is_file())
    return out | {p.relative_to(root / "nbs").as_posix(): p.read_bytes() for p in images}


def write(files, folder):
    "Make `folder` hold exactly these files; one that is as it should be keeps its time, so that Sphinx builds only what changed."
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        path = folder / name
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            path.unlink()


def build(out, jobs, root=ROOT):
    "Stage and build in _proc, then replace `out`: a site that fails leaves the old one. Returns Sphinx's exit status."
    stage, made = root / "_proc" / "site", root / "_proc" / "html"
    write(sources(root), stage)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", str(jobs), "-b", "html",
               "-c", str(root / "docs"), "-d", str(root / "_proc" / "doctrees"), str(stage), str(made)]
    status = subprocess.run(command, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
    if status == 0:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(made, out)
    return status


def main():
    "Build the site; exit 1 if a source is wrong or Sphinx warns."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / setting(ROOT, "doc_path"), help="folder of the site")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    try:
        status = build(options.out.resolve(), options.jobs)
    except SiteError as error:
        sys.exit(str(error))
    print(f"{options.out}: {len(list(options.out.rglob('*.html')))} pages" if status == 0 else "the site was not built")
    sys.exit(status)


if __name__ == "__main__":
    main()

"""What the site needs beyond Sphinx's own: equations without a script, and docstrings whose single backticks are code."""
import re
from functools import cache
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert


def visit_math(self, node):
    "An equation in a line, as MathML, which browsers draw themselves."
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_math_block(self, node):
    "An equation of its own; a long one scrolls."
    self.body.append(f'<div class="math" tabindex="0">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


@cache
def places():
    "Full name of each public function and class, by the name that docstrings use; a name of two is left out."
    from aufacs_nb._modidx import d

    found = {}
    for module in d["syms"].values():
        for full in module:
            name = full.removeprefix("aufacs_nb.").split(".")[-1]
            if not name.startswith("_") and full.count(".") <= 3:
                found.setdefault(name, set()).add(full)
    return {name: next(iter(full)) for name, full in found.items() if len(full) == 1}


def as_rst(line):
    "One line of a docstring: `name` becomes a link to what it names, or code; other marks stay what they are."
    out = ""
    for k, part in enumerate(line.split("`")):
        if k % 2 == 0:  # a mark ends where a letter follows only after an empty escape
            out += "\\ " * bool(k and re.match(r"\w", part)) + re.sub(r"([*|\\]|(?<=\w)_\b)", r"\\\1", part)
        elif part:
            full = places().get(part.removesuffix("()"))
            out += "\\ " * bool(re.search(r"\w$", out)) + (f":py:obj:`{part} <{full}>`" if full else f"``{part}``")
    return out


def read_docstring(app, what, name, obj, options, lines):
    "Turn the lines of a docstring, in place."
    lines[:] = [as_rst(line) for line in lines if not line.startswith("Alias for field number")]


def short_types(app, what, name, obj, options, signature, returns):
    "A signature in which NumPy's unions have their names again."
    from numpy.typing import ArrayLike, DTypeLike
    from sphinx.util.typing import stringify_annotation

    for kind, alias in ((ArrayLike, "ArrayLike"), (DTypeLike, "DTypeLike")):
        for mode in ("smart", "fully-qualified", "fully-qualified-except-typing"):
            spelled = stringify_annotation(kind, mode)
            signature, returns = (text and text.replace(spelled, alias) for text in (signature, returns))
    return signature, returns


MADE = ("api/", "gallery", "demos", "genindex", "search", "py-modindex")


def without_source(app, page, template, context, doctree):
    "A page that no file of the repository holds has no button that leads to its source."
    if page.startswith(MADE) and not page.startswith("demos/"):
        for group in context.get("header_buttons", []):
            if "buttons" in group:
                group["buttons"] = [b for b in group["buttons"] if "/blob/" not in b.get("url", "")]


def setup(app):
    "Called by Sphinx."
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-process-signature", short_types)
    app.connect("html-page-context", without_source, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

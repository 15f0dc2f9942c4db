"""Sphinx's settings for the site that tools/make_site.py builds from the notebooks. Nothing is run, nothing is fetched."""
import sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
parser = ConfigParser(delimiters=["="])
parser.read(HERE.parent / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

project, author, release = settings["lib_name"], settings["author"], settings["version"]
copyright = settings["copyright"]
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.linkcode", "sphinx_copybutton", "sphinx_design", "extras"]

suppress_warnings = ["misc.highlighting_failure"]  # a listing that is cut with … is drawn all the same
nb_execution_mode = "off"  # a page shows what is stored
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}  # no script from elsewhere
myst_enable_extensions = ["dollarmath", "amsmath", "html_image", "colon_fence"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "undoc-members": False}
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries = False

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_favicon = html_logo = "static/face.svg"
html_context = {"default_mode": "auto"}
html_show_sphinx = False
html_last_updated_fmt = None
html_copy_source = False
html_baseurl = f"{settings['doc_host']}{settings['doc_baseurl']}/"
html_theme_options = {
    "repository_url": settings["git_url"], "repository_branch": settings["branch"], "path_to_docs": settings["nbs_path"],
    "use_repository_button": True, "use_issues_button": True, "use_source_button": True, "use_download_button": False,
    "launch_buttons": {"colab_url": "https://colab.research.google.com", "binderhub_url": "https://mybinder.org",
                       "notebook_interface": "jupyterlab"},
    "logo": {"text": project}, "navbar_persistent": [], "collapse_navigation": True, "show_toc_level": 2, "show_navbar_depth": 1, "home_page_in_toc": False}
copybutton_exclude = ".linenos, .gp, .go"


def linkcode_resolve(domain, info):
    "Where the repository shows a piece of a module."
    import inspect
    import sys

    found = sys.modules.get(info["module"])
    for name in info["fullname"].split("."):
        found = getattr(found, name, None)
    try:
        lines, first = inspect.getsourcelines(inspect.unwrap(found))
    except (TypeError, OSError):
        return None
    path = info["module"].replace(".", "/")
    return f"{settings['git_url']}/blob/{settings['branch']}/{path}.py#L{first}-L{first + len(lines) - 1}"

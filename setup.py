"""Packaging: every value comes from settings.ini, which nbdev reads too, so nothing is said twice."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8") if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license_expression="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    keywords=settings["keywords"].split(),
    packages=find_packages(include=["aufacs_nb", "aufacs_nb.*"]),
    package_data={"aufacs_nb": ["py.typed", "assets/**/*"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={extra: settings[f"{extra}_requirements"].split() for extra in ("dev", "heic", "dlib", "fid", "plots", "cluster", "hub", "live")},
    entry_points={"console_scripts": settings["console_scripts"].split(),
                  "nbdev": [f"{settings['lib_name']}={settings['lib_path']}._modidx:d"]},
    zip_safe=False,
)

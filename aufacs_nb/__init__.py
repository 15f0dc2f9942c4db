"""Facial action units from a photograph or a film, adapted to the person. Nothing heavy is imported before it is used."""
import os
import sys
from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"

# What a user reaches without knowing the wings; each is imported at its first use.
_SHORT = {
    "AUEstimator": "estimation.estimator", "AUClassifiers": "estimation.storage",
    "FaceLandmarker": "registration.detection", "register_photo": "registration.collections",
    "load_generator": "generation.runs", "synthesize": "generation.synthesis",
    "get_preset": "presets", "icc_3_1": "evaluation.scores",
}


def __getattr__(name: str):
    "`from aufacs_nb import AUEstimator` without the seconds that torch takes in `import aufacs_nb`."
    if name not in _SHORT:
        raise AttributeError(f"module 'aufacs_nb' has no attribute {name!r}")
    return getattr(import_module(f"aufacs_nb.{_SHORT[name]}"), name)


def __dir__() -> list:
    "The module's names, those that are imported at their first use among them."
    return sorted([*globals(), *_SHORT])


def _stores_loops() -> bool:
    "Can numba store compiled loops where it wants to: beside the modules, or in the user's folder for such things?"
    beside = Path(__file__).with_name("geometry")
    if os.access(beside / "__pycache__" if (beside / "__pycache__").is_dir() else beside, os.W_OK):
        return True
    home = Path(os.path.expanduser("~"))
    if sys.platform in ("darwin", "win32"):
        return os.access(home, os.W_OK)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "numba"
    try:
        folder.mkdir(parents=True, exist_ok=True)  # as numba would
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _private_folder(parent: str) -> str | None:
    "A folder of this user in a place for all; None where it cannot be, or somebody else could write to it."
    user = getattr(os, "getuid", lambda: "")()
    folder = Path(parent) / f"aufacs_nb-loops-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    foreign = user != "" and (found.st_uid != user or found.st_mode & 0o022 or folder.is_symlink())
    return None if foreign or not os.access(folder, os.W_OK) else str(folder)


def _find_place_for_loops() -> None:
    "Where neither package nor home can be written (containers), numba stores in a temporary folder, or would refuse."
    if os.environ.get("NUMBA_CACHE_DIR") or _stores_loops():
        return
    places = [os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)]
    for parent in (*places, "/tmp", "/var/tmp", "/dev/shm"):
        if folder := _private_folder(parent):
            os.environ["NUMBA_CACHE_DIR"] = folder
            if "numba" in sys.modules:  # it has read the variable already
                sys.modules["numba"].config.CACHE_DIR = folder
            return


def _compute_on_one_thread() -> None:
    "A forked process has none of torch's threads, and would wait for them for ever."
    if set_threads := getattr(sys.modules.get("torch"), "set_num_threads", None):
        set_threads(1)


_find_place_for_loops()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_on_one_thread)

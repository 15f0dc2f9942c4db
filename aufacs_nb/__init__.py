"""Facial action units from a photograph or a film, adapted to the person. Nothing heavy is imported before it is used."""
from importlib import import_module

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

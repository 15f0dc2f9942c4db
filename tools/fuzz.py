"""A corpus of bad inputs for every command of `aufacs`: made by a script, tried one after the other, judged, counted.

    python tools/fuzz.py [COMMAND ...] [--cases 2000] [--seed 0] [--out fuzz.csv]

A case is a command line and what may come of it. Allowed are the exit codes 0, 1 and 2, within 60 seconds, without a
traceback, with little memory. Whatever ends with an error names the file or the option at fault. Only the cases that
say so may succeed, and inputs, links and files of other programs stay as they were. The script ends with an error if
one case breaks a rule, and prints what that case was. `tests/test_corpus.py` is its short form.

Commands run inside this process, which loads the libraries once.
"""
import argparse
import csv
import gc
import io
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
import typing
import warnings
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.contents import contents
from tools.limits import limited, memory

SECONDS = 60         # a case that takes longer hangs
MEGABYTES = 1500     # that one case may add to what this process holds
# They take minutes when they succeed: here only what they refuse.
SLOW = ("train", "train-prnet", "demo", "reproduce", "live", "personalize")
REFUSED, ANY, DONE = "refused", "any", "done"


@dataclass(frozen=True)
class Case:
    "A command line, what must be named where it is refused, what may come of it, and what must stay as it is."
    kind: str
    name: str
    words: tuple
    names: tuple
    allowed: str = REFUSED
    keeps: tuple = ()

    @property
    def command(self) -> str:
        "Its command."
        return " ".join(self.words[:2]) if self.words[0] == "simulate" else self.words[0]


# ---------------------------------------------------------------------------------------------------- good inputs

def prepare(home: Path) -> None:
    "Good inputs under `home`: a photograph, films, a database, registered frames, a balanced set, weights."
    import imageio.v3 as iio
    from PIL import Image
    from skimage.data import astronaut

    from aufacs_nb.databases import sample_database
    from aufacs_nb.estimation.resampling import real_set
    from aufacs_nb.registration.collections import sample_registered

    Image.fromarray(astronaut()[:300, 90:390]).save(home / "good.png")
    Image.fromarray(astronaut()[:300, 90:390]).save(home / "good.jpg")
    film = sorted(sample_database().rglob("*.mp4"))[0]
    shutil.copy(film, home / "good.mp4")
    iio.imwrite(home / "black.mp4", np.zeros((4, 64, 64, 3), np.uint8), fps=4, codec="libx264")
    (home / "photos").mkdir()
    shutil.copy(home / "good.png", home / "photos")
    shutil.copytree(sample_database().parent / "registered", home / "registered")
    sample = sample_registered()
    train = sample.select((sample.manifest.partition == "Train") & sample.manifest.valid)
    with warnings.catch_warnings(action="ignore"):
        real_set(train.frames, train.manifest, per_intensity=1, out=home / "balanced")


# ------------------------------------------------------------------------------------------- pictures, films, paths

def _png(width: int, height: int) -> bytes:
    "A PNG whose header promises a size, with hardly any data."
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        "One chunk."
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", zlib.compress(bytes(99)))
            + chunk(b"IEND", b""))


_PROGRAM = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) run\n"  # PostScript, which is executed


def _written(home: Path) -> dict:
    "{name: bytes} of files that are no pictures and no films."
    photo, picture, film = ((home / name).read_bytes() for name in ("good.jpg", "good.png", "good.mp4"))
    return {
        "empty.png": b"", "empty.jpg": b"", "empty.mp4": b"", "byte.png": b"\x89", "text.png": b"no picture",
        "text.mp4": b"no film", "page.jpg": b"<html><body>404</body></html>", "zip.png": b"PK\x03\x04" + bytes(40),
        "header.jpg": photo[:20], "header.png": picture[:33], "header.mp4": film[:48], "cut.jpg": photo[:999],
        "cut.png": picture[:len(picture) // 3], "cut.mp4": film[:2000], "late.mp4": film[-3000:], "bomb.png":
        _png(60_000, 60_000), "flat.png": _png(0, 0), "wide.png": _png(2**31 - 1, 1), "film.png": film,
        "picture.mp4": picture, "list.mp4": b"ffconcat version 1.0\nfile http://127.0.0.1:9/x.mp4\n",
        "list.mkv": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n", "zeros.avi": bytes(5000), "null.gif": b"GIF89a",
        "text.webp": b"RIFF\xff\xff\xff\xffWEBPVP8 ", "text.tiff": b"II*\0\xff\xff\xff\xff",
        "text.heic": b"\0\0\0\x18ftyp", "run.png": _PROGRAM, "run.eps": _PROGRAM, "list.mjpg": b"v=0\r\nc=IN IP4 127.0.0.1\r\n",
        "tracker.mod": b"song".ljust(2000, b"\0"), "text.tga": b"no picture", "text.y4m": b"YUV4MPEG2 W9 H9\n",
        "text.parquet": b"PAR1", "data.xyz": b"?", "data": b"?", "text.npy": b"\x93NUMPY\x01\0"}


def _pictures(bad: Path) -> None:
    "Files that can be read, and show no face or are unusual."
    from PIL import Image

    draw, noise = Image.fromarray, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name, image in {"noise.png": noise, "dot.png": noise[:1, :1], "line.png": noise[:1], "black.jpg": noise * 0,
                        "deep.png": noise[:, :, 0].astype(np.uint16) * 256, "grey.png": noise[:, :, 0]}.items():
        draw(image).save(bad / name)
    draw(np.full((9, 9), np.nan, np.float32)).save(bad / "nan.tiff")
    draw(noise).convert("CMYK").save(bad / "cmyk.jpg")
    draw(noise).convert("P").save(bad / "colours.gif", save_all=True, append_images=[draw(noise * 0).convert("P")] * 2)
    for name, shape in (("thin.png", (2, 9000, 3)), ("large.png", (3000, 3000))):
        draw(np.zeros(shape, np.uint8)).save(bad / name)


def _places(bad: Path) -> None:
    "Folders, links, pipes and devices under names of pictures and films."
    for name in ("folder.png", "folder.mp4", "nothing", "deadlinks", "loop", "pipes"):
        (bad / name).mkdir()
    for name, target in {"dead.png": "nowhere.png", "self.png": "self.png", "zero.png": "/dev/zero",
                         "zero.mp4": "/dev/zero",
                         "null.png": "/dev/null", "loop/up": "..", "loop/self": "self", "deadlinks/dead.png": "nowhere",
                         "deadlinks/dead.mp4": "nowhere"}.items():
        (bad / name).symlink_to(target)
    for name in ("pipe.png", "pipe.mp4", "pipe", "pipes/pipe.png", "pipes/pipe.mp4"):
        os.mkfifo(bad / name)
    for name in ("sparse.png", "sparse.mp4"):
        with open(bad / name, "wb") as file:
            file.truncate(1 << 30)


def bad_media(home: Path) -> list:
    "Paths of bad pictures and films; none of them shows a face."
    bad = home / "bad"
    bad.mkdir()
    for name, data in _written(home).items():
        (bad / name).write_bytes(data)
    _pictures(bad)
    _places(bad)
    shutil.copy(home / "black.mp4", bad / "black.mp4")
    there = [bad / name for name in sorted(os.listdir(bad)) if name != "loop"]
    return [*there, bad / "loop" / "self", bad / "absent.png", bad / "absent.mp4", bad / "good.png" / "below.png",
            bad / ("n" * 300 + ".png"), Path("/dev/null"), Path("/dev/zero"), Path("/dev/tty"),
            Path("http://127.0.0.1:9/x.mp4")]


def damaged_media(home: Path, random, count: int) -> list:
    "Pictures and films with bytes changed or cut at random places; some of them can still be read."
    folder, made = home / "damaged", []
    folder.mkdir()
    for number in range(count):
        source = home / ("good.jpg", "good.png", "good.mp4")[number % 3]
        data = bytearray(source.read_bytes())
        for place in random.integers(0, len(data), random.integers(1, 30)):
            data[place] = random.integers(256)
        made.append(folder / f"{number}{source.suffix}")
        made[-1].write_bytes(data[:random.integers(1, len(data))] if number % 2 else data)
    return made


NAMES = ["a b.png", "it's.png", 'a"b.png', "a:b.png", "-dash.png", "--out.png", "=1+1.png", "@SUM(A1).png", "+1.png",
         "a\x1b[31mred.png", "a\x07.png", "a\nb.png", "a\tb.png", b"a\xff\xfe.png".decode("utf-8", "surrogateescape"),
         "%s%d.png", "{x}.png", "a,b.png", "a;b.png", "$HOME.png", "`id`.png", "*.png", "?.png", "[1].png",
         "\u202egnp.png",
         "\U0001f600.png", "e\u0301.png", "a\\b.png", "<b>.png", "&amp;.png", "..png", "a.PNG", "a.b.c.png", "#1.png",
         "file:a.png", "~.png", "n" * 240 + ".png"]


def named(home: Path) -> list:
    "A good photograph under names that programs trip over; each in a folder of its own."
    made = []
    for number, name in enumerate(NAMES):
        (home / "named" / str(number)).mkdir(parents=True)
        made.append(home / "named" / str(number) / name)
        shutil.copy(home / "good.png", made[-1])
    return made


MEDIA = {"predict": ("predict", "SRC", "--out", "OUT/au.csv", "--device", "cpu", "--quiet"),
         "predict-raise": ("predict", "SRC", "--out", "OUT/au.parquet", "--on-error", "raise", "--faces", "all",
                           "--quiet"),
         "predict-overlay": ("predict", "SRC", "--out", "OUT/au.csv", "--overlay", "OUT/a.png", "--plot", "OUT/p.png"),
         "predict-neutral": ("predict", "GOOD", "--out", "OUT/au.csv", "--neutral", "SRC", "--quiet"),
         "predict-mesh18": ("predict", "SRC", "--out", "OUT/au.jsonl", "--model", "mesh18", "--quiet"),
         "actions": ("actions", "SRC", "--out", "OUT/au.csv", "--quiet"),
         "personalize": ("personalize", "SRC", "--out", "OUT/me", "--device", "cpu", "--quiet"),
         "synthesize": ("synthesize", "SRC", "--out", "OUT/x.png", "--au", "12=3", "--quiet"),
         "synthesize-film": ("synthesize", "SRC", "--out", "OUT/x.mp4", "--au", "12=3", "--quiet"),
         "synthesize-frontal": ("synthesize", "SRC", "--out", "OUT/x.png", "--frontal", "--au", "12=3", "--quiet"),
         "demo": ("demo", "--photo", "SRC", "--out", "OUT/demo", "--quiet"),
         "register": ("register", "SRC", "--out", "OUT/r", "--size", "32", "--quiet"),
         "register-skip": ("register", "SRC", "--out", "OUT/r", "--method", "procrustes", "--on-error", "skip",
                           "--quiet"),
         "manifest": ("manifest", "SRC", "--out", "OUT/m.parquet"),
         "manifest-disfa": ("manifest", "SRC", "--out", "OUT/m.parquet", "--database", "disfa", "--on-error", "skip")}
READABLE = ("noise.png", "dot.png", "line.png", "black.jpg", "deep.png", "grey.png", "cmyk.jpg", "colours.gif",
            "thin.png",
            "large.png", "black.mp4", "film.png")  # without a face: a manifest of them is right


def _filled(words: tuple, source: Path, home: Path) -> tuple:
    "The words with their source."
    return tuple(str(source) if word == "SRC" else str(home / "good.png") if word == "GOOD" else word for word in words)


def media_cases(home: Path, random, count: int) -> list:
    "Every bad file in the place of every photograph or film; odd names; damage at random."
    cases = [Case("media", f"{place}: {path.name[:40]}", _filled(words, path, home),
                  (path.name, str(path), *(("--overlay",) if "overlay" in place else ())),
                  ANY if "manifest" in place and path.name in READABLE else REFUSED)
             for (place, words), path in itertools.product(MEDIA.items(), bad_media(home))]
    for place, path in itertools.product(("predict", "actions", "synthesize", "register"), named(home)):
        words = _filled(MEDIA[place], path, home)
        cases.append(Case("names", f"{place}: {path.name[:40]!r}", words, (path.name, str(path)),
                          REFUSED if place == "register" and "\udcff" in path.name else DONE))  # no table can hold it
    places = [place for place in MEDIA if place not in ("demo", "personalize")]  # which take long with a good one
    for number, path in enumerate(damaged_media(home, random, count)):
        place = places[number % len(places)]
        named_too = (path.name, *(("--overlay",) if "overlay" in place else ()))  # a film's ends in .mp4
        cases.append(Case("damage", f"{place}: {path.name}", _filled(MEDIA[place], path, home), named_too, ANY))
    return cases


# -------------------------------------------------------------------------------------------------------- outputs

OUTPUTS = {"predict": ("predict", "GOOD", "--quiet"), "actions": ("actions", "GOOD", "--quiet"),
           "personalize": ("personalize", "GOOD", "--quiet"),
           "synthesize": ("synthesize", "GOOD", "--au", "12=3", "--quiet"),
           "demo": ("demo", "--photo", "GOOD", "--quiet"),
           "register": ("register", "GOOD", "--size", "32", "--quiet"), "manifest": ("manifest", "PHOTOS"),
           "normalize": ("normalize", "--data", "REGISTERED", "--quiet"),
           "resample": ("resample", "--data", "REGISTERED", "--method", "real", "--per-intensity", "1", "--quiet"),
           "simulate fera17": ("simulate", "fera17", "--subjects", "1,1,1", "--frames", "2", "--size", "48", "--quiet"),
           "simulate disfa": ("simulate", "disfa", "--subjects", "1", "--frames", "2", "--size", "64x48", "--quiet"),
           "simulate unbc": ("simulate", "unbc", "--subjects", "1", "--frames", "2", "--size", "64x48", "--quiet"),
           "simulate multipie": ("simulate", "multipie", "--subjects", "1", "--size", "64x48", "--quiet"),
           "train-prnet": ("train-prnet", "--preset", "tiny", "--jobs", "1", "--quiet"),
           "train-generator": ("train-generator", "--data", "REGISTERED", "--preset", "tiny", "--steps", "1",
                               "--quiet"),
           "train-classifiers": ("train-classifiers", "--data", "BALANCED", "--valid", "REGISTERED", "--preset", "tiny",
                                 "--quiet"),
           "train": ("train", "tiny", "--quiet"), "evaluate": ("evaluate", "--data", "REGISTERED")}
INPUT = {"GOOD": "good.png", "PHOTOS": "photos", "REGISTERED": "registered", "BALANCED": "balanced"}
FILES = ("predict", "actions", "synthesize", "manifest", "evaluate")  # their --out is a file; of the others a folder
ENDING = {"synthesize": ".png", "manifest": ".parquet"}


def _inputs(words: tuple, home: Path) -> tuple:
    "The words with good inputs, and those inputs."
    found = [home / INPUT[word] for word in words if word in INPUT]
    return tuple(str(home / INPUT[word]) if word in INPUT else word for word in words), found


def _foreign(folder: Path, ending: str) -> dict:
    "{name: path} of outputs that are not ours or cannot be written; each command has its own."
    folder.mkdir(parents=True)
    paths = {name: folder / f"{name}{ending}" for name in ("letter", "pipe", "device", "film", "link", "below")}
    paths["letter"].write_text("Dear all,\n")
    paths["film"].write_bytes(bytes(range(256)) * 9)
    paths["link"].symlink_to(paths["letter"].name)
    os.mkfifo(paths["pipe"])
    paths["device"].symlink_to(os.ttyname(os.openpty()[1]))  # a device of our own, in case it is replaced
    paths["below"] = paths["letter"] / f"x{ending}"
    (folder / f"home{ending}").mkdir()
    (folder / f"home{ending}" / "thesis.txt").write_text("Chapter 1\n")
    return paths | {"home": folder / f"home{ending}", "root": Path("/proc") / f"x{ending}",
                    "long": folder / ("n" * 300 + ending)}


def output_cases(home: Path) -> list:
    "Outputs that would destroy something, or cannot be written, for every command that has an --out."
    cases = []
    for number, (name, template) in enumerate(OUTPUTS.items()):
        words, inputs = _inputs(template, home)
        folder = home / "foreign" / str(number)
        there = _foreign(folder, ENDING.get(name, ".csv") if name in FILES else "")
        kept = tuple(folder / one.name for key, one in there.items() if key in ("letter", "film", "home"))
        outs = there | {f"input {path.name}": path for path in inputs} | {"empty": Path(""), "here": Path(".")}
        if name in FILES:
            outs |= {"ending": folder / "x.docx", "no ending": folder / "x", "film": folder / "x.avi"}
        else:
            outs |= {"null": Path("/dev/null")}
        for what, out in outs.items():
            given = "" if what == "empty" else str(out)
            cases.append(Case("output", f"{name}: {what}", (*words, "--out", given),
                              (out.name or "--out", str(out), out.parent.name, "--out"), REFUSED, (*kept, *inputs)))
    return cases


# -------------------------------------------------------------------------------- registered folders and manifests

def _frames_damage(frames: np.ndarray) -> dict:
    "{name: writer} of what may lie in the place of frames.npy."
    def saved(array):
        "Writes that array."
        return lambda path: np.save(path, array, allow_pickle=True)

    def archive(path):
        "Writes an archive."
        with open(path, "wb") as file:
            np.savez(file, frames=frames[:2])

    whole = io.BytesIO()
    np.save(whole, frames)
    data = whole.getvalue()
    return {"none": lambda path: None, "empty": lambda path: path.write_bytes(b""),
            "text": lambda path: path.write_text("?"),
            "cut": lambda path: path.write_bytes(data[:len(data) // 2]),
            "header": lambda path: path.write_bytes(data[:40]),
            "archive": archive, "objects": saved(np.array([{}, None] * 48, object)), "floats": saved(frames / 255),
            "flat": saved(frames[..., 0]), "short": saved(frames[:5]), "rows none": saved(frames[:0]),
            "scalar": saved(np.uint8(3)), "texts": saved(np.array(["a"] * 96)), "channels": saved(frames[..., :2]),
            "oblong": saved(frames[:, :50]), "folder": lambda path: path.mkdir(), "pipe": os.mkfifo,
            "dead link": lambda path: path.symlink_to("nowhere"), "zero": lambda path: path.symlink_to("/dev/zero"),
            "header lies": lambda path: path.write_bytes(data.replace(b"(%d, " % len(frames),
                                                                      b"(%d, " % (len(frames) + 1), 1))}


VALUES = {"texts": "text", "empty texts": "", "nulls": None, "NaN": float("nan"), "inf": float("inf"), "-1": -1,
          "1e9": 10**9,
          "lists": [1, 2], "dicts": {"a": {"b": 1}}, "bytes": b"\xff", "2.5": 2.5, "true": True}


def _spoilt(table, column: str, value):
    "The table with one value in all rows of a column."
    return table.assign(**{column: [value] * len(table)})


def manifest_damage(table, columns: list) -> dict:
    "{name: table or bytes} of manifests that are damaged."
    damage = {f"no {column}": table.drop(columns=column) for column in columns}
    damage |= {f"{column} {name}": _spoilt(table, column, value)
               for column, (name, value) in itertools.product(columns, VALUES.items())}
    import pandas as pd

    return damage | {"rows none": table[:0], "twice": pd.concat([table, table]), "one": table.iloc[:, :1],
                     "dates": _spoilt(table, columns[0], pd.Timestamp("2026-01-01")), "empty": b"", "text": b"text",
                     "magic": b"PAR1"}


def _save_manifest(table, path: Path) -> bool:
    "Write a damaged manifest; whether that can be done at all."
    if isinstance(table, bytes):
        path.write_bytes(table)
        return True
    try:
        table.to_parquet(path, index=False)
    except Exception:  # what no Parquet file can hold, none holds
        return False
    return True


DATA = {"normalize": ("normalize", "--data", "SRC", "--out", "OUT/n", "--quiet"),
        "normalize-au0": ("normalize", "--data", "SRC", "--out", "OUT/n", "--method", "au0", "--quiet"),
        "train-generator": ("train-generator", "--data", "SRC", "--out", "OUT/g", "--preset", "tiny", "--steps", "1",
                            "--device", "cpu", "--quiet"),
        "resample": ("resample", "--data", "SRC", "--out", "OUT/b", "--method", "real", "--per-intensity", "1",
                     "--quiet"),
        "evaluate": ("evaluate", "--data", "SRC", "--device", "cpu"),
        "train-classifiers": ("train-classifiers", "--data", "BALANCED", "--valid", "SRC", "--out", "OUT/c", "--preset",
                              "tiny", "--device", "cpu", "--quiet")}
HARMLESS = ("objects folder", "twice")  # nothing here may be called harmless without a reason
REGISTERED_COLUMNS = ["subject", "partition", "session", "frame", "path", "AU12", "valid", "registration", "face_id"]


def _registered_folder(home: Path, name: str, replaced: str, source: str = "registered") -> Path:
    "A registered folder whose files are links to good ones, but for one that is left out."
    folder = home / "spoilt" / source / name
    folder.mkdir(parents=True)
    for one in (home / source).iterdir():
        if one.name != replaced:
            (folder / one.name).symlink_to(one)
    return folder


def data_cases(home: Path, source: str, places: dict) -> list:
    "Registered folders or balanced sets with one damaged file, in every command that reads them."
    import pandas as pd

    folders = []
    for file in ("frames.npy", "vertices.npy"):
        if (home / source / file).is_file():
            for name, write in _frames_damage(np.load(home / source / file)).items():
                if file == "frames.npy" or name not in ("none", "floats", "channels", "flat", "oblong"):
                    folders.append((_registered_folder(home, f"{file} {name}", file, source), file, REFUSED))
                    write(folders[-1][0] / file)
    table = pd.read_parquet(home / source / "manifest.parquet")
    columns = [column for column in REGISTERED_COLUMNS + ["au", "intensity"] if column in table]
    for name, changed in manifest_damage(table, columns).items():
        folder = _registered_folder(home, f"manifest {name}", "manifest.parquet", source)
        if _save_manifest(changed, folder / "manifest.parquet"):
            folders.append((folder, "manifest.parquet", ANY if " " in name and name != "rows none" else REFUSED))
    cases = []
    for (place, words), (folder, file, allowed) in itertools.product(places.items(), folders):
        allowed = ANY if file == "vertices.npy" else allowed  # most commands do not open it
        filled = tuple(str(home / INPUT[word]) if word in INPUT else word for word in _filled(words, folder, home))
        cases.append(Case(source, f"{place}: {folder.name}", filled,
                          (folder.name, str(folder), file,
                           *folder.name.split()[1:2 + folder.name.startswith("manifest no")]), allowed))
    return cases


def manifest_cases(home: Path) -> list:
    "Damaged manifests for `register`."
    from aufacs_nb.databases import file_manifest

    table, folder, cases = file_manifest(home / "good.png"), home / "manifests", []
    folder.mkdir()
    damage = manifest_damage(table, list(table.columns)[:8] + ["AU12"])
    paths = {"absent": "absent.png", "folder": str(home), "pipe": str(home / "bad" / "pipe.png"), "zero": "/dev/zero",
             "url": "http://127.0.0.1:9/x.png", "film url": "http://127.0.0.1:9/x.mp4",
             "data": "data:image/png;base64,AA",
             "null byte": "a\0b.png", "concat": "concat:a|b.mp4", "device": "/dev/null",
             "text": str(home / "bad" / "text.png")}
    damage |= {f"path {name}": _spoilt(table, "path", path) for name, path in paths.items()}
    for name, changed in damage.items():
        path = folder / f"{name}.parquet"
        if _save_manifest(changed, path):
            refused = not isinstance(changed, bytes) and name.startswith(("path", "no path")) or " " not in name
            cases.append(Case("manifest", f"register: {name}", _filled(MEDIA["register"], path, home),
                              (path.name, str(path), *filter(None, [paths.get(name.removeprefix("path "))]), "manifest",
                               "no such picture", "not a readable"),
                              REFUSED if refused and name != "one" else ANY))
    return cases


# -------------------------------------------------------------------------------------------------- weights and cards

CARDS = {"null": "null", "list": "[]", "number": "7", "text": '"x"', "none": "{}", "cut": '{"preset": {', "empty": "",
         "deep": "[" * 100_000, "deep dicts": '{"preset":' * 5000, "preset null": '{"preset": null}',
         "preset list": '{"preset": [1]}', "binary": "\0\x01", "twice": '{"preset": {}, "preset": 1}'}
ODD = [None, -1, 0, 10**9, "x", [], {}, float("nan"), True, [None], {"a": {"b": []}}, "../../etc", 1e300, [1] * 50, ""]


def _card_changes(card: dict, random, count: int) -> dict:
    "{name: text} of cards in which one entry, of the card or of its preset, is odd or missing."
    spots = [(None, key) for key in card] + [("preset", key) for key in card.get("preset", {})]
    every = list(itertools.product(spots, [*ODD, "DROP"]))
    made = {}
    for number in random.permutation(len(every))[:count]:
        (part, key), value = every[number]
        changed = json.loads(json.dumps(card))
        place = changed if part is None else changed[part]
        place.pop(key) if value == "DROP" else place.__setitem__(key, value)
        made[f"{key} {str(value)[:20]}".replace("/", "_")] = json.dumps(changed)
    return made


def _tensor_damage(source: Path) -> dict:
    "{name: bytes} of weights that are no numbers, or not those of the network."
    from safetensors.numpy import load_file, save

    data, tensors = source.read_bytes(), load_file(source)
    first = max(tensors, key=lambda name: tensors[name].size * (tensors[name].dtype.kind == "f"))

    def having(change):
        "The weights with the largest tensor changed."
        return save({**tensors, first: np.ascontiguousarray(change(tensors[first]))})

    def spotted(array, value):
        "The array with one value."
        array = array.copy()
        array.flat[array.size // 2] = value
        return array

    header = int.from_bytes(data[:8], "little")
    return {"empty": b"", "text": b"no weights", "cut": data[:len(data) // 2], "pickle": b"\x80\x04N.",
            "archive": b"PK\x03\x04",
            "length": (2**62).to_bytes(8, "little") + data[8:], "header": data[:8] + b"?" * header + data[8 + header:],
            "NaN": having(lambda a: spotted(a, np.nan)), "inf": having(lambda a: spotted(a, np.inf)),
            "missing": save({name: array for name, array in tensors.items() if name != first}),
            "shape": having(lambda a: a.reshape(-1)[:-1]), "none": save({"other": np.zeros(1, np.float32)}),
            "texts": having(lambda a: np.zeros(a.shape, np.uint8)), "bools": having(lambda a: a > 0)}


MODELS = {"predict": ("small/classifiers", ("predict", "GOOD", "--out", "OUT/a.csv", "--model", "SRC", "--quiet")),
          "predict mesh": ("mesh18/mesh", ("predict", "GOOD", "--out", "OUT/a.csv", "--model", "SRC", "--quiet")),
          "predict face": ("face18/face", ("predict", "GOOD", "--out", "OUT/a.csv", "--model", "SRC", "--quiet")),
          "personalize": ("mesh18/mesh", ("personalize", "GOOD", "--out", "OUT/me", "--model", "SRC", "--quiet")),
          "personalize small": ("small/classifiers", ("personalize", "GOOD", "--out", "OUT/me", "--model", "SRC",
                                                      "--quiet")),
          "evaluate": ("small/classifiers", ("evaluate", "--data", "REGISTERED", "--model", "SRC")),
          "synthesize": ("medium/ratio_flow", ("synthesize", "GOOD", "--out", "OUT/x.png", "--au", "12=3", "--model",
                                               "SRC")),
          "synthesize flow": ("small/generator_flow", ("synthesize", "GOOD", "--out", "OUT/x.png", "--au", "12=3",
                                                       "--frontal",
                                                       "--model", "SRC")),
          "resample": ("small/generator", ("resample", "--data", "REGISTERED", "--out", "OUT/b", "--per-intensity", "1",
                                           "--model", "SRC", "--quiet")),
          "register": ("small/prnet", ("register", "GOOD", "--out", "OUT/r", "--method", "prnet", "--prnet", "SRC",
                                       "--quiet"))}


def _weights_folders(home: Path, shipped: str, random, count: int) -> list:
    "(folder, allowed) of shipped weights with a damaged card or damaged tensors."
    from aufacs_nb.presets import ASSETS

    source, made = ASSETS / shipped, []
    card = json.loads((source / "card.json").read_text())
    texts = {f"card {name}": text for name, text in (CARDS | _card_changes(card, random, count)).items()}
    for name, data in (texts | _tensor_damage(source / "weights.safetensors")).items():
        folder = home / "weights" / shipped.replace("/", "-") / name
        folder.mkdir(parents=True)
        for file, damaged in (("card.json", isinstance(data, str)), ("weights.safetensors", not isinstance(data, str))):
            if not damaged:
                (folder / file).symlink_to(source / file)
            else:
                (folder / file).write_bytes(data.encode() if isinstance(data, str) else data)
        made.append((folder, ANY if name.startswith("card") and name[5:] not in CARDS else REFUSED))
    return made


def weight_cases(home: Path, random, count: int) -> list:
    "Damaged weights and cards in every command that takes a model."
    every = sorted({shipped for shipped, _ in MODELS.values()})
    folders = {shipped: _weights_folders(home, shipped, random, count) for shipped in every}
    cases, wrong = [], [home / "good.png", home / "photos", home / "bad" / "pipe", home / "absent", Path("/dev/null"),
                        Path("/"), Path(".."), Path("n" * 300), Path("\x1b[31m"), Path("http://127.0.0.1:9/x")]
    for place, (shipped, words) in MODELS.items():
        for folder, allowed in [*folders[shipped], *((path, REFUSED) for path in wrong)]:
            filled = tuple(str(home / INPUT[word]) if word in INPUT else word for word in _filled(words, folder, home))
            cases.append(Case("weights", f"{place}: {folder.name[:40]}", filled,
                              (folder.name, str(folder), "--model", "--prnet"), allowed))
    return cases


# -------------------------------------------------------------------------------------------------------- options

BASE = OUTPUTS | {"live": ("live", "--no-browser"),
                  "reproduce": ("reproduce", "table-2", "--quiet", "--root", "OUT/root")}
NUMBERS = ["0", "-1", "1000000000", "nan", "inf", "text", "", "1e9", "2.5", "99999999999999999999999999", "0x10",
           "\x1b[31m"]
TEXTS = ["", "nix", "0", "-1", "1000000000", "nan", "\x1b[31m", "a,b", ",", "1,2,3,4", "1000000000,1,1", "-1,1,1",
         "1000000000x1000000000", "0x0", "x", "=1+1", "12=9", "12=nan", "12=-1", "99=1", "cuda:99", "slurm:", "dask:",
         "processes:x",
         "processes:0", "../..", "n" * 300, "\udcff"]
PARSED = ("text", "", "nan", "inf", "1e9", "2.5", "0x10", "\x1b[31m")  # never a whole number


def _options() -> list:
    "(command, option, the name of its type) of every option of every command, from the application itself."
    import typer

    from aufacs_nb.apps.cli import app, simulate_app

    found, group = [], typer.main.get_command(app).commands
    every = [(one, one.name, group[one.name]) for one in app.registered_commands]
    simulators = group["simulate"].commands
    every += [(one, f"simulate {one.name}", simulators[one.name]) for one in simulate_app.registered_commands]
    for registered, name, command in every:
        hints = typing.get_type_hints(registered.callback)
        for one in command.params:
            if one.param_type_name == "option" and one.name in hints:
                kinds = {hints[one.name], *typing.get_args(hints[one.name])}
                kind = next((kind.__name__ for kind in (bool, int, float) if kind in kinds), "text")
                found.append((name, one.opts[0], kind))
    return found


def _option_values(command: str, option: str, kind: str) -> list:
    "(value, allowed) to try with one option."
    whole = kind == "int"
    values = NUMBERS if whole or kind == "float" else TEXTS
    made = []
    for value in values:
        parsed = value in PARSED if whole else kind == "float" and value in ("text", "", "0x10", "\x1b[31m")
        if parsed or option in NEVER.get(value, ()):
            made.append((value, REFUSED))
        elif command in SLOW:
            continue  # it would run for minutes, and be right
        else:
            made.append((value, ANY))
    return made


COUNTS = ("--size", "--jobs", "--frames", "--tasks", "--sessions", "--steps", "--batch", "--per-intensity")
HUGE = (*COUNTS, "--generator-steps", "--subjects", "--activity")  # a billion of these is a slip of the finger
NEVER = {"nix": ("--device", "--method", "--fill", "--landmarks", "--faces", "--on-error", "--database", "--poses",
                 "--media", "--domain", "--script", "--without", "--wrinkles", "--preset", "--arch", "--precision",
                 "--resampling", "--executor", "--missing", "--generator", "--log-level", "--model", "--init", "--au",
                 "--shows", "--face", "--partition", "--neutral", "--size", "--subjects"),
         "-1": (*COUNTS, "--activity", "--lambda-ids", "--landmarks", "--face", "--seed"),
         "0": (*COUNTS, "--landmarks", "--face"), "nan": ("--activity", "--lambda-ids"),
         "inf": ("--activity", "--lambda-ids"), "1000000000": HUGE, "1000000000,1,1": HUGE, "1e9": HUGE,
         "1000000000x1000000000": HUGE, "99999999999999999999999999": HUGE}


def option_cases(home: Path) -> list:
    "Values far out of range, and of another type, for every option of every command."
    cases = []
    for command, option, kind in _options():
        base = BASE[command]
        if kind == "bool" or option in ("--out", "--overlay", "--plot", "--photo", "--data", "--valid", "--root",
                                        "--prnet"):
            continue
        words, _ = _inputs(base, home)
        ending = ENDING.get(command, ".csv") if command in FILES else ""
        given = () if command in ("live", "reproduce") else ("--out", f"OUT/x{ending}")
        for value, allowed in _option_values(command, option, kind):
            cases.append(Case("option", f"{command}: {option} {value[:30]!r}", (*words, *given, option, value),
                              (option, f"'{value}'", value or option, value.split("=")[0] or option), allowed))
    return cases


def other_cases(home: Path) -> list:
    "Words that are no commands; --data of reproduce; executors; missing arguments; several sources."
    folder, cases = home / "toml", []
    folder.mkdir()
    for number, text in enumerate([b"", b"fera17", b"fera17 = 1", b"fera17 = 'nowhere'", b"nix = '/'", b"\xff",
                                   b"fera17 = []",
                                   b"[fera17]\na = 1", b"fera17 = '/dev/null'", b"disfa = '.'", b"a" * 10**6]):
        path = folder / f"{number}.toml"
        path.write_bytes(text)
        cases.append(Case("words", f"reproduce: {text[:20]!r}", ("reproduce", "nix", "--data", str(path)),
                          (path.name, "nix")))
    for path in (home, home / "bad" / "pipe", Path("/dev/zero"), home / "absent.toml"):
        cases.append(Case("words", f"reproduce: {path.name}", ("reproduce", "--list", "--data", str(path)),
                          (path.name,)))
    for words in (("nix",), ("predict",), ("simulate",), ("simulate", "nix"), ("reproduce",), ("reproduce", "nix"),
                  ("",), ("--nix",),
                  ("train", "nix"), ("train", ""), ("evaluate",), ("predict", str(home / "good.png"), "--nix"),
                  ("normalize", "--data", str(home / "registered"), "--out", "OUT/n", "--neutral", "F001=x"),
                  ("normalize", "--data", str(home / "registered"), "--out", "OUT/n", "--neutral", "TR_F001=999999"),
                  ("normalize", "--data", str(home / "registered"), "--out", "OUT/n", "--neutral", "nobody=1"),
                  ("predict", str(home / "good.png"), "--out", "OUT/a.csv", "--overlay", "OUT/a.csv"),
                  ("predict", str(home / "good.png"), str(home / "bad" / "absent.png"), "--out", "OUT/a.csv",
                   "--on-error", "raise"),
                  ("train-generator", "--data", str(home / "registered"), "--out", str(home / "registered"), "--preset",
                   "tiny"),
                  ("normalize", "--data", str(home / "registered"), "--out", str(home / "registered"))):
        cases.append(Case("words", " ".join(words)[:60], words, ("",), REFUSED, (home / "registered",)))
    return cases


# ------------------------------------------------------------------------------------------------ choose, run, judge

def corpus(home: Path, count: int, seed: int = 0, commands=()) -> list:
    "`count` cases, drawn evenly over kinds and commands; their files lie under `home`, see `prepare`."
    random = np.random.default_rng(seed)
    extra = max(30, count // 8)
    cases = [*media_cases(home, random, extra), *output_cases(home), *data_cases(home, "registered", DATA),
             *data_cases(home, "balanced", {"train-classifiers": (
                 "train-classifiers", "--data", "SRC", "--valid", str(home / "registered"), "--out", "OUT/c",
                 "--preset", "tiny", "--device", "cpu", "--quiet"), "normalize": DATA["normalize"]}),
             *manifest_cases(home), *weight_cases(home, random, extra // 6), *option_cases(home), *other_cases(home)]
    groups: dict = {}
    for number in random.permutation(len(cases)):
        one = cases[number]
        if not commands or one.command in commands:
            groups.setdefault((one.kind, one.command), []).append(one)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*groups.values()))
    return list(itertools.islice(filter(None, turns), count))


class Late(BaseException):
    "A case took too long."


@contextmanager
def bounded_memory(megabytes: int):
    "In the block this process gets no more memory than so much above what it has; then there is a MemoryError."
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, ((held << 10) + (megabytes << 20) if held else soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@dataclass
class Outcome:
    "What a command did: exit code (None: a traceback or a hang), what it said, seconds, MB that it added."
    code: int | None
    said: str
    seconds: float
    megabytes: int


def run(words: tuple, out: Path) -> Outcome:
    "Run `aufacs WORDS` in this process; OUT in the words is the folder `out`."
    from aufacs_nb.apps.cli import main

    out.mkdir(parents=True)
    words = [word.replace("OUT/", f"{out}/") for word in words]
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True)
               for errors in ("strict", "backslashreplace")]
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    held, environment, began = memory("VmRSS"), dict(os.environ), time.monotonic()
    code: int | None = 0
    try:
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]), bounded_memory(8 * 1024), \
                limited(SECONDS, Late):
            main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except Late:
        code = None
        streams[1].write(f"it took more than {SECONDS} s")
    except BaseException:  # what a user would see as a traceback
        code = None
        streams[1].write(traceback.format_exc())
    seconds, added = time.monotonic() - began, (memory("VmHWM") - held) // 1024
    os.environ.clear()
    os.environ.update(environment)
    gc.unfreeze()
    said = "".join(stream.buffer.getvalue().decode("utf-8", "replace") for stream in streams)
    return Outcome(code, said, seconds, added)


def _plain(text: str) -> str:
    "A text without frames, spaces, line breaks and dashes, which tables of messages put between words."
    return re.sub(r"[\s│╭╮╰╯─_-]+", "", text)


def judge(case: Case, done: Outcome, kept: bool = True) -> str:
    "'done', 'refused' or 'no face' where all is right; else the fault: 'traceback', 'hang', 'wrong success' …"
    from aufacs_nb.files import shown

    said = _plain(done.said)
    if done.code is None:
        return "hang" if "it took more than" in done.said and "Traceback" not in done.said else "traceback"
    faults = {"traceback": "Traceback (most recent" in done.said, "exit code": done.code not in (0, 1, 2),
              "wrong success": done.code == 0 and case.allowed == REFUSED,
              "wrong refusal": done.code != 0 and case.allowed == DONE,
              "memory": done.megabytes > MEGABYTES, "destroyed": not kept, "escape": "\x1b" in done.said,
              "not named": done.code != 0 and not any(
                  _plain(part)[:60] in said for name in case.names for part in (name, shown(name), repr(name)[1:-1]))}
    for fault, there in faults.items():
        if there:
            return fault
    return {0: "done", 1: "no face", 2: "refused"}[done.code]


RIGHT = ("done", "no face", "refused")


def try_all(cases: list, home: Path, tell=None) -> list:
    "Rows (case, verdict, outcome) of all cases; `tell(case, verdict, outcome)` hears each."
    rows, before = [], os.getcwd()
    (home / "cwd").mkdir(exist_ok=True)
    (home / "cwd" / "thesis.txt").write_text("Chapter 1")  # the working folder is somebody's, too
    width, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "400"
    try:
        for number, case in enumerate(cases):
            os.chdir(home / "cwd")
            was = list(map(contents, case.keeps))
            done = run(case.words, home / "out" / str(number))
            rows.append((case, judge(case, done, list(map(contents, case.keeps)) == was), done))
            shutil.rmtree(home / "out" / str(number), ignore_errors=True)
            if tell:
                tell(*rows[-1])
            if number % 50 == 49:
                gc.collect()
    finally:
        os.chdir(before)
        os.environ.pop("COLUMNS")
        os.environ.update({} if width is None else {"COLUMNS": width})
    return rows


def told(case: Case, verdict: str, done: Outcome) -> str:
    "A fault in words: what was tried, and the end of what was said."
    words = " ".join(repr(word)[:200] if " " in word or not word.isprintable() else word[:200] for word in case.words)
    return (f"{verdict.upper()}: {case.kind}, {case.name} ({done.seconds:.1f} s, {done.megabytes} MB)\n"
            f"  aufacs {words}\n  code {done.code}: {done.said.strip()[-700:]!r}")


def summary(rows: list) -> str:
    "Counts by kind of input and outcome, the slowest case and the peak of memory, as lines."
    from aufacs_nb.files import counted

    kinds = Counter((case.kind, verdict) for case, verdict, _ in rows)
    verdicts = sorted({verdict for _, verdict in kinds}, key=lambda one: (one not in RIGHT, one))
    lines = ["".join(f"{word:>15}" for word in ("kind", "cases", *verdicts))]
    for kind in sorted({kind for kind, _ in kinds}):
        counts = [kinds[kind, verdict] for verdict in verdicts]
        lines.append("".join(f"{word:>15}" for word in (kind, sum(counts), *counts)))
    slowest, largest = max(rows, key=lambda row: row[2].seconds), max(rows, key=lambda row: row[2].megabytes)
    commands = len({case.command for case, *_ in rows})
    return "\n".join([*lines, f"{counted(len(rows), 'case')} of {counted(commands, 'command')}, {sum(r[2].seconds for r in rows):.0f} s; "
                      f"slowest {slowest[2].seconds:.1f} s ({slowest[0].name}); most memory added "
                      f"{largest[2].megabytes} MB ({largest[0].name}); faults "
                      f"{sum(verdict not in RIGHT for _, verdict, _ in rows)}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help='such as predict, or "simulate disfa"')
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a CSV with a row for every case")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    out = chosen.out and chosen.out.absolute()
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        home = Path(folder)
        prepare(home)
        cases = corpus(home, chosen.cases, chosen.seed, chosen.commands)
        rows = try_all(cases, home, lambda *row: row[1] in RIGHT or print(told(*row), flush=True))
    print(summary(rows))
    if out:
        with open(out, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(["kind", "command", "case", "verdict", "code", "seconds", "megabytes"])
            writer.writerows((case.kind, case.command, repr(case.name)[1:-1], verdict, done.code,
                              round(done.seconds, 2),
                              done.megabytes) for case, verdict, done in rows)
    sys.exit(any(verdict not in RIGHT for _, verdict, _ in rows))


if __name__ == "__main__":
    main()

"""A contact sheet for each photograph: every action unit at A, C and E; and a table of what its mesh says of them.

    python tools/photograph_sheet.py PHOTO… --out FOLDER [--weights medium] [--aus 4,12]
    python tools/photograph_sheet.py --people 8 --out FOLDER

For each photograph FOLDER gets NAME.jpg, the sheet, marked as synthetic by a line below it. FOLDER/readings.csv has a
row for each photograph and action unit: how far FaceMesh sees the skin of the edited photograph move along the
movement that the head model means by this unit at E (1: all of it), at A, C and E; `slope`: reading by intensity, 1 if
the picture shows what was asked for; `rises`: whether 0 < A < C < E. The table of all photographs is printed: the share
that rises and the median slope for each action unit. Photographs without a face are named and left out.

With `--people` the photographs are of virtual people whom no training saw, and the renderer makes the true pictures at
A, C and E, too. `true_slope` and `true_rises` say what the same reading makes of these: more than the truth shows
nobody can ask of an edit, and a unit whose truth does not rise is one that this reading cannot see.
"""
import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from skimage.data import astronaut
from tqdm import tqdm

from aufacs_nb.databases import read_image
from aufacs_nb.facs import au_column
from aufacs_nb.generation.photographs import Editor
from aufacs_nb.generation.ratio import au_table, load_ratio
from aufacs_nb.pictures import contact_sheet
from aufacs_nb.presets import write_atomically
from aufacs_nb.registration.detection import FaceLandmarker, NoFaceError
from aufacs_nb.registration.frontal import register_face
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person

LEVELS = {"A": 1, "C": 3, "E": 5}
SIDE = 170  # side of a picture on the sheet, pixels
UNSEEN = 5_000_000  # seeds of virtual people from here on are in no training


def registered_mesh(photo, landmarks) -> np.ndarray:
    "The registered mesh, right and down in sides of the frame, (468, 2)."
    return register_face(photo, landmarks, 128).vertices[:, :2] / 128


def reading(moved: np.ndarray, meant: np.ndarray) -> float:
    "How far the mesh moved (468, 2) along what is meant (468, 2), as a share of it."
    return float((moved * meant).sum() / (meant * meant).sum())


def read_levels(made: dict, face, calm: np.ndarray, meant: np.ndarray, landmarker) -> dict:
    "Readings at A, C and E, their slope, and whether they rise, of pictures {level: picture}."
    faces = {name: nearest(landmarker.find(picture), face) for name, picture in made.items()}
    said = {name: np.nan if found is None else reading(registered_mesh(made[name], found.landmarks) - calm, meant)
            for name, found in faces.items()}
    shares, values = np.array(list(LEVELS.values())) / 5, np.array([said[name] for name in LEVELS])
    return {**{f"read_{name}": value for name, value in said.items()},
            "slope": (values * shares).sum() / (shares * shares).sum(),
            "rises": bool((np.diff([0, *values]) > 0).all())}


def read_edits(editor: Editor, aus, landmarker, true=None) -> tuple:
    "Pictures {au: [photograph, A, C, E]} around the face, and rows of readings; true: makes true pictures of {au: n}."
    near, table = around(editor.face.landmarks, editor.photo.shape), au_table(tuple(aus))
    calm = registered_mesh(editor.photo, landmarker.find_one(editor.photo).landmarks)
    pictures, rows = {}, []
    for au, meant in zip(aus, table[:, 5]):
        made = {name: editor({au: level}) for name, level in LEVELS.items()}
        row = {"au": au_column(au), **read_levels(made, editor.face, calm, meant, landmarker)}
        if true is not None:
            truth = {name: true({au: level}) for name, level in LEVELS.items()}
            said = read_levels(truth, editor.face, calm, meant, landmarker)
            row |= {"true_slope": said["slope"], "true_rises": said["rises"]}
        rows.append(row)
        pictures[au] = [editor.photo[near], *(picture[near] for picture in made.values())]
    return pictures, rows


def around(landmarks, shape) -> tuple:
    "Rows and columns around a face, a square with little more than the mesh."
    low, high = landmarks[:468, :2].min(0), landmarks[:468, :2].max(0)
    (x, y), half = (low + high) / 2, 0.58 * (high - low).max()
    edges = np.clip([y - half, y + half, x - half, x + half], 0, [shape[0], shape[0], shape[1], shape[1]]).astype(int)
    return np.s_[edges[0]:edges[1], edges[2]:edges[3]]


def nearest(faces: list, face):
    "The one of `faces` that lies nearest to `face`, or None."
    return min(faces, key=lambda each: np.abs(each.box - face.box).sum(), default=None)


def sheet(pictures: dict, generator: str) -> Image.Image:
    "Two action units in a row: photograph, A, C, E of each; a line below says that they are synthetic."
    aus = list(pictures)
    titles = ["photo", *LEVELS] * min(2, len(aus))
    rows = [", ".join(map(au_column, aus[k:k + 2])) for k in range(0, len(aus), 2)]
    flat = [picture for au in aus for picture in pictures[au]]
    made = contact_sheet(flat, len(titles), SIDE, titles, rows)
    marked = Image.new("RGB", (made.width, made.height + 20), "white")
    marked.paste(made, (0, 0))
    marked.paste(text_line(f"Synthetic: made by {generator}; shows no real expression.", made.width), (0, made.height))
    return marked


def text_line(text: str, width: int) -> Image.Image:
    "A white line with a text."
    from PIL import ImageDraw

    line = Image.new("RGB", (width, 20), "white")
    ImageDraw.Draw(line).text((6, 4), text, fill="black")
    return line


def summary(table: pd.DataFrame) -> pd.DataFrame:
    "For each action unit: share of photographs whose reading rises, median slope, median readings; and of true ones."
    by_au, more = table.groupby("au", sort=False), [name for name in ("true_slope",) if name in table]
    found = by_au[["slope", "read_A", "read_C", "read_E", *more]].median()
    shares = {name: by_au[name].mean() for name in ("rises", "true_rises") if name in table}
    return found.assign(**shares, photos=by_au.size())


def virtual_people(n: int):
    "Iterate over (name, photograph, function that makes its true picture) of `n` people, turned a little."
    for k in range(n):
        person, yaw = sample_person(UNSEEN + 100 + k), 12 * np.sin(2 * k)
        view = lambda aus, person=person, yaw=yaw, k=k: render_person(person, aus, yaw=yaw, size=360, seed=k)
        yield f"person_{k}", view({}), view


def measure(photos, out: Path, weights: str = "medium", aus=None, progress: bool = True) -> pd.DataFrame:
    "Sheets and readings.csv of (name, uint8 (H, W, 3)), and maybe how to make the truth, in a folder; the table."
    model, landmarker, tables = load_ratio(weights, aus=None), FaceLandmarker.from_pretrained(), []
    out.mkdir(parents=True, exist_ok=True)
    for name, photo, *true in tqdm(photos, disable=not progress, unit="photo"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                editor = Editor(photo, model, face=landmarker.find_one(photo, name))
        except NoFaceError as error:
            print(error)
            continue
        pictures, rows = read_edits(editor, aus or model.config.aus, landmarker, *true)
        made = sheet(pictures, f"RatioFlow, {Path(weights).name}")
        write_atomically(out / f"{name}.jpg", lambda path: made.save(path, "JPEG", quality=88))
        tables.append(pd.DataFrame(rows).assign(photo=name, face_px=round(editor.maps.window.face)))
        table = pd.concat(tables, ignore_index=True)
        write_atomically(out / "readings.csv", lambda path: table.round(3).to_csv(path, index=False))
    if not tables:
        raise NoFaceError("none of the photographs shows a face; give others.")
    return table


def main(words=None):
    "The program."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", help="files; the word astronaut: scikit-image's photograph (NASA)")
    parser.add_argument("--people", type=int, default=0, help="virtual people, whose true pictures are read, too")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", default="medium", help="shipped name or folder of a ratio generator")
    parser.add_argument("--aus", help="action units, separated by commas; all that the generator knows by default")
    a = parser.parse_args(words)
    torch.set_num_threads(1)
    aus = a.aus and tuple(int(au) for au in a.aus.split(","))
    if bool(a.photos) == bool(a.people):
        parser.error("give photographs, or --people and a number.")
    photos = (("astronaut", astronaut()) if name == "astronaut" else (Path(name).stem, read_image(name))
              for name in a.photos)
    table = measure(virtual_people(a.people) if a.people else photos, a.out, a.weights, aus)
    print(summary(table).round(2).to_string())


if __name__ == "__main__":
    main()

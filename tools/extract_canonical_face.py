"""Extract the canonical face of `aufacs_nb.geometry.meshes` (assets/canonical_face.npz) from Google's face_landmarker.task.

    python tools/extract_canonical_face.py face_landmarker.task [--out aufacs_nb/assets/canonical_face.npz]

The task file (Apache-2.0) is a zip; its geometry metadata is a small protocol buffer: a mesh (field 3 vertices: x, y, z in cm, u, v;
field 4 triangles) and the landmarks, with weights, of the Procrustes fit. The wire format is read here directly, so no protobuf package is needed.
"""
import argparse
import zipfile
from pathlib import Path

import numpy as np

METADATA = "geometry_pipeline_metadata_landmarks.binarypb"


def read_varint(data, position):
    "An unsigned integer of 7-bit groups and the position after it."
    value = shift = 0
    while True:
        byte = data[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position


def read_fields(data):
    "(field number, value) of a protocol buffer message: int for varints, bytes for all else."
    position, sizes = 0, {1: 8, 5: 4}
    while position < len(data):
        key, position = read_varint(data, position)
        if key & 7 == 0:
            value, position = read_varint(data, position)
        else:
            size, position = (sizes[key & 7], position) if key & 7 in sizes else read_varint(data, position)
            value, position = data[position:position + size], position + size
        yield key >> 3, value


def numbers(values, kind):
    "Values of a repeated field, packed or not, as one array: kind 'f4' for floats, int for varints."
    packed = [v for v in values if isinstance(v, bytes)]
    if kind == "f4":
        return np.frombuffer(b"".join(packed), "<f4")
    result = [v for v in values if isinstance(v, int)]
    for data in packed:
        position = 0
        while position < len(data):
            value, position = read_varint(data, position)
            result.append(value)
    return np.array(result)


def mirror_index(vertices):
    "For each vertex its left-right twin: the one nearest to its mirror image (the face is symmetric)."
    distance = np.linalg.norm((vertices * [-1, 1, 1])[:, None] - vertices[None], axis=-1)
    return distance.argmin(1).astype(np.int32)


def extract(data):
    "vertices (468, 3) cm, uv (468, 2), triangles (898, 3), procrustes_index and _weight (33,), mirror (468,)."
    messages = [value for _, value in read_fields(data) if isinstance(value, bytes)]
    mesh = list(read_fields(max(messages, key=len)))
    table = numbers([v for k, v in mesh if k == 3], "f4").reshape(-1, 5)
    rigid = [dict(read_fields(message)) for message in messages if len(message) < 1000]
    rigid = [fields for fields in rigid if isinstance(fields.get(1), int) and isinstance(fields.get(2), bytes)]
    return {"vertices": table[:, :3], "uv": table[:, 3:],
            "triangles": numbers([v for k, v in mesh if k == 4], int).reshape(-1, 3).astype(np.int32),
            "procrustes_index": np.array([fields[1] for fields in rigid], np.int32),
            "procrustes_weight": np.array([np.frombuffer(fields[2], "<f4")[0] for fields in rigid]),
            "mirror": mirror_index(table[:, :3])}


def main():
    "Read the task file named on the command line and write canonical_face.npz."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", type=Path)
    parser.add_argument("--out", type=Path, default=Path("aufacs_nb/assets/canonical_face.npz"))
    options = parser.parse_args()
    with zipfile.ZipFile(options.task) as archive:
        arrays = extract(archive.read(METADATA))
    np.savez_compressed(options.out, **arrays)
    print(f"{options.out}: {len(arrays['vertices'])} vertices, {len(arrays['triangles'])} triangles")


if __name__ == "__main__":
    main()

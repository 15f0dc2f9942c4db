"""Frames per second of the room's z-buffer on the canonical face, one thread, after compilation.

    python tests/benchmarks/bench_rasterize.py
"""
import statistics
import time

from aufacs_nb.geometry.meshes import canonical_face
from aufacs_nb.geometry.rasterize import rasterize

SECONDS, ROUNDS = 0.5, 5


def face_in_pixels(size):
    """The canonical face filling a picture of `size` pixels: x right, y down, z nearer = larger."""
    vertices = canonical_face().vertices.copy()
    low, high = vertices[:, :2].min(0), vertices[:, :2].max(0)
    vertices -= [*((low + high) / 2), 0]
    vertices *= 0.9 * size / (high - low).max()
    return vertices * [1, -1, 1] + [size / 2, size / 2, 0]


def frames_per_second(size):
    """Median over `ROUNDS` rounds of about `SECONDS` seconds each."""
    vertices, triangles = face_in_pixels(size), canonical_face().triangles
    rasterize(vertices, triangles, size)  # compiles, or loads what numba compiled before
    rounds = []
    for _ in range(ROUNDS):
        frames, start = 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            rasterize(vertices, triangles, size)
            frames += 1
        rounds.append(frames / (time.perf_counter() - start))
    return statistics.median(rounds), min(rounds), max(rounds)


if __name__ == "__main__":
    print(f"rasterize, {len(canonical_face().triangles)} triangles, frames/s: median (lowest to highest of {ROUNDS} rounds)")
    for size in (32, 96, 224):
        middle, low, high = frames_per_second(size)
        print(f"  {size:>3} px: {middle:8.0f}  ({low:.0f} to {high:.0f})")

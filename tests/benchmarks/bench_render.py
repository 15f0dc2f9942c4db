"""Pictures per second of the renderer and buffers per second of its z-buffer, on one core and in two processes.

    python tests/benchmarks/bench_render.py

The sketch that this renderer replaced was quoted at 60 pictures/s at 224 px, 86 at 128 px and 359 buffers/s at 224 px,
on another day: compare numbers of one run only.
"""
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import pose_surface, project, render_person, render_plan
from aufacs_nb.geometry.rasterize import rasterize

SECONDS, ROUNDS = 2.0, 5


def rate(task):
    """Calls of `task` per second: median, lowest and highest over `ROUNDS` rounds of about `SECONDS`."""
    task()  # compiles, or loads what numba compiled before
    rounds = []
    for _ in range(ROUNDS):
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            task()
            calls += 1
        rounds.append(calls / (time.perf_counter() - start))
    return statistics.median(rounds), min(rounds), max(rounds)


def picture_rate(size):
    """Pictures per second of one person with two AUs and their folds."""
    person = sample_person(2)
    return rate(lambda: render_person(person, {6: 2, 12: 3}, size=size))


def buffer_rate(size, culled):
    """Z-buffers per second of head and figure, all triangles two-sided or the closed parts one-sided."""
    person = sample_person(2)
    surface = pose_surface(person, {6: 2, 12: 3}, np.eye(3))
    pixels, one_sided = project(surface.positions, size), render_plan(person)[0] if culled else None
    return rate(lambda: rasterize(pixels, surface.triangles, size, one_sided=one_sided))


def show(name, rates):
    """One line of the table."""
    middle, low, high = rates
    print(f"  {name:<44} {middle:7.1f}  ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    print(f"per second: median (lowest to highest of {ROUNDS} rounds)")
    for size in (224, 128):
        show(f"pictures, {size} px, one process", picture_rate(size))
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            both = list(pool.map(picture_rate, [size, size]))
        show(f"pictures, {size} px, two processes together", [sum(values) for values in zip(*both)])
    for culled in (False, True):
        show(f"z-buffers, 224 px, {'closed parts one-sided' if culled else 'two-sided'}", buffer_rate(224, culled))

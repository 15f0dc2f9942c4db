"""Make the simulated part of data_samples again: the database of virtual people and its registered frames.

    python tools/make_samples.py [--out data_samples]

The seed was chosen by looking at labels only: every Test person shows every AU at three levels or more, and the Train
people together show every level of every AU. Same command, same bytes on one machine.
"""
import argparse
import os
from pathlib import Path

import pandas as pd

from aufacs_nb.databases import fera17_manifest
from aufacs_nb.registration.collections import register_manifest
from aufacs_nb.simulation.simulate import simulate_fera17

DATABASE = dict(train=4, valid=2, test=6, tasks=1, frames=24, poses=(6,), size=256, seed=2075, activity=2.5)
EVERY, SIZE = 3, 96  # frames taken, side of the registered frames in pixels


def make_registered(out):
    "Register every third frame of out/fera17 into out/registered, with paths relative to out."
    manifest = fera17_manifest(out / "fera17")
    register_manifest(manifest[(manifest.frame - 1) % EVERY == 0].reset_index(drop=True), out / "registered", size=SIZE)
    path = out / "registered" / "manifest.parquet"
    table = pd.read_parquet(path)
    table["path"] = [os.path.relpath(p, out) for p in table.path]
    table.attrs.clear()
    table.to_parquet(path, index=False)
    (out / "registered" / "registration.json").unlink()


def main():
    "Simulate and register."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data_samples"))
    out = parser.parse_args().out.absolute()
    simulate_fera17(out / "fera17", **DATABASE)
    make_registered(out)


if __name__ == "__main__":
    main()

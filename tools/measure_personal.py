"""What one photograph brings, by the generator that makes its pictures: virtual people whom nobody was trained on.

    aufacs simulate fera17 --out fera17 --subjects 41,20,30 --tasks 4 --frames 20
    aufacs simulate disfa --out disfa --size 320x240 --frames 60
    aufacs simulate unbc --out unbc --sessions 2 --frames 40
    for name in fera17 disfa unbc; do aufacs register $name --out mesh_$name; done
    python tools/measure_personal.py --known mesh_fera17 fera17=mesh_fera17 disfa=mesh_disfa unbc=mesh_unbc

The Train people of this fera17 are among those whom the shipped classifiers know. With `--known`, a generator that
these are not calibrated for is calibrated on the calmest frame of forty of them; `--store` writes that beside the
shipped weights, for `personalize`. Without it, the calibrations are those that lie there. Then every person of each
database (of FERA 2017: of Test) is personalised from their calmest frame, and all their other frames are estimated.
The table has the tidy estimates of `experiments.conditions.estimate_rows`: one row per frame and condition, `generic`
or the name of a generator. Rows of databases that are not named stay in it.
"""
import argparse
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file

from aufacs_nb.estimation.personalization import (OTHER_GENERATORS, PICTURE_MAKERS, calibrated, fingerprint,
                                                  personal_generator)
from aufacs_nb.estimation.storage import AUClassifiers
from aufacs_nb.experiments.conditions import estimate_rows, gain, personal_estimates
from aufacs_nb.experiments.stages import neutral_frames, partition_frames
from aufacs_nb.presets import ASSETS, write_atomically
from aufacs_nb.registration.collections import open_registered

SIDE = 224  # of the frames that generators and classifiers get; each resizes them
OUT = Path("data_samples/results/personal_generators.parquet")


def calibrate_all(classifiers: AUClassifiers, generators: dict, known) -> dict:
    "Name → classifiers calibrated for the generator of that name: as they are, or on the calmest frames of `known`."
    own = classifiers.card["calibrated"]["generator"]
    return {name: classifiers if known is None or fingerprint(generator) == own else
            calibrated(classifiers, generator, neutral_frames(known, SIDE, classifiers.aus), True)
            for name, generator in generators.items()}


def store(tuned: dict, generators: dict) -> Path:
    "Write the calibrations that the shipped weights do not hold themselves beside them; returns the file."
    folder, own = ASSETS / "small" / "classifiers", AUClassifiers.from_pretrained("small").card["calibrated"]
    marks = {name: fingerprint(generator) for name, generator in generators.items()}
    tensors = {mark: tuned[name].calibration for name, mark in marks.items() if mark != own["generator"]}
    facts = {"command": "python tools/measure_personal.py --known mesh_fera17 --store", "people": "40",
             "classifiers_sha256": sha256((folder / "weights.safetensors").read_bytes()).hexdigest()}
    return write_atomically(folder / OTHER_GENERATORS, lambda path: save_file(tensors, path, metadata={
        **facts, **{mark: name for name, mark in marks.items() if mark in tensors}}))


def estimates(classifiers: AUClassifiers, tuned: dict, generators: dict, part) -> pd.DataFrame:
    "Rows of every condition for the frames of one database."
    ways = {"generic": classifiers.predict(part.frames)}
    ways |= {name: personal_estimates(tuned[name], generator, part) for name, generator in generators.items()}
    return pd.concat([estimate_rows(name, part, values) for name, values in ways.items()], ignore_index=True)


def compact(rows: pd.DataFrame) -> pd.DataFrame:
    "Labels and estimates in half precision, words as categories."
    columns = [name for name in rows if name.startswith("AU")]
    kinds = {name: np.float16 for name in columns} | dict.fromkeys(("condition", "database", "subject"), "category")
    return rows.astype(kinds)


def with_others(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    "The table after what `path` holds of databases that are not in it."
    old = pd.read_parquet(path) if path.is_file() else table[:0]
    rows = pd.concat([old[~old.database.isin(table.database.unique())], table], ignore_index=True)
    return rows.astype(dict.fromkeys(("condition", "database", "subject"), "category"))


def main(words=None) -> None:
    "The program."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("databases", nargs="*", metavar="NAME=FOLDER", help="registered frames of a database")
    parser.add_argument("--known", type=Path, help="registered frames of people the classifiers know; else as shipped")
    parser.add_argument("--makers", nargs="+", choices=PICTURE_MAKERS, default=PICTURE_MAKERS, help="generators")
    parser.add_argument("--store", action="store_true", help="write the calibrations beside the shipped weights")
    parser.add_argument("--out", type=Path, default=OUT)
    a = parser.parse_args(words)
    torch.set_num_threads(1)
    classifiers, generators = AUClassifiers.from_pretrained("small"), {k: personal_generator(k) for k in a.makers}
    tuned, found = calibrate_all(classifiers, generators, open_registered(a.known) if a.known else None), []
    if a.store:
        print(store(tuned, generators))
    for name, folder in (word.split("=", 1) for word in a.databases):
        part = partition_frames(open_registered(folder), "Test" if name == "fera17" else None, SIDE)
        found.append(estimates(classifiers, tuned, generators, part).assign(database=name))
        pairs = [("generic", maker) for maker in generators] + [(maker, "ratio") for maker in generators if maker != "ratio"]
        for before, after in pairs:
            value, low, high = gain(found[-1], before, after)
            print(f"{name}: {after} less {before}: {value:+.4f} [{low:+.4f}, {high:+.4f}]", flush=True)
    if found:
        table = with_others(compact(pd.concat(found, ignore_index=True)), a.out)
        write_atomically(a.out, lambda path: table.to_parquet(path, index=False))


if __name__ == "__main__":
    main()

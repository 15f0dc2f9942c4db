"""What the stages of the paper's experiments took here: medians per kind, kept for `aufacs reproduce --list`.

    python tools/stage_seconds.py PROTOCOL ROOT [ROOT ...] [--out FILE]

Reads the note (stage.json) of every finished stage of PROTOCOL (tiny, small, paper) under the folders that
`aufacs reproduce --root ROOT` filled, and merges one row per kind into aufacs_nb/assets/reproduce_seconds.csv:
columns protocol, kind, seconds. Rows of other protocols, and of kinds that no folder holds, stay as they are.
The notes are wall time, so fill a folder serially on an otherwise idle machine, without a graphics card. The kinds
that no folder and no older row knows are printed: for them the estimate is not a number.
"""
import argparse
import sys
from pathlib import Path

import pandas as pd

from aufacs_nb.experiments.graph import ordered
from aufacs_nb.experiments.protocol import PROTOCOLS
from aufacs_nb.experiments.reproduce import kind_of, stage_seconds
from aufacs_nb.experiments.tables import EXPERIMENTS
from aufacs_nb.experiments.variants import MISSING, PaperChains
from aufacs_nb.files import counted, write_atomically
from aufacs_nb.presets import ASSETS

OUT = ASSETS / "reproduce_seconds.csv"
COLUMNS = ["protocol", "kind", "seconds"]


def all_stages(protocol):
    """The stages of every experiment, each once, with both ways to fill AUs that are not coded."""
    return ordered([stage for missing in MISSING for e in EXPERIMENTS.values()
                    for stage in e.stages(PaperChains(protocol, missing=missing))])


def medians(protocol, roots):
    """Columns protocol, kind, seconds (0.1): the median over all finished stages of a kind under `roots`."""
    stages = all_stages(protocol)
    made = pd.concat([stage_seconds(stages, root) for root in roots], ignore_index=True)
    found = made.groupby("kind").seconds.median().round(1).rename_axis("kind").reset_index()
    return found.assign(protocol=protocol)[COLUMNS]


def merged(old, new):
    """Rows of `new`, and those of `old` whose protocol and kind `new` does not have; sorted."""
    both = pd.concat([old, new], ignore_index=True)
    return both.drop_duplicates(["protocol", "kind"], keep="last").sort_values(COLUMNS[:2], ignore_index=True)


def main():
    """Merge the seconds of the named folders into the table, and say which kinds nobody has timed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("protocol", choices=list(PROTOCOLS))
    parser.add_argument("roots", nargs="+", type=Path, metavar="ROOT")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    lost = [str(root) for root in args.roots if not root.is_dir()]
    if lost:
        sys.exit(f"{', '.join(lost)}: no such folder; give the --root of a run of aufacs reproduce.")
    new = medians(args.protocol, args.roots)
    if new.empty:
        sys.exit(f"No finished stage of {args.protocol} lies there: its folders are named KIND-KEY, with stage.json.")
    table = merged(pd.read_csv(args.out) if args.out.is_file() else pd.DataFrame(columns=COLUMNS), new)
    write_atomically(args.out, lambda path: table.to_csv(path, index=False))
    print(f"{counted(len(new), 'kind')} of {args.protocol} written to {args.out}")
    unknown = {kind_of(stage) for stage in all_stages(args.protocol)} - set(table[table.protocol == args.protocol].kind)
    if unknown:
        print("not timed:", ", ".join(sorted(unknown)))


if __name__ == "__main__":
    main()

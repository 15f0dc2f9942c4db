"""Kill the long commands at random moments, run them again, and compare every byte with an uninterrupted run.

    python tools/torture.py [COMMAND ...] [--kills 20] [--seed 0] [--out torture.csv]

Each command works on tiny inputs that are made first. It is run whole twice (what is not the same twice is no fault of
a kill), then killed with SIGKILL at moments spread evenly at random over its time, and each time run again with the
same words. Counted are runs that end with the same files and the same bytes, nothing left over, hidden files included.
A second kill comes before the end of every third run. What came out so far is shown while it works. The script ends with an error if one run differs.

Commands are started by a fork of this process, which has loaded all libraries: otherwise most kills would hit imports.
"""
import argparse
import csv
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.contents import contents  # noqa: E402

SECONDS = 300  # a run that takes longer is killed and counts as hung


def commands(home: Path) -> dict:
    "{name: words of the command, with OUT for what it writes}; inputs lie under `home`, see `prepare`."
    sample = home / "registered"
    return {
        "simulate": ["simulate", "fera17", "--out", "OUT", "--subjects", "2,1,1", "--tasks", "1", "--frames", "6",
                     "--size", "64", "--quiet"],
        "register": ["register", str(home / "database"), "--out", "OUT", "--size", "48", "--quiet"],
        "train-generator": ["train-generator", "--data", str(sample), "--out", "OUT", "--preset", "tiny", "--steps",
                            "420", "--device", "cpu", "--quiet"],
        "resample": ["resample", "--data", str(sample), "--out", "OUT", "--per-intensity", "1", "--device", "cpu",
                     "--quiet"],
        "train-classifiers": ["train-classifiers", "--data", str(home / "balanced"), "--valid", str(sample), "--out",
                              "OUT", "--preset", "tiny", "--device", "cpu", "--quiet"],
        "personalize": ["personalize", str(home / "photo.png"), "--out", "OUT", "--device", "cpu", "--quiet"],
        "predict": ["predict", str(home / "film.avi"), "--out", "OUT.csv", "--device", "cpu", "--quiet"],
        "train-prnet": ["train-prnet", "--out", "OUT", "--preset", "tiny", "--jobs", "1", "--quiet"],
        "train": ["train", "tiny", "--out", "OUT", "--jobs", "1", "--quiet"]}


def load() -> None:
    "Import what commands import, once; nothing is computed here, because threads do not survive a fork."
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch
    import torch._dynamo  # noqa: F401  # which the first optimiser of a process would load, for a second and a half

    torch.set_num_threads(1)
    import aufacs_nb.apps.cli  # noqa: F401
    import aufacs_nb.estimation.estimator  # noqa: F401
    import aufacs_nb.experiments.stages  # noqa: F401
    import aufacs_nb.generation.photographs  # noqa: F401
    import aufacs_nb.registration.prnet  # noqa: F401
    import aufacs_nb.simulation.simulate  # noqa: F401


def start(words: list, log: Path) -> int:
    "Fork a process that runs `aufacs WORDS`; its number. What it says goes to `log`."
    if child := os.fork():
        return child
    try:
        os.setsid()
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        from aufacs_nb.apps.cli import main

        main(words)
        os._exit(0)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:  # what a user would see as a traceback
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(99)


def finish(child: int, seconds: float) -> int | None:
    "The exit status of a process; None if it was killed, with all its group, because it took longer."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    for target in (lambda: os.killpg(child, signal.SIGKILL), lambda: os.kill(child, signal.SIGKILL)):
        try:
            target()
        except (ProcessLookupError, PermissionError):
            pass
    os.waitpid(child, 0)
    return None


def run(words: list, folder: Path, moments=()) -> tuple:
    "(exit status, seconds) of a command that writes to `folder`/out, killed at each of `moments` before its last run."
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    words = [word.replace("OUT", str(folder / "out")) for word in words]
    for moment in moments:
        finish(start(words, log), moment)
    started = time.monotonic()
    return finish(start(words, log), SECONDS), time.monotonic() - started


def differences(there: dict, whole: dict, unstable: set) -> list:
    "Names that are not in both, or not the same; those that are never the same twice left aside."
    return [name for name in sorted({**there, **whole}) if name not in unstable and there.get(name) != whole.get(name)]


def torture(name: str, words: list, home: Path, kills: int, seed: int = 0) -> dict:
    "Counts of one command: kills, equal, different, errors; what differed, and the seconds of a whole run."
    random, place, found = np.random.default_rng([seed, len(name)]), home / name, []
    for _ in range(2):  # all runs write to one path: some files hold it
        status, seconds = run(words, place)
        if status:
            raise SystemExit(f"{name}: the whole run ended with {status}:\n{place.with_suffix('.log').read_text()}")
        found.append(contents(place))
        shutil.rmtree(place)
    unstable, said = set(differences(*found, set())), []
    counts = {"command": name, "kills": 0, "equal": 0, "different": 0, "errors": 0}
    for number in (bar := tqdm(random.permutation(kills).tolist(), desc=name, unit="run")):  # early and late ones mixed
        share = (number + random.random()) / kills
        moments = [seconds * share, *[seconds * random.random()] * (number % 3 == 2)]
        status, _ = run(words, place, moments)
        wrong = differences(contents(place), found[0], unstable) if status == 0 else [f"status {status}"]
        counts["kills"] += len(moments)
        counts["errors" if status else "different" if wrong else "equal"] += 1
        bar.set_postfix(equal=counts["equal"], kills=counts["kills"])
        if wrong:
            said.append(f"killed at {', '.join(f'{moment:.2f}' for moment in moments)} s: {', '.join(wrong[:4])}")
            log = place.with_suffix(".log").read_text(errors="replace").strip().splitlines()
            said += [f"  {line}" for line in log[-3:]] if status else []
        shutil.rmtree(place)
    return counts | {"seconds": round(seconds, 2), "never the same twice": ", ".join(sorted(unstable)), "said": said}


def prepare(home: Path) -> None:
    "Inputs of all commands under `home`: registered frames, a balanced set, a film, a photograph, a database."
    import warnings

    from aufacs_nb.databases import sample_database
    from aufacs_nb.estimation.resampling import real_set
    from aufacs_nb.registration.collections import sample_registered

    shutil.copytree(sample_database().parent / "registered", home / "registered")
    films = sorted(path for path in sample_database().rglob("*") if path.suffix in (".mp4", ".avi"))
    (home / "database").mkdir()
    for film in films[:5]:
        shutil.copy(film, home / "database")
    shutil.copy(films[0], home / "film.avi")
    sample = sample_registered()
    train = sample.select((sample.manifest.partition == "Train") & sample.manifest.valid)
    with warnings.catch_warnings(action="ignore"):
        real_set(train.frames, train.manifest, per_intensity=4, out=home / "balanced")
    from PIL import Image
    from skimage.data import astronaut

    Image.fromarray(astronaut()).save(home / "photo.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="COMMAND")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    load()
    with tempfile.TemporaryDirectory(prefix="torture") as folder:
        home, rows = Path(folder), []
        prepare(home)
        known = commands(home)
        for name in chosen.names or known:
            rows.append(torture(name, known[name], home, chosen.kills, chosen.seed))
            said = rows[-1].pop("said")
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items() if value != ""), *said, sep="\n",
                  flush=True)
    if chosen.out:
        with open(chosen.out, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    sys.exit(any(row["different"] or row["errors"] for row in rows))


if __name__ == "__main__":
    main()

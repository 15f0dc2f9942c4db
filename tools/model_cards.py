"""Writes the model cards (README.md) of all shipped weights, from their card.json and the stored tables of results.

    python tools/model_cards.py            write them
    python tools/model_cards.py --check    say which are out of date; exit code 1 if any is

No number is typed here: scores come from the cards, and from data_samples/results, where they were measured.
"""
import argparse
import sys
from pathlib import Path

import pandas as pd

from aufacs_nb.evaluation.intervals import bootstrap_over_subjects
from aufacs_nb.model_cards import model_card, write_model_card
from aufacs_nb.presets import ASSETS
from aufacs_nb.weights import read_json

RESULTS = Path(__file__).parents[1] / "data_samples" / "results"
ASKED = (1, 4, 10, 12, 17)  # AUs that every reader and both judges know
WAYS = {"small/generator": "small GANimation", "small/generator_flow": "small flow (ours)",
        "medium/generator": "medium GANimation", "medium/ratio_flow": "medium RatioFlow (ours)"}
MEASURES = ("L1 face", "share of copy", "SSIM face", "AU error", "identity")
GROUPS = {"skin": "skin tone", "age": "age", "sex": "sex"}


def real_films(reader: str) -> dict:
    "How well a reader follows the faces of real people in films: {caption: rows}."
    table = pd.read_csv(RESULTS / "real_readers.csv")
    films = table[(table.film != "photographs") & (table.judge != "distance") & table.r.notna()]
    films, rows = films[films.AU.isin(ASKED)], []
    for name in dict.fromkeys(films.reader):
        if name.split()[0] == reader:
            each = films[films.reader == name].groupby(["person", "film"]).r.mean().groupby("person").mean()
            mean = bootstrap_over_subjects(lambda _, values: values.mean(), each, each.to_numpy(), each.index)
            zero = name.partition(" ")[2] or "none"
            rows.append({"zero": zero, "r": (mean.value, mean.low, mean.high), "people": len(each)})
    units = ", ".join(f"AU{au}" for au in ASKED)
    return {f"On films of real people: correlation with two independent measures of the face, mean of {units} and of "
            "people, with its interval of 95 % (`real_readers.csv`).": rows} if rows else {}


def true_pairs(part: str) -> dict:
    "How near a generator comes to the true picture of the same virtual person: {caption: rows}."
    table = pd.read_csv(RESULTS / "medium_generator.csv")
    if part not in WAYS:
        return {}
    rows = table[table.way.isin(("copy", WAYS[part], "true frame"))]
    rows = [{"way": row.way, **{name: float(row[name]) for name in MEASURES}} for _, row in rows.iterrows()]
    return {"On virtual people that no generator saw, against the true picture (`medium_generator.csv`). *copy* "
            "changes nothing. L1 in grey levels; share of copy: error that is left where AUs show, of that of *copy*; "
            "AU error in levels, by a reader; identity: cosine of face codes.": rows}


def by_group(model: str) -> dict:
    "Agreement by skin tone, age and sex of virtual people, where that was measured for this model: {caption: rows}."
    run = pd.read_csv(RESULTS / "levels_run.csv", index_col="what").value
    if run["model"] != model:
        return {}
    table = pd.read_csv(RESULTS / "levels_failures.csv").query("au == 'mean' and factor in @GROUPS")
    said = {"none": "Without a zero", "photograph": "With a neutral photograph as zero"}
    interval = lambda row, name: tuple(float(row[f"{name}{end}"]) for end in ("", " low", " high"))
    signed = "{:+.3f} ({:+.3f} to {:+.3f})".format
    change = lambda row: signed(*interval(row, "icc change")) if row["icc change"] else ""
    made = {}
    for zero, rows in table.groupby("zero", sort=False):
        sure = rows[(rows["icc change low"] > 0) | (rows["icc change high"] < 0)]
        gaps = ", ".join(f"{GROUPS[row.factor]} {row.bin} ({row['icc change']:+.2f})" for _, row in sure.iterrows())
        caption = (f"{said[zero]}: ICC(3,1), mean of all AUs, and its change from the first row of the group "
                   f"(`levels_failures.csv`). Changes whose interval does not hold 0: {gaps or 'none'}.")
        made[caption] = [{"group": GROUPS[row.factor], "": row.bin, "people": int(row.people),
                          "frames": int(row.frames), "ICC": interval(row, "icc"), "change": change(row),
                          "faces found": float(row.found)}
                         for _, row in rows.iterrows()]
    return made


def options(folder: Path) -> dict:
    "What `model_card` needs for a shipped folder."
    part, name = str(folder.relative_to(ASSETS)), str(folder.parent.relative_to(ASSETS))
    if part == "detection":
        return {"name": "MediaPipe's Face Landmarker", "licence": "Apache-2.0",
                "data": "Photographs of real people, by Google; see MediaPipe's own model cards. Only converted here."}
    reads = folder.name in ("classifiers", "mesh", "face")
    return {"name": name, "licence": "Apache-2.0", "virtual": True,
            "scores": real_films(name) if reads else true_pairs(part), "biases": by_group(name) if reads else {}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; name what is out of date")
    check, stale = parser.parse_args().check, []
    for path in sorted(ASSETS.glob("**/card.json")):
        page, made = path.with_name("README.md"), options(path.parent)
        if page.is_file() and page.read_text(encoding="utf-8") == model_card(read_json(path), **made):
            continue
        stale.append(str(page.relative_to(ASSETS.parent.parent)))
        if not check:
            page.unlink(missing_ok=True)
            write_model_card(path.parent, **made)
    print("\n".join(stale) or "all model cards are up to date")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())

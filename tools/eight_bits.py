"""Stores a trained generator in fewer bytes: in eight bits those convolutions that tolerate it, the rest as it was.

    python tools/eight_bits.py TRAINED OUT [--most 5.5] [--people 8] [--seed 2]

TRAINED is a folder of a generator (`weights.safetensors` in half precision, `card.json`), OUT gets the same one. Each
convolution alone is rounded to eight bits (`aufacs_nb.weights.eight_bits`: a scale for each output channel), and the
pictures of PEOPLE virtual people, `true_pairs(seed=SEED)`, say by how many grey levels they change. Then the
convolutions follow each other, least change per byte first, until the file has at most MOST megabytes. What is left of
the difference is measured on other people, `true_pairs(seed=SEED + 1)`: in grey levels, and in levels of each action
unit as the shipped `small` classifiers read them. The card's entry `storage` keeps all of it.
"""
import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from aufacs_nb import load_generator, synthesize
from aufacs_nb.estimation.storage import AUClassifiers
from aufacs_nb.evaluation.image_quality import true_pairs
from aufacs_nb.files import write_atomically
from aufacs_nb.model_cards import write_model_card
from aufacs_nb.weights import SCALE, eight_bits, read_json, read_tensors

FILE = "weights.safetensors"
SAID = " Afterwards the convolutions that bear it were stored in eight bits, by the command in the card's `storage`."


def rounded(values: np.ndarray) -> torch.Tensor:
    "What a tensor is after it was stored in eight bits: float32."
    whole, scale = eight_bits(values)
    return torch.tensor(whole * scale.reshape(-1, *[1] * (values.ndim - 1)))


def changes(generator, tensors: dict, names, pairs) -> dict:
    "Name → mean change of the pictures, in grey levels, when that tensor alone is in eight bits."
    exact = {name: torch.tensor(np.float32(tensors[name])) for name in names}
    before, found = synthesize(generator, pairs.source, pairs.labels), {}
    for name in tqdm(names, desc="eight bits"):
        generator.load_state_dict({name: rounded(tensors[name])}, strict=False)
        found[name] = apart(synthesize(generator, pairs.source, pairs.labels), before)
        generator.load_state_dict({name: exact[name]}, strict=False)
    return found


def apart(made: np.ndarray, before: np.ndarray) -> float:
    "Mean difference of pictures, in grey levels."
    return float(np.abs(np.int16(made) - before).mean())


def saved(values: np.ndarray) -> int:
    "Bytes that eight bits and their scales take less."
    return values.nbytes - values.size - 4 * len(values)


def choose(tensors: dict, found: dict, most: float) -> list:
    "Names, least change per byte first, until all tensors together have at most `most` bytes; ValueError if never."
    size, chosen = sum(values.nbytes for values in tensors.values()), []
    for name in sorted(found, key=lambda name: found[name] / saved(tensors[name])):
        if size <= most:
            break
        chosen.append(name)
        size -= saved(tensors[name])
    if size > most:
        raise ValueError(f"--most {most / 1e6:g}: with all convolutions in eight bits {size / 1e6:.2f} MB are left.")
    return sorted(chosen)


def packed(tensors: dict, chosen) -> dict:
    "The tensors as they are stored, `chosen` ones in eight bits."
    stored = {name: values for name, values in tensors.items() if name not in chosen}
    for name in chosen:
        stored[name], stored[name + SCALE] = eight_bits(tensors[name])
    return stored


def write(out: Path, stored: dict, card: dict) -> None:
    "Tensors, card and page of a folder."
    write_atomically(out / FILE, lambda path: (save_file(stored, path), path.chmod(0o644)))
    write_atomically(out / "card.json", lambda path: path.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8"))
    write_model_card(out)


def compare(before, after, pairs) -> dict:
    "How far apart two generators are on these pairs: picture in grey levels, readings in levels."
    made = [synthesize(generator, pairs.source, pairs.labels) for generator in (before, after)]
    readers = AUClassifiers.from_pretrained("small")
    moved = np.abs(np.subtract(*(readers.predict(frames) for frames in made)))
    by_au = {f"AU{au:02d}": round(float(mean), 4) for au, mean in zip(readers.aus, moved.mean(0))}
    return {"pictures": len(pairs.labels), "grey levels": round(apart(*made), 4),
            "most grey levels in a picture": round(max(map(apart, *made)), 4), "reader, levels": by_au}


def main() -> None:
    "Command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trained", type=Path, help="folder of the trained generator")
    parser.add_argument("out", type=Path, help="another folder, for the same one in fewer bytes")
    parser.add_argument("--most", type=float, default=5.5, help="megabytes that the tensors may take")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--seed", type=int, default=2)
    a = parser.parse_args()
    if a.out.resolve() == a.trained.resolve():
        parser.error("OUT is TRAINED: what the training left is kept")
    torch.set_num_threads(1)
    generator, tensors = load_generator(a.trained), read_tensors(a.trained / FILE)
    names = sorted(name for name, values in tensors.items() if values.ndim == 4)
    pairs = [true_pairs(a.people, size=generator.preset.size, seed=seed) for seed in (a.seed, a.seed + 1)]
    found = changes(generator, tensors, names, pairs[0])
    chosen = choose(tensors, found, a.most * 1e6)
    card = read_json(a.trained / "card.json")
    card["reproducible"] = card.get("reproducible", "").removesuffix(SAID) + SAID
    facts = {"command": f"python tools/eight_bits.py TRAINED OUT --most {a.most:g} --people {a.people} --seed {a.seed}",
             "trained": hashlib.sha256((a.trained / FILE).read_bytes()).hexdigest(), "eight bits": chosen,
             "alone, grey levels": {name: round(change, 4) for name, change in found.items()}}
    write(a.out, packed(tensors, chosen), card | {"storage": facts})
    facts["together"] = compare(generator, load_generator(a.out), pairs[1])
    write(a.out, packed(tensors, chosen), card | {"storage": facts})
    print(json.dumps(facts, indent=1), f"\n{(a.out / FILE).stat().st_size / 1e6:.2f} MB → {a.out}")


if __name__ == "__main__":
    main()

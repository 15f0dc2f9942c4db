"""Train the ratio generator of nbs/2_generation/07_ratio.ipynb on true pairs, without a critic.

    python tools/ratio_training.py --out runs/ratio --seconds 540 --start medium

renders virtual people on all cores but two (`tools/render_true_pairs.py`) while it trains on those that are there, for
so many seconds in all, and writes runs/ratio/ratio_flow/: weights.safetensors, card.json and sheet.png. Then
`load_ratio("runs/ratio")` of `aufacs_nb.generation.ratio` is the trained generator. `--start` begins with the weights
of a trained one. A run that was killed goes on with `--resume`; `--seconds` counts what was spent before. `--shards
DIR` keeps the rendered people there, and takes those that are there already; `--people 0` renders none.

    from tools.ratio_training import train
    card = train(frames, seconds=180, out="runs/ratio", device="cuda")   # frames: see tools/render_true_pairs.py

The network learns the people it sees: after three minutes on 179 of them the share of copying's error that is left was
0.25 on five of these and 0.34 on five others. So there are many people with few frames each, not the other way round.

What the training does that the losses of the notebook do not say:

    regions  Skin that an action unit moves counts more by the change of its label, even where the picture hardly
             changes: AU6, AU14 and level A were drowned by larger changes.
    relative Each pair's errors are divided by a power of its copy error, so that faint pairs count, too.
    weak     Targets that show one of the weakest action units are drawn more often.
"""
import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import tools.render_true_pairs  # noqa: F401  first: it helps Numba past a NumPy that is newer than it knows
from aufacs_nb.facs import AU_NAMES
from aufacs_nb.generation.networks import n_parameters
from aufacs_nb.generation.ratio import (DETAIL, N_VERTICES, Change, Geometry, RatioFlow, RatioLosses,
                                        apply_change, blur, face_mask, load_ratio, log_ratio, mirror, move_and_shade,
                                        pair_weight, pixel_grid, ratio_losses, read_at, resize_maps, spread_values,
                                        ssim_map, with_surround)
from aufacs_nb.files import counted, write_atomically

CHANGED = 24 / 255  # a pixel counts as changed from this mean difference of its colours on, as in `image_quality`


@dataclass(frozen=True)
class RatioConfig(RatioLosses):
    "The losses' weights and everything else that decides a training; stored in the card."
    held_out: int = 16               # the last so many people are never trained on
    batch: int = 48
    least_steps: int = 3000          # on a GPU the batch is made smaller if the time allowed fewer
    lr: float = 1e-3                 # AdamW; rises over `warmup` steps, then falls linearly to 0 at the end of the time
    warmup: int = 150
    ema: float = 0.998
    region_weight: float = 3.0       # extra weight of the skin that an AU moves, times the change of its label
    relative: float = 0.5            # power of the copy error by which a pair's errors are divided
    weak: tuple = (6, 14, 17)        # action units whose targets are drawn more often
    weak_share: float = 1.5          # how much more
    colour_jitter: float = 0.12      # standard deviation of the logarithm of a colour gain that a pair shares
    gamma_jitter: float = 0.15       # the same of an exponent
    blur_share: float = 0.2          # share of pairs of which both are blurred
    mesh_jitter: float = 0.0015      # standard deviation of a shift of the whole mesh, in sides


AS_SHIPPED = dict(region_weight=0.0, relative=0.0, weak_share=0.0)  # what the shipped one was made with


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


@dataclass
class Batch:
    "source and target (n, 3, S, S) in [0, 1]; labels of both (n, n_aus); the source's vertices (n, 468, 2) in sides."
    source: torch.Tensor
    target: torch.Tensor
    source_labels: torch.Tensor
    target_labels: torch.Tensor
    vertices: torch.Tensor
    flip: torch.Tensor | None = None


class PairBank:
    """Frames on the device; pairs are rows of one instant of one person.

    frames uint8 (N, S, S, 3), labels (N, n_aus), person (N,), instant (N,), vertices (N, 468, 3) px.
    """

    def __init__(self, frames: dict, rows: np.ndarray, size: int, device, weak=(), weak_share: float = 0.0):
        "`rows`: which of the frames; those of instants with a single frame are left out."
        keys = np.stack([frames["person"][rows], frames["instant"][rows]], 1)
        group = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        rows = rows[np.bincount(group)[group] > 1] if len(rows) else rows
        keys = np.stack([frames["person"][rows], frames["instant"][rows]], 1)
        group = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        order = np.lexsort((rows, group))
        self.rows, self.device, self.size, side = rows[order], device, size, frames["frames"].shape[1]
        self.person, self.group = np.asarray(frames["person"])[self.rows], group[order]
        self.images = self._images(np.asarray(frames["frames"]), side).to(device)
        self.labels = torch.tensor(np.asarray(frames["labels"], np.float32)[self.rows], device=device)
        vertices = np.asarray(frames["vertices"])[self.rows][:, :, :2].astype(np.float32) / side
        self.vertices = torch.tensor(vertices, device=device)
        columns = [k for k, au in enumerate(_au_numbers(frames["names"])) if au in weak]
        self.weight = 1 + weak_share * (self.labels[:, columns].amax(1) > 0).float() if columns else None
        self._index()

    def _images(self, frames: np.ndarray, side: int) -> torch.Tensor:
        "The rows' frames as uint8 (n, size, size, 3)."
        images = torch.tensor(frames[self.rows])
        if side == self.size:
            return images
        return torch.cat([resize_maps(part.permute(0, 3, 1, 2).float(), self.size).round().to(torch.uint8)
                          for part in images.split(512)]).permute(0, 2, 3, 1)

    def _index(self) -> None:
        "First row and number of rows of each instant, and the weights of its rows, (instants, most rows)."
        groups = self.group.max() + 1 if len(self.group) else 0
        count = np.bincount(self.group, minlength=groups)
        first = np.searchsorted(self.group, np.arange(groups))
        self.first, self.count = (torch.tensor(x, device=self.device) for x in (first, count))
        table = np.zeros((groups, count.max() if groups else 0), np.float32)
        weight = np.ones(len(self.group)) if self.weight is None else self.weight.cpu().numpy()
        table[self.group, np.arange(len(self.group)) - first[self.group]] = weight
        table[:, :1] = 0  # the first of an instant is neutral
        self.table = torch.tensor(table, device=self.device)

    def add(self, other: "PairBank") -> None:
        "Append the frames of a bank of other people."
        self.group = np.concatenate([self.group, other.group + (self.group.max() + 1 if len(self.group) else 0)])
        self.rows = np.concatenate([self.rows, other.rows])
        self.person = np.concatenate([self.person, other.person])
        for name in ("images", "labels", "vertices") + (() if self.weight is None else ("weight",)):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        self._index()

    def __len__(self):
        return len(self.rows)

    def neutral_pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        "Rows of (first of the instant, every other frame of it)."
        first = self.first.cpu().numpy()[self.group]
        target = np.flatnonzero(first != np.arange(len(first)))
        return (torch.tensor(first[target], device=self.device), torch.tensor(target, device=self.device))

    def draw(self, n: int, generator) -> tuple[torch.Tensor, torch.Tensor]:
        "n pairs of rows: 0.5 neutral → variant, 0.35 variant → variant, 0.15 variant → neutral."
        u = torch.rand(2, n, device=self.device, generator=generator)
        instant = (u[0] * len(self.first)).long().clamp(max=len(self.first) - 1)
        first = self.first[instant]
        a, b = torch.multinomial(self.table[instant], 2, replacement=True, generator=generator).T
        source = torch.where(u[1] < 0.5, torch.zeros_like(a), b)
        target = torch.where(u[1] < 0.85, a, torch.zeros_like(a))
        return first + source, first + target

    def take(self, source: torch.Tensor, target: torch.Tensor) -> Batch:
        "The pictures of pairs of rows as they are."
        images = [self.images[rows].permute(0, 3, 1, 2).float() / 255 for rows in (source, target)]
        return Batch(*images, self.labels[source], self.labels[target], self.vertices[source])


def augment(batch: Batch, config: RatioConfig, generator) -> Batch:
    "Mirror, colour, contrast and blur that both pictures share, noise on the mesh. Labels are of both sides alike."
    n, device = len(batch.source), batch.source.device

    def normal(*shape):
        return torch.randn(*shape, device=device, generator=generator)

    flip = torch.rand(n, device=device, generator=generator) < 0.5
    colour = (config.colour_jitter * (normal(n, 3, 1, 1) * 0.6 + normal(n, 1, 1, 1))).exp()
    gamma = (config.gamma_jitter * normal(n, 1, 1, 1)).exp()
    blurred = (torch.rand(n, 1, 1, 1, device=device, generator=generator) < config.blur_share).float()
    strength = blurred * torch.rand(n, 1, 1, 1, device=device, generator=generator)

    def same(images):
        images = (colour * images.clamp(min=1e-4) ** gamma).clamp(max=1) * (images > 0)
        images = images + strength * (blur(images, 0.8) - images)
        return mirror(images, flip)

    vertices = batch.vertices + config.mesh_jitter * normal(n, 1, 2)
    return replace(batch, source=same(batch.source), target=same(batch.target), vertices=vertices, flip=flip)


# ---------------------------------------------------------------------------------------------------------------------
# One ratio image per AU, by least squares


@torch.no_grad()
def fit_ratios(model: RatioFlow, bank: PairBank, ridge: float = 3.0, seconds: float = 20.0) -> None:
    """Fill `model.ratios`: least squares of log(target / moved source) on the change of labels, at each place.

    Pairs neutral → variant; ratios are laid on the canonical face by the inverse of `place` (the target's mesh).
    """
    began, side, n_aus = time.time(), model.config.ratio_side, len(model.config.aus)
    device = bank.device
    normal = torch.zeros(side * side, n_aus, n_aus, device=device)
    right = torch.zeros(n_aus, 3, side * side, device=device)
    sources, targets = bank.neutral_pairs()
    order = torch.randperm(len(sources), device=device)
    for rows in order.split(128):
        b = bank.take(sources[rows], targets[rows])
        size = b.source.shape[-1]
        flow, _, _ = model.geometry(b.vertices, b.source_labels, b.target_labels, side)
        # where on the target frame each place of the canonical face lies: the canonical mesh moved to the target's
        after = model.geometry.move(b.vertices, b.source_labels, b.target_labels)
        where = to_frame(model.geometry, after, side)
        look = where + read_at(flow, where)
        moved, truth = read_at(b.source, look), read_at(b.target, where)
        ratio = log_ratio(truth, moved)
        known = read_at(face_mask(b.source), look) * read_at(face_mask(b.target), where)
        known = (known > 0.99).float().flatten(1)  # (n, places)
        change = b.target_labels - b.source_labels
        normal += torch.einsum("na,nb,np->pab", change, change, known)
        right += torch.einsum("na,ncp,np->acp", change, ratio.flatten(2), known)
        if time.time() - began > seconds:
            break
    eye = torch.eye(n_aus, device=device) * ridge
    fitted = torch.linalg.solve(normal + eye, right.permute(2, 0, 1))  # (places, n_aus, 3)
    model.ratios.copy_(fitted.permute(1, 2, 0).reshape(n_aus, 3, side, side))


def to_frame(geometry: Geometry, vertices: torch.Tensor, side: int) -> torch.Tensor:
    "(N, 2, side, side): where on frames with these vertices (N, 468, 2) each place of the canonical face lies."
    canonical = geometry.canonical.expand_as(vertices)
    offsets, points = geometry.with_between(vertices - canonical), geometry.with_between(canonical)
    weight = torch.ones_like(points[..., 0])
    weight[:, N_VERTICES:] = 0.05
    return spread_values(points, offsets, weight, geometry.near, side) + pixel_grid(side, side, vertices.device)


# ---------------------------------------------------------------------------------------------------------------------
# What each pair's loss is taken on


@torch.no_grad()
def au_regions(geometry: Geometry, size: int, share: float = 0.25) -> torch.Tensor:
    "(n_aus, size, size) bool: where the canonical face moves by at least `share` of the AU's longest way at E."
    way = geometry.table[:, -1].norm(dim=-1).T[None]  # (1, 468, n_aus)
    points = geometry.with_between(geometry.canonical[None])
    maps = spread_values(points, geometry.with_between(way), torch.ones_like(points[..., 0]), geometry.near, size)[0]
    return maps >= share * way[0].amax(0)[:, None, None]


@torch.no_grad()
def weigh(batch: Batch, regions: torch.Tensor, config: RatioConfig) -> torch.Tensor:
    "(N, 1, S, S): `pair_weight`, plus the regions of the AUs that change, for each pair relative to its copy error."
    weight, face = pair_weight(batch.source, batch.target, config.changed_weight), face_mask(batch.target)
    if config.region_weight:
        change = (batch.target_labels - batch.source_labels).abs()
        acting = (change[:, :, None, None] * regions).amax(1, keepdim=True)
        acting = acting if batch.flip is None else mirror(acting, batch.flip)
        weight = weight + config.region_weight * face * acting
    if config.relative:
        copied = (((batch.target - batch.source).abs() * weight).mean((1, 2, 3)) / weight.mean((1, 2, 3)).clamp(min=1e-6))
        factor = (copied.clamp(min=1e-3) / copied.mean().clamp(min=1e-3)) ** -config.relative
        weight = weight * factor.clamp(0.4, 2.5)[:, None, None, None]
    return weight


def losses_of(change: Change, batch: Batch, regions: torch.Tensor, config: RatioConfig) -> dict:
    "name → scalar: the losses of the notebook, pixels weighed by `weigh`."
    shaded, weight = move_and_shade(batch.source, change), weigh(batch, regions, config)
    return ratio_losses(change, shaded, apply_change(batch.source, change, shaded), batch.target, weight, config)


# ---------------------------------------------------------------------------------------------------------------------
# Scores


@torch.no_grad()
def ways_of(model: RatioFlow, batch: Batch, autocast: bool = False) -> dict:
    "name → pictures (n, 3, S, S) in [0, 1]: copy, head model's warp, the same with ratio images, and the network's."
    change = model.change(batch.source, batch.vertices, batch.source_labels, batch.target_labels, autocast=autocast)
    prior = change._replace(flow=change.prior_flow, gain=torch.zeros_like(change.gain),
                            alpha=torch.zeros_like(change.alpha))
    made = {"copy": batch.source, "warp": move_and_shade(batch.source, prior),
            "warp and ratios": move_and_shade(batch.source, prior._replace(gain=change.prior_gain)),
            "network": apply_change(batch.source, change)}
    made = {k: x if k == "copy" else with_surround(x, batch.source, prior if k != "network" else change)
            for k, x in made.items()}
    return {name: (x.clamp(0, 1) * 255).round() / 255 for name, x in made.items()}


@torch.no_grad()
def measure(model: RatioFlow, bank: PairBank, seconds: float = 15.0, batch: int = 128, autocast: bool = False) -> dict:
    """Scores over neutral → every other frame of the bank (as many as the time allows, in random order).

    For each way of `ways_of`: 'left' is the share of copying's L1 error left over all pixels that differ by more than
    24 of 255 and are face in source and target ('left with edge': in the target; this is nearest to `image_quality`'s
    "share where changed"); 'detail' the slope of the change of fine detail that is made on
    the true one there (Σ Δmade Δtrue / Σ Δtrue², Δ: grey difference from the source less its Gaussian blur of 1.5/128
    of the side; noise adds nothing to it); 'strength' the ratio of its size, Σ|Δmade| / Σ|Δtrue|; 'SSIM' the mean over
    the regions that the target's AUs move, within the face. 'by AU': left and SSIM over frames with this AU alone (all
    frames with it at 0.4 or more where there is none) in its own region.
    """
    began, regions = time.time(), au_regions(model.geometry, bank.size)
    sources, targets = bank.neutral_pairs()
    order = torch.randperm(len(sources), generator=torch.Generator().manual_seed(0)).to(bank.device)
    sums, by_au, frames, names = {}, {}, 0, model.config.aus
    deviation = DETAIL * bank.size / 128
    for rows in order.split(batch):
        b = bank.take(sources[rows], targets[rows])
        face = face_mask(b.target)
        copied = (b.source - b.target).abs().mean(1, keepdim=True)
        changed, edge = (copied > CHANGED).float() * face * face_mask(b.source), (copied > CHANGED).float() * face
        active = (b.target_labels > 0)
        region = (active[:, :, None, None] & regions).any(1, keepdim=True).float() * face
        alone = active.sum(1) == 1

        def fine(images):
            grey = images.mean(1, keepdim=True)
            return grey - blur(grey, deviation)

        true_change = fine(b.target) - fine(b.source)
        for way, made in ways_of(model, b, autocast).items():
            error, similar = (made - b.target).abs().mean(1, keepdim=True), ssim_map(made, b.target)
            change = fine(made) - fine(b.source)
            within = (similar * region).sum((1, 2, 3)) / region.sum((1, 2, 3)).clamp(min=1)
            total = torch.stack([(error * changed).sum(), (copied * changed).sum(),
                                 (change * true_change * changed).sum(), (true_change ** 2 * changed).sum(),
                                 (change.abs() * changed).sum(), (true_change.abs() * changed).sum(), within.sum(),
                                 (error * region).sum(), (copied * region).sum(),
                                 (error * edge).sum(), (copied * edge).sum()])
            sums[way] = sums.get(way, 0) + total
            for kind, which in (("alone", active & alone[:, None]), ("any", b.target_labels >= 0.4)):
                own = which.float()[:, :, None, None] * regions * face  # (n, n_aus, S, S)
                area = own.sum((2, 3)).clamp(min=1)
                table = torch.stack([(error * changed * own).sum((0, 2, 3)), (copied * changed * own).sum((0, 2, 3)),
                                     (error * own).sum((0, 2, 3)), (copied * own).sum((0, 2, 3)),
                                     ((similar * own).sum((2, 3)) / area * which).sum(0),
                                     (change * true_change * changed * own).sum((0, 2, 3)),
                                     (true_change ** 2 * changed * own).sum((0, 2, 3)), which.float().sum(0)])
                by_au[way, kind] = by_au.get((way, kind), 0) + table
        frames += len(rows)
        if time.time() - began > seconds:
            break
    result = {"pairs": frames, "people": len(np.unique(bank.person)), "ways": {}, "by AU": {}}
    for way, t in sums.items():
        t = t.tolist()
        result["ways"][way] = {"left": t[0] / t[1], "detail": t[2] / t[3], "strength": t[4] / t[5],
                               "SSIM": t[6] / frames, "left in region": t[7] / t[8], "left with edge": t[9] / t[10]}
    for way in ("warp", "warp and ratios", "network"):
        alone, anyhow = by_au[way, "alone"].cpu(), by_au[way, "any"].cpu()
        for i, au in enumerate(names):
            t = (alone if alone[-1, i] >= 3 else anyhow)[:, i].tolist()
            if t[1] > 0 and t[7] > 0:
                result["by AU"].setdefault(f"AU{au:02d}", {"frames": int(t[7])})[way] = {
                    "left": t[0] / t[1], "left in region": t[2] / max(t[3], 1e-9), "SSIM": t[4] / t[7],
                    "detail": t[5] / max(t[6], 1e-9)}
    return rounded(result)


# ---------------------------------------------------------------------------------------------------------------------
# Storing and looking


def rounded(value, digits: int = 4):
    "Numbers of nested dictionaries and lists with so many digits; NaN and infinity become None (JSON has neither)."
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v, digits) for v in value]
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    return value


def save_ratio(folder, state: dict, card: dict) -> None:
    "weights.safetensors (float16; the head model's table, too, so that nothing has to be computed again) and card.json."
    tensors = {k: v.detach().to("cpu", torch.float16 if v.is_floating_point() else v.dtype).contiguous()
               for k, v in state.items()}
    write_atomically(Path(folder) / "weights.safetensors", lambda path: save_file(tensors, path))
    text = json.dumps(rounded(card), indent=2, allow_nan=False)
    write_atomically(Path(folder) / "card.json", lambda path: path.write_text(text + "\n", encoding="utf-8"))


def _picture(images: torch.Tensor) -> np.ndarray:
    "(n, 3, S, S) in [0, 1] → uint8 (n, S, S, 3)."
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _heat(flow: torch.Tensor, side: int) -> torch.Tensor:
    "Flow (n, 2, h, w) as colours (n, 3, side, side): red looks right, blue looks left; green down, dark green up."
    x, y = (resize_maps(flow, side) * 12).clamp(-0.5, 0.5).unbind(1)
    return torch.stack([0.5 + x, 0.5 + y, 0.5 - x], 1)


@torch.no_grad()
def pair_sheet(model: RatioFlow, bank: PairBank, per_au: int = 1):
    """Contact sheet of held-out pairs, an AU a row (the clearest frames with it): source, truth, network, the head
    model's warp, exp(gain) · ½, α, flow."""
    from aufacs_nb.pictures import contact_sheet

    sources, targets = bank.neutral_pairs()
    labels, pictures, rows = bank.labels[targets], [], []
    for i, au in enumerate(model.config.aus):
        clear = labels[:, i] - 0.5 * (labels.sum(1) - labels[:, i])
        for best in clear.topk(min(per_au, len(clear))).indices:
            b = bank.take(sources[best:best + 1], targets[best:best + 1])
            parts = model.change(b.source, b.vertices, b.source_labels, b.target_labels)
            ways, size = ways_of(model, b), b.source.shape[-1]
            for x in (b.source, b.target, ways["network"], ways["warp"], parts.gain.exp() / 2,
                      parts.alpha.expand(-1, 3, -1, -1), _heat(parts.flow, size)):
                pictures.append(_picture(x)[0])
            level = 5 * float(labels[best, i])
            rows.append(f"AU{au} {level:.1f}" + ("+" if float(labels[best].sum()) > level / 5 + 0.01 else ""))
    return contact_sheet(pictures, 7, bank.size, ("source", "truth", "network", "warp", "ratio", "alpha", "flow"), rows)


def render_levels(people, levels=(1, 3, 5), aus=tuple(AU_NAMES), size: int = 128) -> dict:
    """True pictures of people at single AUs: dictionary like `render_people`'s, for the contact sheet.

    People whose seed is 5,000,000 and more: `render_true_pairs` does not use them.
    """
    from aufacs_nb.simulation.appearance import sample_person
    from aufacs_nb.simulation.camera import render_person, sample_scene
    from aufacs_nb.registration.detection import FaceLandmarker
    from aufacs_nb.registration.frontal import register_face

    landmarker, rows = FaceLandmarker.from_pretrained(), []
    for number in people:
        person, scene = sample_person(5_000_000 + number), sample_scene(5_000_000 + number, "wide")
        for au, level in [(0, 0)] + [(au, level) for au in aus for level in levels]:
            photo = render_person(person, {au: level} if au else {}, scene=scene, size=256)
            face = landmarker.find_batch([photo])[0]
            if face is not None:
                r = register_face(photo, face.landmarks, size)
                rows.append((r.image, [level / 5 if a == au else 0.0 for a in aus], number, 0, r.vertices))
    columns = zip(*rows)
    kinds = (np.uint8, np.float32, np.int64, np.int64, np.float32)
    names = ("frames", "labels", "person", "instant", "vertices")
    return {k: np.asarray(list(c), kind) for k, c, kind in zip(names, columns, kinds)} | {"names": np.array(aus)}


@torch.no_grad()
def level_sheet(model: RatioFlow, frames: dict, person: int):
    "Contact sheet of one person of `render_levels`: an AU a row; source, then made and truth at A, C and E."
    from aufacs_nb.pictures import contact_sheet

    rows = np.flatnonzero(frames["person"] == person)
    bank = PairBank(frames, rows, model.config.size, next(model.parameters()).device)
    pictures, blank = [], np.full((bank.size, bank.size, 3), 60, np.uint8)
    for i, _ in enumerate(model.config.aus):
        pictures.append(_picture(bank.take(torch.tensor([0]), torch.tensor([0])).source)[0])
        for level in (1, 3, 5):
            match = torch.nonzero((bank.labels[:, i] - level / 5).abs() < 1e-3).flatten()
            first = torch.zeros(1, dtype=torch.long)
            b = bank.take(first, match[:1] if len(match) else first)
            asked = torch.zeros_like(b.source_labels)
            asked[:, i] = level / 5
            parts = model.change(b.source, b.vertices, b.source_labels, asked)
            pictures += [_picture(with_surround(apply_change(b.source, parts), b.source, parts))[0],
                         _picture(b.target)[0] if len(match) else blank]
    titles = ["source"] + [t for level in "ACE" for t in (f"{level} made", f"{level} true")]
    return contact_sheet(pictures, 7, bank.size, titles, [f"AU{au}" for au in model.config.aus])


def save_png(path, sheet) -> None:
    "A picture, atomically."
    write_atomically(Path(path), lambda p: sheet.save(p, "PNG"))


# ---------------------------------------------------------------------------------------------------------------------
# Training


class Average:
    "Running mean of a network's floating-point state, on its device."

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.steps = model, decay, 0
        self.live = [p for p in model.parameters()]
        self.mean = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        "One step; the decay grows from 0 so that early weights are forgotten."
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.mean, self.live, 1 - decay)

    @torch.no_grad()
    def finite(self) -> bool:
        "Whether all weights and their means are finite numbers."
        norms = torch._foreach_norm(self.live) + torch._foreach_norm(self.mean)
        return bool(torch.isfinite(torch.stack(norms)).all())

    def state(self) -> dict:
        "State of the model with the mean's weights."
        names = [name for name, _ in self.model.named_parameters()]
        return {**self.model.state_dict(), **dict(zip(names, self.mean))}


def _au_numbers(names) -> tuple:
    "AU numbers of names like 'AU01', '1' or 1."
    return tuple(int(str(name).upper().removeprefix("AU")) for name in np.asarray(names).tolist())


def split_people(frames: dict, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    "Rows to train on and rows held out: `frames['held_out']` if it names people, else the last so many."
    person = np.asarray(frames["person"])
    people = np.unique(person)
    named = np.asarray(frames.get("held_out", []))
    last = named if len(named) else people[len(people) - min(held_out, max(1, len(people) // 4)):]
    out = np.isin(person, last)
    return np.flatnonzero(~out), np.flatnonzero(out)


class Trainer:
    "Everything that a run needs; `run` until the clock says so."

    def __init__(self, frames: dict, config: RatioConfig, device, seed: int, log=print):
        torch.manual_seed(seed)
        self.log, self.device, self.seed = log, torch.device(device), seed
        self.on_gpu = self.device.type == "cuda"
        self.config = replace(config, aus=_au_numbers(frames["names"]))
        training, held_out = split_people(frames, config.held_out)
        self.bank, self.test = self.bank_of(frames, training), self.bank_of(frames, held_out)
        self.model = RatioFlow(self.config).to(self.device)
        self.regions = au_regions(self.model.geometry, config.size).float()
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.steps, self.lr_factor, self.history, self.faults, self.best = 0, 1.0, [], 0, math.inf

    def bank_of(self, frames: dict, rows: np.ndarray) -> PairBank:
        "The bank of some of the frames."
        return PairBank(frames, rows, self.config.size, self.device, self.config.weak, self.config.weak_share)

    def prepare(self, seconds: float, start=None) -> None:
        "Ratio images, or the weights of a trained generator; memory layout, optimiser and running mean."
        if start is None:
            fit_ratios(self.model, self.bank, seconds=seconds)
        else:
            self.model.load_state_dict(load_ratio(start, aus=None).state_dict())
        self.model.net.to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(
            [{"params": list(self.model.net.parameters()), "factor": 1.0},
             {"params": [self.model.ratios], "factor": 0.5}],
            lr=self.config.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=self.on_gpu)
        self.average = Average(self.model, self.config.ema)
        self.keep()

    @torch.no_grad()
    def keep(self) -> None:
        "Remember this state as a good one, if it is finite."
        if self.average.finite():
            self.good = [p.detach().clone() for p in self.average.live], [p.clone() for p in self.average.mean]

    @torch.no_grad()
    def back(self) -> None:
        "Return to the last good state with half the learning rate and an optimiser that remembers nothing."
        self.faults, self.lr_factor = self.faults + 1, self.lr_factor / 2
        for p, q in zip(self.average.live, self.good[0]):
            p.copy_(q)
        for p, q in zip(self.average.mean, self.good[1]):
            p.copy_(q)
        self.optimiser.state.clear()
        self.log(f"ratio: not finite or running away at step {self.steps}; back to the last good weights, "
                 "learning rate halved")

    def step(self, share: float) -> dict:
        "One step; `share` of the time that is over, in [0, 1]. Returns the losses (on the device)."
        c = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = (c.lr * group["factor"] * self.lr_factor * min(1, (self.steps + 1) / c.warmup)
                           * max(0.0, 1 - share))
        batch = augment(self.bank.take(*self.bank.draw(c.batch, self.generator)), c, self.generator)
        change = self.model.change(batch.source, batch.vertices, batch.source_labels, batch.target_labels, batch.flip,
                                   self.on_gpu)
        terms = losses_of(change, batch, self.regions, c)
        self.optimiser.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimiser.step()
        self.average.update()
        self.steps += 1
        return {k: v.detach() for k, v in terms.items()}

    def suit_batch(self, until: float) -> None:
        "After step 60: a smaller batch where the time would not allow `config.least_steps`."
        torch.cuda.synchronize()
        if self.steps == 20:
            self.timed = time.time()
            return
        each = (time.time() - self.timed) / 40
        steps = (until - time.time()) / each
        if steps < self.config.least_steps:
            batch = max(16, 8 * int(self.config.batch * steps / self.config.least_steps / 8))
            self.log(f"ratio: {1e3 * each:.0f} ms a step; batch {self.config.batch} → {batch}")
            self.config = self.model.config = replace(self.config, batch=batch)
        else:
            self.log(f"ratio: {1e3 * each:.0f} ms a step at batch {self.config.batch}")

    def run(self, start: float, spent: float, until: float, checkpoint, feed=None, every: float = 30.0) -> None:
        """Steps until the clock says `until`; `checkpoint()` and `feed()` are called every so many seconds.

        start: when the clock of this run began; spent: seconds of the runs before, for the learning rate
        """
        saved, told, recent, whole = time.time(), time.time(), [], spent + until - start
        while (now := time.time()) < until or self.steps == 0:  # one at least
            if self.on_gpu and self.steps in (20, 60):
                self.suit_batch(until)
            recent.append(self.step(min(1.0, (spent + now - start) / max(1e-6, whole))))
            if len(recent) >= 25 or now - told > 10:
                values = {k: float(torch.stack([r[k] for r in recent]).mean()) for k in recent[0]}
                recent, total = [], sum(values.values())
                if total < 3 * self.best:  # neither NaN nor running away
                    self.best = min(self.best, total)
                    self.keep() if self.steps % 100 < 25 else None
                    self.history.append({"step": self.steps, "seconds": round(spent + now - start, 1),
                                         **rounded(values)})
                    if now - told > 10:
                        told = now
                        self.log(f"ratio: step {self.steps}, {spent + now - start:.0f} s, "
                                 + ", ".join(f"{k} {v:.3f}" for k, v in values.items()))
                else:
                    self.back()
            if now - saved > every:
                saved = now
                checkpoint()
                self.grow(feed)

    def grow(self, feed) -> None:
        "Add the people that `feed()` brings, a dictionary like `frames` or None, to those trained on."
        frames = None if feed is None else feed()
        if frames is not None and len(frames["frames"]):
            more = ~np.isin(frames["person"], np.unique(self.test.person))
            self.bank.add(self.bank_of(frames, np.flatnonzero(more)))
            self.log(f"ratio: {len(np.unique(self.bank.person))} people at step {self.steps}")

    def tensors(self) -> dict:
        "Everything that decides the next step but the frames, as named tensors."
        found = {"random": self.generator.get_state()}
        for i, (p, mean) in enumerate(zip(self.average.live, self.average.mean)):
            found |= {f"{i}.live": p, f"{i}.mean": mean}
            found |= {f"{i}.{name}": value for name, value in self.optimiser.state.get(p, {}).items()}
        return {k: v.detach().cpu().contiguous().clone() for k, v in found.items()}

    @torch.no_grad()
    def restore(self, tensors: dict, facts: dict) -> None:
        "Put back what `tensors` took out, and the counters."
        for i, (p, mean) in enumerate(zip(self.average.live, self.average.mean)):
            p.copy_(tensors[f"{i}.live"])
            mean.copy_(tensors[f"{i}.mean"])
            self.optimiser.state[p] = {name: tensors[f"{i}.{name}"].to(self.device) for name in (
                "step", "exp_avg", "exp_avg_sq") if f"{i}.{name}" in tensors}
        self.generator.set_state(tensors["random"])
        self.steps, self.average.steps, self.lr_factor = facts["steps"], facts["averaged"], facts["lr_factor"]
        self.history = facts["history"]
        self.keep()


def config_for(side: int) -> RatioConfig:
    "The configuration for frames of that side: a narrow one below 64 px, which is for tests."
    return RatioConfig() if side >= 64 else replace(RatioConfig(), size=side, width=0.25, batch=8)


def save_progress(folder, trainer: Trainer, spent: float) -> None:
    "Write progress.safetensors, then progress.json that goes with it, each atomically."
    facts = {"steps": trainer.steps, "averaged": trainer.average.steps, "lr_factor": trainer.lr_factor, "spent": spent,
             "seed": trainer.seed, "history": trainer.history}
    write_atomically(Path(folder) / "progress.safetensors", lambda path: save_file(trainer.tensors(), path))
    write_atomically(Path(folder) / "progress.json", lambda path: path.write_text(json.dumps(facts), encoding="utf-8"))


def load_progress(folder, trainer: Trainer) -> float:
    "Go on where `save_progress` was called; returns the seconds spent. ValueError for another seed or network."
    path = Path(folder) / "progress.json"
    if not path.is_file():
        return 0.0
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["seed"] != trainer.seed:
        raise ValueError(f"{path}: made with seed {facts['seed']}, not {trainer.seed}; choose another folder.")
    try:
        trainer.restore(load_file(str(path.with_suffix(".safetensors"))), facts)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: of another network ({error}); choose another folder.") from error
    return facts["spent"]


def train(frames: dict, seconds: float, out, device="cuda", seed: int = 0, config: RatioConfig | None = None,
          log=print, feed=None, start=None, resume: bool = False) -> dict:
    """Train a `RatioFlow` on true pairs for so many seconds, all included; returns the card, also in out/ratio_flow.

    frames: dictionary of arrays, see `tools/render_true_pairs.py`: frames uint8 (N, S, S, 3), labels (N, n_aus) in
    [0, 1], names (n_aus,), person (N,), instant (N,), vertices (N, 468, 3) px; the first of each instant is neutral;
    optional held_out: people never trained on (else the last `config.held_out`). feed: called now and then, returns
    the frames of further people or None. start: a trained generator to begin with. resume: go on where a run into
    `out` was stopped. The last 12 % of the time (at most 30 seconds) go to the scores on the held-out people and to
    the contact sheet. Failing to score or to draw never loses the weights.
    """
    began, config = time.time(), config or config_for(np.shape(frames["frames"])[1])
    folder, reserve, device = Path(out) / "ratio_flow", min(30.0, 0.12 * seconds), torch.device(device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    trainer = Trainer(frames, config, device, seed, log)
    log(f"ratio: {counted(len(trainer.bank), 'frame')} of "
        f"{counted(len(np.unique(trainer.bank.person)), 'person', 'people')}, {len(trainer.test)} held out, "
        f"{n_parameters(trainer.model) / 1e6:.2f}M values, ready after {time.time() - began:.1f} s")
    trainer.prepare(min(20.0, 0.1 * seconds), start)
    spent = load_progress(folder, trainer) if resume else 0.0
    card = {"network": "RatioFlow", "part": "ratio_flow", "config": asdict(trainer.config), "seed": seed,
            "device": _device_name(device), "torch": torch.__version__, "start": None if start is None else str(start),
            "parameters": n_parameters(trainer.model), "seconds asked": seconds, "finished": False}

    def checkpoint():
        "Weights, card and progress, if the weights are finite."
        if not trainer.average.finite():
            trainer.back()
        now = spent + time.time() - began
        card.update(steps=trainer.steps, seconds=now, faults=trainer.faults, frames=len(trainer.bank),
                    people=len(np.unique(trainer.bank.person)))
        save_ratio(folder, trainer.average.state(), card)
        save_progress(folder, trainer, now)

    trainer.run(began, spent, began + seconds - spent - reserve, checkpoint, feed)
    card["history"] = trainer.history[::max(1, len(trainer.history) // 60)]
    if device.type == "cuda":
        card["peak memory, GiB"] = torch.cuda.max_memory_allocated() / 2 ** 30
    checkpoint()
    trainer.model.load_state_dict(trainer.average.state())
    trainer.model.eval()
    judge(trainer, card, folder, reserve)
    card["finished"] = True
    save_ratio(folder, trainer.average.state(), card)
    for kind in ("json", "safetensors"):  # what is finished can be gone on from with `start`
        (folder / f"progress.{kind}").unlink(missing_ok=True)
    return card


def judge(trainer: Trainer, card: dict, folder: Path, reserve: float) -> None:
    "Scores on the held-out people into the card, and the contact sheet into the folder; a failure is only noted."
    for name, task in (("scores", lambda: measure(trainer.model, trainer.test, 0.5 * reserve)),
                       ("sheet", lambda: save_png(folder / "sheet.png", pair_sheet(trainer.model, trainer.test)))):
        try:
            if len(trainer.test):
                card[name] = task()
        except Exception as error:  # weights are stored; scores and pictures can be made again from them
            card[f"{name} failed"] = f"{type(error).__name__}: {error}"
            trainer.log(f"ratio: {name} failed: {card[f'{name} failed']}")
    if card.get("scores"):
        trainer.log("ratio: " + json.dumps(card["scores"]["ways"]))


def _device_name(device: torch.device) -> str:
    "Name of the card, or of the processor's kind."
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


# ---------------------------------------------------------------------------------------------------------------------
# Rendering meanwhile


class Shards:
    "The rendered people of a folder, loaded once each; `feed` brings those that are new."

    def __init__(self, folder, held_out):
        self.folder, self.held_out, self.known = Path(folder), list(held_out), set()

    def numbers(self) -> list:
        "People whose shard is there and was not loaded yet."
        found = (int(path.stem.split("_")[1]) for path in sorted(self.folder.glob("person_*.npz")))
        return [number for number in found if number not in self.known]

    def feed(self, most: int = 400) -> dict | None:
        "The frames of new people, those held out among them; None if nobody is new."
        from tools.render_true_pairs import load_frames

        some = self.numbers()[:most]
        self.known.update(some)
        try:
            return load_frames(self.folder, self.held_out, some) if some else None
        except ValueError:  # people of whom no frame was found
            return None


def start_renderer(a: argparse.Namespace, shards, size: int):
    "`render_true_pairs.py` as a process of its own."
    command = [sys.executable, str(ROOT / "tools" / "render_true_pairs.py"), "--out", str(shards), "--seconds",
               str(a.render_share * a.seconds), "--size", str(size)]
    for name in ("people", "held_out", "instants", "variants", "workers", "seed"):
        command += [f"--{name.replace('_', '-')}", str(getattr(a, name))]
    return subprocess.Popen(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})


def first_frames(shards: Shards, renderer, enough: int) -> dict:
    "Wait until so many people to train on are there or the renderer has ended; RuntimeError if there is nobody."
    held_out = set(shards.held_out)
    while len(set(shards.numbers()) - held_out) < enough and renderer is not None and renderer.poll() is None:
        time.sleep(0.5)
    frames = shards.feed(most=10 ** 6)
    if frames is None or set(frames["person"].tolist()) <= held_out:
        raise RuntimeError(f"{shards.folder}: no rendered people to train on; give --people and more time, or --shards "
                           "with some.")
    return frames


def options() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", required=True, help="gets ratio_flow/ with weights.safetensors and card.json")
    add("--shards", help="folder of person_*.npz; OUT/shards unless given")
    add("--seconds", type=float, default=600, help="wall time of everything")
    add("--people", type=int, default=1500, help="render so many, as far as there is time; 0: none")
    add("--instants", type=int, default=2, help="light and pose of each person")
    add("--variants", type=int, default=10, help="expressions of each instant; more people teach more than more of it")
    add("--held-out", type=int, default=16, help="of them, never trained on")
    add("--render-share", type=float, default=0.75, help="share of the time after which no new person is rendered")
    add("--first", type=int, default=40, help="people to wait for before training begins")
    add("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes that render")
    add("--start", help="trained generator to begin with: a shipped name or a folder")
    add("--resume", action="store_true", help="go on where a run into OUT was stopped")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    add("--as-shipped", action="store_true", help="the losses that the shipped generator was trained with")
    add("--sheet", type=int, default=0, help="afterwards, sheets of so many people at A, C and E, with truth")
    for name, kind in (("size", int), ("width", float), ("batch", int), ("lr", float)):
        add(f"--{name}", type=kind)
    return parser.parse_args()


def main() -> None:
    "Command line."
    a, began = options(), time.time()
    chosen = {k: getattr(a, k) for k in ("size", "width", "batch", "lr") if getattr(a, k) is not None}
    config = replace(RatioConfig(held_out=a.held_out), **chosen, **(AS_SHIPPED if a.as_shipped else {}))
    folder, renderer = Path(a.shards or Path(a.out) / "shards"), None
    held_out = range(max(0, a.people - a.held_out), a.people) if a.people else ()
    try:
        if a.people:
            renderer = start_renderer(a, folder, config.size)
        shards = Shards(folder, held_out)
        frames = first_frames(shards, renderer, a.first)
        train(frames, a.seconds - (time.time() - began), a.out, a.device, a.seed, config, feed=shards.feed,
              start=a.start, resume=a.resume)
    finally:
        if renderer is not None and renderer.poll() is None:
            renderer.terminate()
    if a.sheet:
        model = load_ratio(a.out)
        truth = render_levels(range(a.sheet), aus=model.config.aus, size=model.config.size)
        for person in range(a.sheet):
            save_png(Path(a.out) / f"levels_{person}.png", level_sheet(model, truth, person))


if __name__ == "__main__":
    main()

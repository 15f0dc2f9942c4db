"""Train `RatioFlow` (ours): a generator that moves the skin, shades it, and paints only where nothing can be moved.

    output = (1 − α) · warp(source, flow) · exp(gain) + α · colour

    flow    where to look in the source: the head model's mean displacement for the change of labels, laid on the mesh
            of this face, plus what a U-Net adds (half resolution)
    gain    logarithm of an expression ratio for each colour (Liu, Shan and Zhang 2001, "Expressive expression mapping
            with ratio images"): one least-squares ratio image for each AU plus what the U-Net adds
    colour  with its α: the inside of a mouth that was closed, an eyeball that a lid covered; α costs elsewhere

Flow and gain are smooth, so `render` applies them to the photograph at its own size. Labels are relative: the network
sees source, target and their difference. Trained on true pairs only (same person, pose, light and camera; only the AUs
differ), without a critic.

    from tools.ratio_training import train
    scores = train(frames, seconds=180, out="runs/ratio", device="cuda")

    from tools.ratio_training import MEDIUM, load_ratio, synthesise
    made = synthesise(load_ratio(MEDIUM), frames, targets, vertices)  # the network that comes with the package

`frames` is what `tools/render_true_pairs.py` returns; `out` receives ratio.safetensors, ratio.json and ratio.png. As a
program: `python tools/ratio_training.py SHARDS --out runs/ratio --seconds 600 --device cpu --size 64 --width 0.5`.
"""
import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from aufacs_nb.registration.planar import CENTRE_CM, FACE_CM
from aufacs_nb.facs import AU_NAMES, AUS
from aufacs_nb.generation.geometric import _registered_mesh
from aufacs_nb.simulation.face_model import sample_identity
from aufacs_nb.geometry.meshes import canonical_face
from aufacs_nb.presets import ASSETS, write_atomically

MEDIUM = ASSETS / "medium" / "ratio_flow"  # the trained network that comes with the package
N_VERTICES, LEVELS = 468, 5
CHANGED = 24 / 255  # a pixel counts as changed from this mean difference of its colours on, as in `image_quality`
BLACK = 1.5 / 255   # registered frames are black where no camera saw the face
DETAIL = 1.5        # standard deviation, pixels of a 128 px frame, above which nothing counts as fine detail


@dataclass(frozen=True)
class RatioConfig:
    "Everything that makes a `RatioFlow` and its training; stored in the card."
    aus: tuple = tuple(AU_NAMES)     # columns of the labels
    size: int = 128                  # side of the frames that the network sees, pixels
    width: float = 1.0               # factor on the channels
    channels: tuple = (24, 64, 96, 144, 192)  # at full size, 1/2, 1/4, 1/8, 1/16
    blocks: tuple = (2, 2, 2, 2)     # residual blocks at 1/2 … 1/16, on the way down (the last: in the middle)
    code: int = 128                  # width of the label code
    reach: float = 0.12              # most that the network adds to the flow, in sides of the picture
    most_gain: float = 1.4           # bound of the logarithm of the ratio
    ratio_side: int = 64             # side of the ratio images
    held_out: int = 16               # the last so many people are never trained on
    batch: int = 48
    least_steps: int = 3000          # on a GPU the batch is made smaller if the time allowed fewer
    lr: float = 1e-3                 # AdamW; rises over `warmup` steps, then falls linearly to 0 at the end of the time
    warmup: int = 150
    ema: float = 0.998
    changed_weight: float = 5.0      # extra weight of what changes
    lambda_detail: float = 1.0       # Laplacian pyramid
    lambda_features: float = 0.0     # multi-scale features of a network with random weights
    lambda_ssim: float = 0.5         # 1 − structural similarity
    lambda_energy: float = 0.3       # local strength of the fine detail
    lambda_alpha: float = 0.05       # α where skin can be moved
    lambda_flow: float = 1.0         # squared differences of neighbouring flows, in sides per cell
    lambda_gain: float = 0.01        # differences of neighbouring gains
    lambda_warp: float = 0.25        # the warped source alone (no gain, no paint) must lie near the truth
    colour_jitter: float = 0.12      # standard deviation of the logarithm of a colour gain that a pair shares
    gamma_jitter: float = 0.15       # the same of an exponent
    blur_share: float = 0.2          # share of pairs of which both are blurred
    mesh_jitter: float = 0.0015       # standard deviation of a shift of the whole mesh, in sides


# ---------------------------------------------------------------------------------------------------------------------
# What the head model says: displacement and where every pixel lies on the face


def au_table(aus=tuple(AU_NAMES), people=range(700, 716)) -> np.ndarray:
    "Mean displacement of FaceMesh points at level 0–5: (n_aus, 6, 468, 2) float32, right and down in frame sides."
    heads = [sample_identity(seed) for seed in people]
    rest = [_registered_mesh(head, {}) for head in heads]
    table = np.zeros((len(aus), LEVELS + 1, N_VERTICES, 2), np.float32)
    for i, au in enumerate(aus):
        for level in range(1, LEVELS + 1):
            moved = np.mean([_registered_mesh(h, {au: level}) - r for h, r in zip(heads, rest)], axis=0)
            table[i, level] = moved[:, :2] * [1 / FACE_CM, -1 / FACE_CM]
    return table


def canonical_sides() -> np.ndarray:
    "The canonical face on a registered frame: (468, 2) float32, right and down in sides of the frame."
    x, y, _ = canonical_face().vertices.astype(float).T / FACE_CM
    return np.stack([0.5 + x, 0.5 - y + CENTRE_CM / FACE_CM], 1).astype(np.float32)


# upper and lower vertices of the inner lips and of the lids of both eyes, from one corner to the other
LIPS = ((191, 95), (80, 88), (81, 178), (82, 87), (13, 14), (312, 317), (311, 402), (310, 318), (415, 324))
LIDS = ((246, 7), (161, 163), (160, 144), (159, 145), (158, 153), (157, 154), (173, 155),
        (466, 249), (388, 390), (387, 373), (386, 374), (385, 380), (384, 381), (398, 382))


def _between() -> np.ndarray:
    "Points between lips (5 a pair) and lids (3 a pair): (m, 4) upper and lower vertex, share of the upper, 1 for lips."
    rows = [(a, b, t, 1) for a, b in LIPS for t in (5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)]
    return np.array(rows + [(a, b, t, 0) for a, b in LIDS for t in (0.75, 0.5, 0.25)])


def _spacing(points: np.ndarray) -> np.ndarray:
    "(468,): mean distance of each vertex from those it shares a triangle with."
    triangles = canonical_face().triangles
    pairs = np.concatenate([triangles[:, [i, j]] for i, j in ((0, 1), (1, 2), (2, 0))])
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    length = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    return (np.bincount(pairs[:, 0], length, len(points)) / np.bincount(pairs[:, 0], minlength=len(points)))


class Geometry(nn.Module):
    """What is known before anything is learnt, at every pixel, from a face's mesh and the change of its labels.

    Values of the vertices spread by a normalised sum of Gaussians as wide as the mesh is coarse there. A Gaussian is a
    product of one in x and one in y, so that the sums are two small matrix products: no raster, any resolution. Points
    between the lips and between the lids stand in for the skin that an open mouth or eye lacks.
    """

    def __init__(self, aus):
        super().__init__()
        canonical, between = canonical_sides(), _between()
        spacing = _spacing(canonical) * 0.38
        near = np.concatenate([spacing, np.full(len(between), 0.006)])
        self.register_buffer("table", torch.tensor(au_table(aus)))
        self.register_buffer("canonical", torch.tensor(canonical))
        self.register_buffer("near", torch.tensor(near, dtype=torch.float32))
        self.register_buffer("upper", torch.tensor(between[:, 0]).long())
        self.register_buffer("lower", torch.tensor(between[:, 1]).long())
        self.register_buffer("share", torch.tensor(between[:, 2:3], dtype=torch.float32))

    def displacement(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        "(N, 468, 2) in sides between two label vectors (N, n_aus) in [0, 1]; linear between levels, summed over AUs."
        knots = torch.arange(LEVELS + 1, device=source.device)

        def hats(labels):
            return (1 - (LEVELS * labels[..., None] - knots).abs()).clamp(min=0)

        return torch.einsum("nal,alvc->nvc", hats(target) - hats(source), self.table)

    def move(self, vertices: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        "vertices (N, 468, 2) where the target has them; upper lips and lids go no lower than the lower ones."
        after = vertices + self.displacement(source, target)
        upper, lower = (list(row) for row in zip(*LIPS, *LIDS))
        highest = torch.minimum(after[:, upper], after[:, lower])[..., 1]
        after = after.clone()
        after[:, upper, 1] = highest
        return after

    def _with_between(self, points: torch.Tensor) -> torch.Tensor:
        "(N, 468, k) → (N, 468 + m, k)."
        middle = self.share * points[:, self.upper] + (1 - self.share) * points[:, self.lower]
        return torch.cat([points, middle], 1)

    def forward(self, vertices: torch.Tensor, source: torch.Tensor, target: torch.Tensor, side: int):
        """vertices: (N, 468, 2) of the source in sides of the frame; labels (N, n_aus) in [0, 1].

        Returns flow (N, 2, side, side) in sides: where to look in the source; place (N, 2, side, side): where on the
        canonical face a pixel of the target lies; opening (N, 3, side, side) in [0, 1]: what lies between lips or lids
        in the target, the part of it that did not in the source, and what lay there in the source.
        """
        after = self.move(vertices, source, target)
        points, weight = self._with_between(after), self._weight(after)
        values = torch.cat([self._with_between(vertices) - points,
                            self._with_between(self.canonical.expand_as(after)) - points,
                            (torch.arange(points.shape[1], device=points.device) >= N_VERTICES).float()
                            .expand(len(points), -1)[..., None]], -1)  # (N, V, 5)
        centres = (torch.arange(side, device=points.device) + 0.5) / side
        flow, place, opening = self._spread(points, values, weight, centres).split([2, 2, 1], 1)
        before = self._spread(self._with_between(vertices), values[..., 4:], self._weight(vertices), centres)
        grid = torch.stack(torch.broadcast_tensors(centres[None, :], centres[:, None]))
        return flow, place + grid, torch.cat([opening, (opening - before).clamp(min=0), before], 1)

    def _weight(self, points: torch.Tensor) -> torch.Tensor:
        "(N, 468 + m): 1; less for points between what touches, and for lower lids that an upper one reaches."
        gap = ((points[:, self.lower] - points[:, self.upper])[..., 1] / 0.02).clamp(0, 1)
        lids = [lower for _, lower in LIDS]
        weight = torch.ones_like(points[..., 0])
        weight[:, lids] = gap[:, 5 * len(LIPS)::3].clamp(min=0.02) ** 2
        return torch.cat([weight, gap], 1)

    def _spread(self, points, values, weight, centres) -> torch.Tensor:
        "values (N, V, k) at points (N, V, 2) with weight (N, V) → (N, k, side, side)."
        total = 0.0
        values = torch.cat([values, torch.ones_like(values[..., :1])], -1)
        wide = torch.ones_like(self.near)
        for deviation, factor in ((self.near, 1.0), (0.05 * wide, 1e-4), (0.25 * wide, 1e-8)):  # the last two fill gaps
            x, y = (torch.exp(-0.5 * ((centres - points[..., i, None]) / deviation[:, None]) ** 2) for i in (0, 1))
            y = y * (factor * weight)[..., None]
            total = total + torch.einsum("nvy,nvk,nvx->nkyx", y, values, x)
        return total[:, :-1] / total[:, -1:].clamp(min=1e-20)


def sample(images: torch.Tensor, where: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    "images (N, C, h, w) read at where (N, 2, H, W), right and down in sides of the picture; the border is repeated."
    return F.grid_sample(images, 2 * where.permute(0, 2, 3, 1) - 1, mode, "border", align_corners=False)


def pixel_grid(height: int, width: int, device=None) -> torch.Tensor:
    "(1, 2, height, width): the middle of every pixel, right and down in sides of the picture."
    y, x = ((torch.arange(k, device=device) + 0.5) / k for k in (height, width))
    return torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]))[None]


def resize(maps: torch.Tensor, side: int) -> torch.Tensor:
    "Maps (N, C, h, w) at side × side, bilinear (antialiased where they shrink)."
    if maps.shape[-1] == side:
        return maps
    return F.interpolate(maps, size=(side, side), mode="bilinear", antialias=maps.shape[-1] > side, align_corners=False)


@torch.no_grad()
def fill_black(images: torch.Tensor) -> torch.Tensor:
    "images (N, 3, h, w): black pixels (and one more around them) take the nearest others' mean, from coarser sizes."
    known = 1 - F.max_pool2d((images.amax(1, keepdim=True) <= BLACK).float(), 3, 1, 1)
    levels = [(images * known, known)]
    while min(levels[-1][0].shape[2:]) >= 2:
        levels.append(tuple(F.avg_pool2d(x, 2) for x in levels[-1]))
    filled = None
    for colours, weight in reversed(levels):
        own = colours / weight.clamp(min=1e-6)
        if filled is not None:
            filled = F.interpolate(filled, size=colours.shape[2:], mode="bilinear", align_corners=False)
            own = torch.where(weight > 0, own, filled)
        filled = own
    return known * images + (1 - known) * filled


# ---------------------------------------------------------------------------------------------------------------------
# The network


class Film(nn.Module):
    "A residual block that the label code scales and shifts: (N, dim, h, w), (N, code) → (N, dim, h, w)."

    def __init__(self, dim: int, code: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(dim, dim, 3, padding=1), nn.Conv2d(dim, dim, 3, padding=1)
        self.modulate = nn.Linear(code, 2 * dim)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        with torch.no_grad():
            self.second.weight.mul_(0.3)

    def forward(self, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        "As the class says."
        scale, shift = self.modulate(code)[:, :, None, None].chunk(2, 1)
        return x + self.second(F.silu(self.first(F.silu(x)) * (1 + scale) + shift))


class RatioNet(nn.Module):
    """The U-Net: what is to be added to flow and gain, and colour with its α. No normalisation layer.

    Planes it sees (N, 17, S, S): source 3, source moved by the head model 3, the AUs' ratio images 3, flow 2, place 2,
    openings 3, face 1. `n_aus` labels of source and target, and their difference, modulate every block.
    """
    planes = 17

    def __init__(self, config: RatioConfig):
        super().__init__()
        full, *widths = (8 * math.ceil(c * config.width / 8) for c in config.channels)
        code = config.code
        self.label_code = nn.Sequential(nn.Linear(3 * len(config.aus), code), nn.SiLU(),
                                        nn.Linear(code, code), nn.SiLU())
        self.stem = nn.Conv2d(self.planes, full, 3, padding=1)
        ins = [full, *widths[:-1]]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in zip(ins, widths))
        self.encode = nn.ModuleList(nn.ModuleList(Film(w, code) for _ in range(n))
                                    for w, n in zip(widths, config.blocks))
        pairs = list(zip(widths[:0:-1], widths[-2::-1]))  # coarse, fine
        self.join = nn.ModuleList(nn.Conv2d(a + b, b, 3, padding=1) for a, b in pairs)
        self.decode = nn.ModuleList(nn.ModuleList(Film(b, code) for _ in range(2)) for _, b in pairs)
        self.flow = nn.Conv2d(widths[0], 2, 3, padding=1)
        self.last = nn.Conv2d(widths[0] + full, 32, 3, padding=1)
        self.final = Film(32, code)
        self.heads = nn.Conv2d(32, 7, 3, padding=1)
        for head in (self.flow, self.heads):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        with torch.no_grad():
            self.heads.bias[4:] = -1.0  # paint starts dark

    def forward(self, planes: torch.Tensor, source: torch.Tensor, target: torch.Tensor):
        "→ flow (N, 2, S/2, S/2) and gain 3, α 1, colour 3 (N, 7, S, S), all unbounded."
        code = self.label_code(torch.cat([source, target, target - source], 1) * 2)
        full = F.silu(self.stem(planes))
        x, skips = full, []
        for down, blocks in zip(self.down, self.encode):
            x = down(x)
            for block in blocks:
                x = block(x, code)
            skips.append(x)
        for join, blocks, skip in zip(self.join, self.decode, skips[-2::-1]):
            x = join(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], 1))
            for block in blocks:
                x = block(x, code)
        x = F.silu(x)
        up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        last = F.silu(self.final(self.last(torch.cat([up, full], 1)), code))
        return self.flow(x), self.heads(last)


@dataclass
class Parts:
    """What `RatioFlow` says of one change; all at the network's sizes, all float32.

    flow: (N, 2, S/2, S/2) in sides; learnt: the same without the head model's; gain: (N, 3, S, S) logarithms
    alpha: (N, 1, S, S) in [0, 1]; colour: (N, 3, S, S) in [0, 1]; opening: (N, 3, S/2, S/2); prior_flow, prior_gain:
    what head model and ratio images alone say
    """
    flow: torch.Tensor
    learnt: torch.Tensor
    gain: torch.Tensor
    alpha: torch.Tensor
    colour: torch.Tensor
    opening: torch.Tensor
    prior_flow: torch.Tensor
    prior_gain: torch.Tensor


def render(images: torch.Tensor, parts: Parts, paint: bool = True, mode: str = "bicubic") -> torch.Tensor:
    """Apply `parts` to images (N, 3, H, H) in [0, 1] of any size: (1 − α) warp · exp(gain) + α colour, not clipped.

    Black around a registered face is filled with the nearest skin, so that no black is pulled into the face.
    """
    side = images.shape[-1]
    moved = sample(fill_black(images), pixel_grid(side, side, images.device) + resize(parts.flow, side), mode)
    shaded = moved * resize(parts.gain, side).exp()
    if not paint:
        return shaded
    alpha = resize(parts.alpha, side)
    return (1 - alpha) * shaded + alpha * resize(parts.colour, side)


def with_surround(made: torch.Tensor, images: torch.Tensor, parts: Parts) -> torch.Tensor:
    "What `render` made of registered frames, black again where the moved frame is black."
    side = images.shape[-1]
    seen = (images.amax(1, keepdim=True) > BLACK).float()
    moved = sample(seen, pixel_grid(side, side, images.device) + resize(parts.flow, side))
    return made * torch.maximum((moved > 0.5).float(), (resize(parts.alpha, side) > 0.5).float())


class RatioFlow(nn.Module):
    "Geometry, one ratio image an AU (`ratios`, (n_aus, 3, side, side) on the canonical face) and the network."

    def __init__(self, config: RatioConfig = RatioConfig()):
        super().__init__()
        self.config = config
        self.geometry = Geometry(config.aus)
        self.ratios = nn.Parameter(torch.zeros(len(config.aus), 3, config.ratio_side, config.ratio_side))
        self.net = RatioNet(config)

    def prior(self, images, vertices, source, target, side: int | None = None):
        "Flow, place, opening at `side` (S/2), and the ratio images' gain (N, 3, side, side), not bounded."
        flow, place, opening = self.geometry(vertices, source, target, side or images.shape[-1] // 2)
        change = target - source
        ratios = torch.einsum("na,acyx->ncyx", change, self.ratios)
        skin = 1 - opening[:, [0, 2]].amax(1, keepdim=True)  # what lids and lips cover is no skin that shades
        return flow, place, opening, skin * sample(ratios, place)

    def forward(self, images, vertices, source, target, flip=None, autocast: bool = False) -> Parts:
        """images (N, 3, S, S) in [0, 1]; vertices (N, 468, 2) in sides; labels (N, n_aus) of source and target.

        flip: (N,) bool, training only: these images are mirrored, their vertices are not.
        """
        size, bound = images.shape[-1], self.config.most_gain
        flow, place, opening, ratio = self.prior(images, vertices, source, target)
        if flip is not None:
            flow, place, opening, ratio = (mirror(m, flip) for m in (flow, place, opening, ratio))
            flow = torch.where(flip[:, None, None, None], flow * flow.new_tensor([-1, 1]).view(2, 1, 1), flow)
            place = torch.where(flip[:, None, None, None], flow.new_tensor([1, 0]).view(2, 1, 1)
                                + place * flow.new_tensor([-1, 1]).view(2, 1, 1), place)
        prior_flow, prior_gain = resize(flow, size), resize(ratio, size)
        face, images = (images.amax(1, keepdim=True) > BLACK).float(), fill_black(images)
        fresh = resize(opening[:, 1:2], size)
        moved = sample(images, pixel_grid(size, size, images.device) + prior_flow)
        planes = torch.cat([images * 2 - 1, moved * 2 - 1, prior_gain * 2, prior_flow * 20,
                            resize(place, size) * 2 - 1, resize(opening, size),
                            face], 1)
        planes = planes.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            learnt, heads = self.net(planes, source, target)
        learnt, heads = self.config.reach * torch.tanh(learnt.float()), heads.float()
        gain = bound * torch.tanh((prior_gain + 0.3 * heads[:, :3]) / bound)
        alpha = torch.sigmoid(heads[:, 3:4] + 5 * fresh - 3.5)
        return Parts(flow + learnt, learnt, gain, alpha, torch.sigmoid(heads[:, 4:]), opening, flow,
                     bound * torch.tanh(prior_gain / bound))


def mirror(maps: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    "Those rows of maps (N, C, h, w) left for right where flip (N,) says so."
    return torch.where(flip[:, None, None, None], maps.flip(3), maps)


def n_parameters(model: nn.Module) -> int:
    "Number of trainable values."
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


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

    def __init__(self, frames: dict, rows: np.ndarray, size: int, device):
        "`rows`: which of the frames; those of instants with a single frame are left out."
        keys = np.stack([frames["person"][rows], frames["instant"][rows]], 1)
        group = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        rows = rows[np.bincount(group)[group] > 1]
        keys = np.stack([frames["person"][rows], frames["instant"][rows]], 1)
        group = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        order = np.lexsort((rows, group))
        self.rows, group = rows[order], group[order]
        self.person = np.asarray(frames["person"])[self.rows]
        first = np.searchsorted(group, np.arange(group.max() + 1)) if len(group) else np.zeros(0, int)
        self.device, self.size, self.group = device, size, group
        self.first = torch.tensor(first, device=device)
        self.count = torch.tensor(np.bincount(group), device=device)
        side = frames["frames"].shape[1]
        images = torch.tensor(np.asarray(frames["frames"])[self.rows])
        if side != size:
            images = torch.cat([resize(part.permute(0, 3, 1, 2).float(), size).round().to(torch.uint8)
                                for part in images.split(512)]).permute(0, 2, 3, 1)
        self.images = images.to(device)
        self.labels = torch.tensor(np.asarray(frames["labels"], np.float32)[self.rows], device=device)
        vertices = np.asarray(frames["vertices"])[self.rows][:, :, :2].astype(np.float32) / side
        self.vertices = torch.tensor(vertices, device=device)

    def __len__(self):
        return len(self.rows)

    def neutral_pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        "Rows of (first of the instant, every other frame of it)."
        first = self.first.cpu().numpy()[self.group]
        target = np.flatnonzero(first != np.arange(len(first)))
        return (torch.tensor(first[target], device=self.device), torch.tensor(target, device=self.device))

    def draw(self, n: int, generator) -> tuple[torch.Tensor, torch.Tensor]:
        "n pairs of rows: 0.5 neutral → variant, 0.35 variant → variant, 0.15 variant → neutral."
        u = torch.rand(4, n, device=self.device, generator=generator)
        instant = (u[0] * len(self.first)).long().clamp(max=len(self.first) - 1)
        first, count = self.first[instant], self.count[instant]
        a = 1 + (u[1] * (count - 1)).long().clamp(max=count - 2)
        b = 1 + (u[2] * (count - 1)).long().clamp(max=count - 2)
        source = torch.where(u[3] < 0.5, torch.zeros_like(a), b)
        target = torch.where(u[3] < 0.85, a, torch.zeros_like(a))
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
    return replace_batch(batch, same(batch.source), same(batch.target), vertices, flip)


def replace_batch(batch: Batch, source, target, vertices, flip) -> Batch:
    "The same labels with other pictures."
    return Batch(source, target, batch.source_labels, batch.target_labels, vertices, flip)


def blur(images: torch.Tensor, deviation: float) -> torch.Tensor:
    "Gaussian blur of (N, C, h, w), the border mirrored."
    radius = max(1, math.ceil(3 * deviation))
    x = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (x / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    images = F.conv2d(F.pad(images, (radius, radius, 0, 0), mode="reflect"), kernel, groups=images.shape[1])
    images = F.pad(images, (0, 0, radius, radius), mode="reflect")
    return F.conv2d(images, kernel.transpose(2, 3), groups=images.shape[1])


def face_mask(images: torch.Tensor) -> torch.Tensor:
    "(N, 1, h, w): 1 where a registered frame is not black, its edge excluded."
    black = (images.amax(1, keepdim=True) <= BLACK).float()
    return 1 - F.max_pool2d(black, 3, 1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# One ratio image an AU, by least squares


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
        look = where + sample(flow, where)
        moved, truth = sample(b.source, look), sample(b.target, where)
        ratio = torch.log((truth + 0.03) / (moved + 0.03)).clamp(-1, 1)
        known = sample(face_mask(b.source), look) * sample(face_mask(b.target), where)
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
    offsets = geometry._with_between(vertices - canonical)
    points = geometry._with_between(canonical)
    centres = (torch.arange(side, device=vertices.device) + 0.5) / side
    weight = torch.ones_like(points[..., 0])
    weight[:, N_VERTICES:] = 0.05
    return geometry._spread(points, offsets, weight, centres) + pixel_grid(side, side, vertices.device)


# ---------------------------------------------------------------------------------------------------------------------
# Losses


def charbonnier(x: torch.Tensor, epsilon: float = 2e-3) -> torch.Tensor:
    "√(x² + ε²) − ε."
    return (x * x + epsilon * epsilon).sqrt() - epsilon


def weighted_mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    "Mean of values (N, C, h, w) with weight (N, 1, h, w)."
    return (values * weight).sum() / (weight.sum() * values.shape[1]).clamp(min=1)


def pyramid(x: torch.Tensor, levels: int = 3) -> list:
    "Laplacian pyramid of (N, C, h, w), finest first, with the rest at the end."
    bands = []
    for _ in range(levels):
        small = F.avg_pool2d(blur(x, 1.0), 2)
        bands.append(x - F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False))
        x = small
    return bands + [x]


class RandomFeatures(nn.Module):
    "Three scales of a convolutional network with fixed random weights (seed 0): images → list of features."

    def __init__(self, widths=(16, 32, 64)):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in zip((3, *widths), widths)]
            for layer in layers:
                nn.init.orthogonal_(layer.weight, math.sqrt(2))
        self.layers = nn.ModuleList(layers)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> list:
        "x: (N, 3, h, w)."
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
            x = F.avg_pool2d(x, 2)
        return features


def losses(parts: Parts, made: torch.Tensor, unpainted: torch.Tensor, batch: Batch, config: RatioConfig,
           features=None, autocast: bool = False) -> dict:
    "name → scalar, weighted; all are means over the target's face, with more weight where source and target differ."
    face = face_mask(batch.target)
    difference = (batch.target - batch.source).abs().mean(1, keepdim=True)
    changed = blur(((difference - 0.03) / 0.07).clamp(0, 1), 0.7)
    weight = face * (1 + config.changed_weight * changed)
    error = (made - batch.target) * face
    out = {"pixels": 10 * weighted_mean(charbonnier(error), weight),
           "unpainted": 10 * config.lambda_warp * weighted_mean(
               charbonnier(unpainted - batch.target), weight * (1 - resize(parts.opening[:, :1], face.shape[-1])))}
    bands, w = pyramid(error), weight
    detail = 0.0
    for band, factor in zip(bands[:-1], (3.0, 2.0, 1.0)):
        detail = detail + factor * weighted_mean(charbonnier(band), w)
        w = F.avg_pool2d(w, 2)
    out["detail"] = 10 * config.lambda_detail * detail
    if config.lambda_ssim:
        out["ssim"] = config.lambda_ssim * weighted_mean(1 - ssim_map(made * face, batch.target * face), weight)
    if config.lambda_energy:
        strength = [blur((x - blur(x, DETAIL)).abs().mean(1, keepdim=True), 2.0)
                    for x in (made * face, batch.target * face)]
        out["energy"] = 10 * config.lambda_energy * weighted_mean((strength[0] - strength[1]).abs(), weight)
    if config.lambda_features and features is not None:
        with torch.autocast(made.device.type, torch.bfloat16, enabled=autocast):
            pairs = zip(features(made * face * 2 - 1), features(batch.target * face * 2 - 1))
        w, total = weight, 0.0
        for a, b in pairs:
            total = total + weighted_mean((a.float() - b.float()).abs(), w)
            w = F.avg_pool2d(w, 2)
        out["features"] = config.lambda_features * total
    allowed = resize(F.max_pool2d(parts.opening[:, :1], 3, 1, 1), face.shape[-1])
    out["alpha"] = 10 * config.lambda_alpha * weighted_mean(parts.alpha * (1 - 0.95 * allowed), torch.ones_like(face))
    cells = parts.learnt.shape[-1]
    bends = [(cells / 64 * d).square().sum(1).mean() for d in (parts.learnt.diff(dim=2), parts.learnt.diff(dim=3))]
    out["flow"] = 1e3 * config.lambda_flow * sum(bends)
    own = parts.gain - parts.prior_gain
    out["gain"] = 10 * config.lambda_gain * sum(d.abs().mean() for d in (own.diff(dim=2), own.diff(dim=3)))
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def ssim_map(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    "(N, 1, h, w): structural similarity, Gaussian window of 1.5 px, mean over colours, as `image_quality.ssim_maps`."
    mean_a, mean_b = blur(a, 1.5), blur(b, 1.5)
    var_a, var_b = blur(a * a, 1.5) - mean_a ** 2, blur(b * b, 1.5) - mean_b ** 2
    cov = blur(a * b, 1.5) - mean_a * mean_b
    similar = ((2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
               / ((mean_a ** 2 + mean_b ** 2 + 1e-4) * (var_a + var_b + 9e-4)))
    return similar.mean(1, keepdim=True)


@torch.no_grad()
def au_regions(geometry: Geometry, size: int, share: float = 0.25) -> torch.Tensor:
    "(n_aus, size, size) bool: where the canonical face moves by at least `share` of the AU's longest way at E."
    way = geometry.table[:, -1].norm(dim=-1).T[None]  # (1, 468, n_aus)
    points = geometry._with_between(geometry.canonical[None])
    centres = (torch.arange(size, device=way.device) + 0.5) / size
    maps = geometry._spread(points, geometry._with_between(way), torch.ones_like(points[..., 0]), centres)[0]
    return maps >= share * way[0].amax(0)[:, None, None]


@torch.no_grad()
def ways_of(model: RatioFlow, batch: Batch, autocast: bool = False) -> dict:
    "name → pictures (n, 3, S, S) in [0, 1]: copy, head model's warp, the same with ratio images, and the network's."
    parts = model(batch.source, batch.vertices, batch.source_labels, batch.target_labels, autocast=autocast)
    prior = Parts(parts.prior_flow, parts.learnt, torch.zeros_like(parts.gain), torch.zeros_like(parts.alpha),
                  parts.colour, parts.opening, parts.prior_flow, parts.prior_gain)
    shaded = Parts(**{**vars(prior), "gain": parts.prior_gain})
    made = {"copy": batch.source, "warp": render(batch.source, prior, paint=False),
            "warp and ratios": render(batch.source, shaded, paint=False), "network": render(batch.source, parts)}
    made = {k: x if k == "copy" else with_surround(x, batch.source, prior if k != "network" else parts)
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


def rounded(value, digits: int = 4):
    "Numbers of nested dictionaries and lists with so many digits; NaN and infinity become None (JSON has neither)."
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v, digits) for v in value]
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Storing and looking


def save_ratio(out, state: dict, card: dict) -> None:
    "ratio.safetensors (float16; the head model's table, too, so that nothing has to be computed again) and ratio.json."
    out = Path(out)
    tensors = {k: v.detach().to("cpu", torch.float16 if v.is_floating_point() else v.dtype).contiguous()
               for k, v in state.items()}
    write_atomically(out / "ratio.safetensors", lambda path: save_file(tensors, path))
    text = json.dumps(rounded(card), indent=2, allow_nan=False)
    write_atomically(out / "ratio.json", lambda path: path.write_text(text + "\n", encoding="utf-8"))


def load_ratio(folder, device="cpu") -> RatioFlow:
    """The network stored in a folder, ready to use; `.card` is its card.

    folder: what `train` wrote, or one with weights.safetensors and card.json, such as `MEDIUM`.
    FileNotFoundError if it holds neither.
    """
    folder = Path(folder)
    stored = (folder / "card.json").is_file()
    weights = folder / ("weights.safetensors" if stored else "ratio.safetensors")
    card = json.loads((folder / ("card.json" if stored else "ratio.json")).read_text(encoding="utf-8"))
    known = {f.name for f in fields(RatioConfig)}
    config = RatioConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in card["config"].items() if k in known})
    model = RatioFlow(config)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(str(weights)).items()})
    model.card = card
    return model.to(device).eval()


def all_aus(labels, aus=AUS, columns=tuple(AU_NAMES)) -> np.ndarray:
    "labels (N, n) of `aus` in [0, 1] as columns of `columns`, (N, len(columns)) float32; the other AUs are 0."
    labels = np.atleast_2d(labels)
    wide = np.zeros((len(labels), len(columns)), np.float32)
    wide[:, [columns.index(au) for au in aus]] = labels
    return wide


def crisp_resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """Registered frames (N, 3, h, w) in [0, 1] at side × side, their outline as sharp as if registered at that size.

    Colours are means over what was seen; a pixel of which less than half was seen is black.
    """
    seen = (images.amax(1, keepdim=True) > BLACK).float()
    share = resize(seen, side)
    return resize(images * seen, side) / share.clamp(min=0.5) * (share >= 0.5)


@torch.no_grad()
def synthesise(model: RatioFlow, frames, targets, vertices, sources=None, batch: int = 16) -> np.ndarray:
    """Registered frames uint8 (N, S, S, 3) of any size at labels (N, n) in [0, 1] → frames of the same shape.

    The network looks at them at its own size; flow and gain are applied at theirs. n is the paper's seven AUs or the
    network's; sources: labels of the frames, 0 unless given; vertices: (N, 468, 2 or 3), their registered meshes in
    pixels of the frames.
    """
    frames, vertices, device = np.asarray(frames), np.asarray(vertices, np.float32), next(model.parameters()).device
    wide = lambda x: x if x.shape[1] == len(model.config.aus) else all_aus(x, AUS, model.config.aus)
    targets = wide(np.broadcast_to(np.atleast_2d(targets), (len(frames), np.shape(targets)[-1])))
    sources = np.zeros_like(targets) if sources is None else wide(np.atleast_2d(sources))
    put, made = lambda x: torch.tensor(np.asarray(x), dtype=torch.float32, device=device), []
    for at in range(0, len(frames), batch):
        part = slice(at, at + batch)
        images = put(frames[part]).permute(0, 3, 1, 2) / 255
        mesh = put(vertices[part, :, :2] / frames.shape[1])
        parts = model(crisp_resize(images, model.config.size), mesh, put(sources[part]), put(targets[part]))
        made.append(_picture(with_surround(render(images, parts), images, parts)))
    return np.concatenate(made)


def _picture(images: torch.Tensor) -> np.ndarray:
    "(n, 3, S, S) in [0, 1] → uint8 (n, S, S, 3)."
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _heat(flow: torch.Tensor, side: int) -> torch.Tensor:
    "Flow (n, 2, h, w) as colours (n, 3, side, side): red looks right, blue looks left; green down, dark green up."
    x, y = (resize(flow, side) * 12).clamp(-0.5, 0.5).unbind(1)
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
            parts = model(b.source, b.vertices, b.source_labels, b.target_labels)
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
            parts = model(b.source, b.vertices, b.source_labels, asked)
            pictures += [_picture(with_surround(render(b.source, parts), b.source, parts))[0],
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
        self.log, self.device = log, torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.config = replace(config, aus=_au_numbers(frames["names"]))
        training, held_out = split_people(frames, config.held_out)
        self.bank = PairBank(frames, training, config.size, self.device)
        self.test = PairBank(frames, held_out, config.size, self.device)
        self.model = RatioFlow(self.config).to(self.device)
        self.features = RandomFeatures().to(self.device) if config.lambda_features else None
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.steps, self.lr_factor, self.history, self.faults, self.best = 0, 1.0, [], 0, math.inf

    def prepare(self, seconds: float) -> None:
        "Ratio images, memory layout, optimiser and running mean."
        fit_ratios(self.model, self.bank, seconds=seconds)
        self.model.net.to(memory_format=torch.channels_last)
        slow = [self.model.ratios]
        self.optimiser = torch.optim.AdamW(
            [{"params": list(self.model.net.parameters()), "factor": 1.0}, {"params": slow, "factor": 0.5}],
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
        parts = self.model(batch.source, batch.vertices, batch.source_labels, batch.target_labels, batch.flip,
                           self.on_gpu)
        unpainted = render(batch.source, parts, paint=False)
        size = unpainted.shape[-1]
        alpha = resize(parts.alpha, size)
        made = (1 - alpha) * unpainted + alpha * resize(parts.colour, size)
        terms = losses(parts, made, unpainted, batch, c, self.features, self.on_gpu)
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

    def run(self, began: float, until: float, checkpoint, every: float = 30.0) -> None:
        "Steps until the clock says `until`; `checkpoint()` is called every so many seconds."
        start, saved, told, recent = time.time(), time.time(), time.time(), []
        while (now := time.time()) < until or self.steps == 0:  # one at least
            if self.on_gpu and self.steps in (20, 60):
                self.suit_batch(until)
            recent.append(self.step((now - start) / max(1e-6, until - start)))
            if len(recent) >= 25 or now - told > 10:
                values = {k: float(torch.stack([r[k] for r in recent]).mean()) for k in recent[0]}
                recent = []
                total = sum(values.values())
                if total < 3 * self.best:  # neither NaN nor running away
                    self.best = min(self.best, total)
                    self.keep() if self.steps % 100 < 25 else None
                    self.history.append({"step": self.steps, "seconds": round(now - began, 1), **rounded(values)})
                    if now - told > 10:
                        told = now
                        self.log(f"ratio: step {self.steps}, {now - began:.0f} s, "
                                 + ", ".join(f"{k} {v:.3f}" for k, v in values.items()))
                else:
                    self.back()
            if now - saved > every:
                saved = now
                checkpoint()


def config_for(side: int) -> RatioConfig:
    "The configuration for frames of that side: a narrow one below 64 px, which is for tests."
    return RatioConfig() if side >= 64 else replace(RatioConfig(), size=side, width=0.25, batch=8)


def train(frames: dict, seconds: float, out, device="cuda", seed: int = 0, config: RatioConfig | None = None,
          log=print) -> dict:
    """Train a `RatioFlow` on true pairs for so many seconds, all included; returns the card, also in `out`/ratio.json.

    frames: dictionary of arrays, see `tools/render_true_pairs.py`: frames uint8 (N, S, S, 3), labels (N, n_aus) in
    [0, 1], names (n_aus,), person (N,), instant (N,), vertices (N, 468, 3) px; the first of each instant is neutral;
    optional held_out: people never trained on (else the last `config.held_out`). The last 12 % of the time (at most 30
    seconds) go to the scores on these and to the contact sheet. Failing to score or to draw never loses the weights.
    """
    began, config = time.time(), config or config_for(np.shape(frames["frames"])[1])
    reserve = min(30.0, 0.12 * seconds)
    device = torch.device(device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    trainer = Trainer(frames, config, device, seed, log)
    card = {"network": "RatioFlow", "config": asdict(trainer.config), "seed": seed, "device": _device_name(device),
            "torch": torch.__version__, "parameters": n_parameters(trainer.model), "frames": len(trainer.bank),
            "people": len(np.unique(trainer.bank.person)), "seconds asked": seconds, "finished": False}
    log(f"ratio: {len(trainer.bank)} frames of {card['people']} people, {len(trainer.test)} held out, "
        f"{card['parameters'] / 1e6:.2f}M values, on {card['device']}, ready after {time.time() - began:.1f} s")
    trainer.prepare(min(20.0, 0.1 * seconds))
    log(f"ratio: ratio images fitted after {time.time() - began:.1f} s")

    def checkpoint():
        if not trainer.average.finite():
            trainer.back()
        card.update(steps=trainer.steps, seconds=time.time() - began, faults=trainer.faults)
        save_ratio(out, trainer.average.state(), card)

    trainer.run(began, began + seconds - reserve, checkpoint)
    card["history"] = trainer.history[::max(1, len(trainer.history) // 60)]
    if device.type == "cuda":
        card["peak memory, GiB"] = torch.cuda.max_memory_allocated() / 2 ** 30
    checkpoint()
    trainer.model.load_state_dict(trainer.average.state())
    trainer.model.eval()
    for name, task in (("scores", lambda: measure(trainer.model, trainer.test, 0.5 * reserve)),
                       ("sheet", lambda: save_png(Path(out) / "ratio.png", pair_sheet(trainer.model, trainer.test)))):
        try:
            if len(trainer.test):
                card[name] = task()
        except Exception as error:  # weights are stored; scores and pictures can be made again from them
            card[f"{name} failed"] = f"{type(error).__name__}: {error}"
            log(f"ratio: {name} failed: {card[f'{name} failed']}")
    card["finished"] = True
    checkpoint()
    if card.get("scores"):
        log("ratio: " + json.dumps(card["scores"]["ways"]))
    return card


def _device_name(device: torch.device) -> str:
    "Name of the card, or of the processor's kind."
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def main() -> None:
    "Command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", help="folder of person_*.npz, or one .npz with all arrays")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=int, default=0, help="afterwards, sheets of so many people, with truth")
    parser.add_argument("--only-sheet", action="store_true", help="do not train: `out` holds the weights")
    for name, kind in (("size", int), ("width", float), ("batch", int), ("lr", float)):
        parser.add_argument(f"--{name}", type=kind)
    a = parser.parse_args()
    if not a.only_sheet:
        if Path(a.shards).is_file():
            with np.load(a.shards, allow_pickle=False) as file:
                frames = dict(file)
        else:
            from tools.render_true_pairs import load_frames
            frames = load_frames(a.shards)
        chosen = {k: getattr(a, k) for k in ("size", "width", "batch", "lr") if getattr(a, k) is not None}
        train(frames, a.seconds, a.out, a.device, a.seed, replace(RatioConfig(), **chosen))
    if a.sheet:
        model = load_ratio(a.out)
        truth = render_levels(range(a.sheet), aus=model.config.aus, size=model.config.size)
        for person in range(a.sheet):
            save_png(Path(a.out) / f"levels_{person}.png", level_sheet(model, truth, person))


if __name__ == "__main__":
    main()

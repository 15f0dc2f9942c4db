"""Train a `medium` GANimation generator on true pairs against the clock, with all frames on the GPU.

`train(frames, seconds, out, device, seed)` takes the dictionary of `tools/render_true_pairs.py` and stops when the time
is over: the learning rate falls to zero then, whatever number of steps that is. It writes, also now and then on the way
(so that nothing is lost when it is killed), `medium.safetensors` (running mean of the weights, half precision),
`medium.json` (its card) and `medium.png` (people it never saw). To load them, put the two into a folder as
`weights.safetensors` and `card.json`:

    from aufacs_nb import load_generator
    generator = load_generator(folder)

Losses, their weights and the order of warm-up and critic are the package's (`presets.SMALL`). Ours is what is needed
for speed: pairs are drawn row by row in the package's `PairSampler`, here whole batches at a time on the GPU.
"""
import json
import math
import sys
import time
import types
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from aufacs_nb.facs import AUS
from aufacs_nb.generation.networks import build_critic, build_generator
from aufacs_nb.generation.losses import critic_loss, total_loss
from aufacs_nb.pictures import contact_sheet
from aufacs_nb.files import counted, write_atomically
from aufacs_nb.presets import SMALL
from aufacs_nb.generation.training import PairBatch, augment_pairs, generator_parts, set_trainable
from aufacs_nb.tensors import tensor_to_frames
from tools.limits import limited
from tools.render_true_pairs import ALL_AUS, PAPER_COLUMNS

CHANGED = 24          # grey levels by which a pixel must differ to count as changed (as in image_quality)
CHECKPOINT = 45.0     # seconds between two checkpoints
TAIL = 14.0           # seconds kept for the last scores and files
LOG_EVERY = 25        # steps between two looks at the losses: each makes the GPU wait


def medium_preset(size: int = 128, dim: int = 48, batch: int = 64, people: int = 0, held_out: int = 0):
    "`small` with a wider network at that size; time takes the place of its number of steps."
    layers = min(5, int(math.log2(size)))
    return replace(SMALL, name="medium", size=size, gen_dim=dim, gen_batch=batch, critic_dim=dim, critic_layers=layers,
                   gen_lr=8e-4, warmup_share=0.75, coarse_share=0.2 if size >= 64 else 0.0,
                   gen_people=(people, 0, held_out), gen_clips=())


class PairRows:
    """Rows of the frame table as pairs, drawn a batch at a time on the device where the frames lie.

    A true pair shares person, instant and all AUs that are not labels, so that the labels alone say what changes.
    frames: dictionary of `render_true_pairs`; rows: those to draw from; columns: of the labels that the network sees.
    """

    def __init__(self, frames: dict, rows, columns, preset, device, seed: int = 0):
        rows, labels = np.asarray(rows), np.asarray(frames["labels"])
        others = [k for k in range(labels.shape[1]) if k not in set(columns)]
        standing = np.c_[frames["person"][rows], frames["instant"][rows], np.rint(labels[rows][:, others] * 1000)]
        group = np.unique(standing, axis=0, return_inverse=True)[1].reshape(-1)
        order = np.argsort(group, kind="stable")
        rows, group = rows[order], group[order]
        counts = np.bincount(group)
        start = np.concatenate([[0], np.cumsum(counts)[:-1]])
        put = lambda array: torch.as_tensor(np.ascontiguousarray(array), device=device)
        self.preset, self.device, self.rows = preset, device, rows
        self.images = put(frames["frames"][rows]).permute(0, 3, 1, 2).contiguous()  # uint8 (N, 3, S, S)
        self.labels, self.group = put(labels[rows][:, columns].astype(np.float32)), put(group)
        self.start, self.count = put(start), put(counts)
        paired = counts[group] > 1
        self.sources = put(np.flatnonzero(paired))
        self.neutral = put(np.flatnonzero(paired & (labels[rows].sum(1) == 0)))
        if not len(self.sources):
            raise ValueError("no two frames share person, instant and unlabelled AUs: there is no true pair")
        self.random = torch.Generator(device=device).manual_seed(seed)

    def _uniform(self, *shape):
        "Numbers in [0, 1) on the device."
        return torch.rand(*shape, device=self.device, generator=self.random)

    def _one_of(self, rows, n: int):
        "`n` of these rows."
        return rows[(self._uniform(n) * len(rows)).long().clamp_max(len(rows) - 1)]

    def draw(self, n: int, same_share: float) -> tuple:
        "Rows (n,) of sources and (n,) of targets; about `same_share` of the targets are true mates, never the source."
        source = self._one_of(self.sources, n)
        if len(self.neutral):
            neutral = self._uniform(n) < self.preset.neutral_share
            source = torch.where(neutral, self._one_of(self.neutral, n), source)
        start, count = self.start[self.group[source]], self.count[self.group[source]]
        step = 1 + (self._uniform(n) * (count - 1)).long().minimum(count - 2)
        mate = start + (source - start + step) % count
        anyone = (self._uniform(n) * len(self.labels)).long().clamp_max(len(self.labels) - 1)
        return source, torch.where(self._uniform(n) < same_share, mate, anyone)

    def pictures(self, rows, size: int) -> torch.Tensor:
        "float32 (n, 3, size, size) in [-1, 1]; half the size by averaging."
        images = self.images[rows].float() / 127.5 - 1
        if size != images.shape[-1]:
            images = torch.nn.functional.avg_pool2d(images, images.shape[-1] // size)
        return images

    def batch(self, n: int, same_share: float, size: int, layout) -> PairBatch:
        "`n` augmented pairs: mirrored by chance, and with a gain of the colours that a pair shares."
        source, target = self.draw(n, same_share)
        gain = 1 + self.preset.colour_jitter * torch.randn(n, 3, device=self.device, generator=self.random)
        mirrored, epsilon = self._uniform(n) < 0.5, self._uniform(n)
        images = [augment_pairs(self.pictures(rows, size), mirrored, gain).contiguous(memory_format=layout)
                  for rows in (source, target)]
        same = self.group[source] == self.group[target]
        return PairBatch(images[0], self.labels[source], images[1], self.labels[target], same, epsilon,
                     torch.stack([source, target], 1), None)  # None: counted here, on the device


def _pairs_to_judge(frames: dict, columns, most: int = 768) -> dict:
    "Neutral frames of held-out people, and the true frames of the same instants with labelled AUs only."
    held, labels = np.isin(frames["person"], frames["held_out"]), np.asarray(frames["labels"])
    others = [k for k in range(labels.shape[1]) if k not in set(columns)]
    plain = held & (labels[:, others].sum(1) == 0)
    neutral = {(p, i): row for row, (p, i) in enumerate(zip(frames["person"], frames["instant"]))
               if plain[row] and labels[row].sum() == 0}
    pairs = [(neutral[p, i], row) for row, (p, i) in enumerate(zip(frames["person"], frames["instant"]))
             if plain[row] and labels[row].sum() > 0 and (p, i) in neutral][:most]
    if not pairs:
        return {}
    source, truth = np.array(pairs).T
    return {"source": frames["frames"][source], "truth": frames["frames"][truth],
            "labels": labels[truth][:, columns].astype(np.float32), "person": frames["person"][truth],
            "vertices": frames["vertices"][source].astype(np.float32)}


@torch.no_grad()
def synthesise(generator, frames, labels, device, batch: int = 128) -> np.ndarray:
    "uint8 frames (N, S, S, 3) at labels (N, n): uint8 (N, S, S, 3), in full precision."
    made = []
    for at in range(0, len(frames), batch):
        images = torch.as_tensor(np.array(frames[at:at + batch]), device=device).permute(0, 3, 1, 2).float() / 127.5 - 1
        made.append(tensor_to_frames(generator(images, torch.as_tensor(labels[at:at + batch], device=device)).image))
    return np.concatenate(made)


def quick_scores(made, pairs: dict) -> dict:
    "Share of copying's L1 error that is left where neutral and true frame differ: of all pixels, and AU by AU alone."
    error = np.abs(made.astype(np.int16) - pairs["truth"]).mean(-1)
    copied = np.abs(pairs["source"].astype(np.int16) - pairs["truth"]).mean(-1)
    changed, scores = copied > CHANGED, {}
    total = lambda values, rows: float(values[rows][changed[rows]].sum())
    share = lambda rows: round(total(error, rows) / max(1e-9, total(copied, rows)), 4)
    scores["share where changed"] = share(slice(None))
    alone = (pairs["labels"] > 0).sum(1) == 1
    for k, au in enumerate(AUS):
        rows = np.flatnonzero(alone & (pairs["labels"][:, k] > 0))
        if len(rows):
            scores[f"AU{au} alone"] = share(rows)
    still = (copied < 4) & (pairs["source"].max(-1) > 8)
    scores["grey levels off where nothing changed"] = round(float(error[still].mean()), 3) if still.any() else None
    scores["pairs"] = len(made)
    return scores


def image_quality():
    "The package's module; a stand-in for PyAV where it is missing, which `simulate` imports for films only."
    try:
        import av  # noqa: F401
    except ImportError:
        sys.modules["av"] = types.ModuleType("av")
    from aufacs_nb.evaluation import image_quality as module

    return module


def warm_scores(size: int) -> None:
    "Import and compute once what the scores need, so that the end of the training does not wait for it."
    module = image_quality()
    module.changed_regions(np.eye(len(AUS)), size)
    noise = np.random.default_rng(0).integers(0, 255, (2, max(size, 16), max(size, 16), 3), np.uint8)
    module.ssim_maps(noise, noise[::-1])


def package_scores(made, pairs: dict) -> dict:
    "`image_quality.paired_scores` and `scores_by_au` of the same pictures."
    module = image_quality()
    TruePairs, paired_scores, scores_by_au = module.TruePairs, module.paired_scores, module.scores_by_au
    true = TruePairs(*(pairs[name] for name in ("source", "truth", "labels", "person", "vertices")))
    scores = dict(paired_scores(true, made))
    scores |= {f"share of copy, {au}": float(v) for au, v in scores_by_au(true, {"medium": made}).iloc[0].items()}
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in scores.items()}


def draw_sheet(generator, sheet: dict, path: Path, device) -> None:
    "PNG of unseen people: neutral, then each AU at A, C and E; in the row below the truth."
    pictures, rows, titles = [], [], ["neutral"] + [f"AU{au} {level}" for au in AUS for level in "ACE"]
    for person in np.unique(sheet["person"]):
        mine = np.flatnonzero(sheet["person"] == person)
        frames, labels = sheet["frames"][mine], sheet["labels"][mine][:, PAPER_COLUMNS].astype(np.float32)
        made = synthesise(generator, np.repeat(frames[:1], len(mine), 0), labels, device)
        pictures += [frames[0], *made[1:], *frames]
        rows += [f"{person} made", "truth"]
    columns = len(titles)
    write_atomically(path, lambda to: contact_sheet(pictures, columns=columns, side=104, column_titles=titles,
                                                    row_titles=rows).save(to, "PNG"))


class Clock:
    "What of the time is over, as a share; `rate` is the learning rate that belongs to it."

    def __init__(self, seconds: float):
        self.began, self.seconds = time.monotonic(), max(1.0, seconds)

    @property
    def passed(self) -> float:
        "Seconds since the start."
        return time.monotonic() - self.began

    @property
    def share(self) -> float:
        "0 at the start, 1 at the end."
        return min(1.0, self.passed / self.seconds)

    def rate(self, full: float) -> float:
        "Rises in the first hundredth, constant until 0.4, then a straight line to 0 at the end."
        share = self.share
        return full * min(1.0, share / 0.01 + 0.05, max(0.0, (1 - share) / 0.6))


def lower_norms(network) -> None:
    "Let autocast leave the normalisations in bfloat16 (sums are still float32 inside): a third of the memory traffic."
    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = (None if v is None else v.to(x.dtype) for v in (self.weight, self.bias))
            return torch.nn.functional.group_norm(x, self.num_groups, weight, bias, self.eps)

    for layer in network.modules():
        if isinstance(layer, torch.nn.GroupNorm):
            layer.forward = types.MethodType(forward, layer)


class Training:
    "Networks, optimisers and the running mean; `step` takes one step at the clock's time."

    def __init__(self, pairs: PairRows, preset, device, seed, clock, options: dict):
        self.pairs, self.preset, self.device, self.clock = pairs, preset, torch.device(device), clock
        self.bf16, self.layout = options["bf16"], options["layout"]
        self.generator = build_generator(preset, 2 * seed).to(device, memory_format=self.layout)
        self.critic = build_critic(preset, 2 * seed + 1).to(device, memory_format=self.layout)
        if options["low_norms"]:
            lower_norms(self.generator)
        fused = {"fused": True} if self.device.type == "cuda" else {}
        self.adams = {name: torch.optim.Adam(getattr(self, name).parameters(), preset.gen_lr, preset.gen_betas, **fused)
                      for name in ("generator", "critic")}
        self.mean = {k: v.detach().clone() for k, v in self.generator.state_dict().items()}
        self.forward, self.done, self.log, self.trouble = self.generator, 0, [], []
        self.compiled = None

    def autocast(self):
        "bfloat16 where it is used."
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    @property
    def warm(self) -> bool:
        "Before the critic joins."
        return self.clock.share < self.preset.warmup_share

    @property
    def size(self) -> int:
        "Half the size while coarse."
        return self.preset.size // 2 if self.clock.share < self.preset.coarse_share else self.preset.size

    def _update(self, name: str, loss) -> None:
        "One optimiser step with the clock's learning rate; gradients that run away are shortened."
        network, adam = getattr(self, name), self.adams[name]
        adam.param_groups[0]["lr"] = self.clock.rate(self.preset.gen_lr)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 100.0)
        adam.step()

    def _average(self) -> None:
        "Let the running mean follow; in the first steps faster, so that it forgets where the weights began."
        decay = min(self.preset.gen_ema or 0.999, (1 + self.done) / (10 + self.done))
        state = self.generator.state_dict()
        names = [k for k, v in state.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.mean[k] for k in names], [state[k] for k in names], 1 - decay)

    def step(self) -> dict:
        "One generator update, before it one critic update once the warm-up is over; losses as tensors."
        warm, size, preset = self.warm, self.size, self.preset
        batch = self.pairs.batch(preset.gen_batch, 1.0 if warm else preset.pair_same_share, size, self.layout)
        forward = self.forward if size == preset.size else self.generator
        critic_parts = {}
        with self.autocast():
            made = forward(batch.source, batch.target_labels)
        made = type(made)(*(part.float() for part in made))
        if not warm:  # the critic and its gradient penalty stay in full precision: bfloat16 makes the latter noise
            set_trainable(self.critic, True)
            loss, critic_parts = critic_loss(self.critic, batch.source, made.image.detach(), batch.source_labels,
                                             preset, batch.epsilon)
            self._update("critic", loss)
            set_trainable(self.critic, False)
        parts = self._parts(made, batch, warm)
        self._update("generator", total_loss(parts, preset))
        self.done += 1
        self._average()
        return {k: v.detach() for k, v in (parts | critic_parts).items()}

    def _parts(self, made, batch, warm) -> dict:
        "`generator_parts` with the cycle's generator in bfloat16, the losses themselves in full precision."
        if warm:  # all pairs are true then; counting them would make the GPU wait
            batch = batch._replace(n_pairs=float(len(batch.same_person)))
        return generator_parts(self._in_bf16, self.critic, made, batch, self.preset, warm)

    def _in_bf16(self, images, labels):
        "The generator, its results in full precision."
        with self.autocast():
            made = self.generator(images, labels)
        return type(made)(*(part.float() for part in made))


def mean_network(training: Training):
    "The generator with the running mean of the weights, rounded to half precision as it will be stored."
    network = build_generator(training.preset)
    network.load_state_dict({k: v.detach().half().float().cpu() for k, v in training.mean.items()})
    return network.to(training.device).eval()


def save(training: Training, out: Path, facts: dict) -> None:
    "Write weights and card, each whole or not at all."
    halves = {k: v.detach().half().cpu().contiguous() for k, v in training.mean.items()}
    preset = replace(training.preset, gen_steps=max(1, training.done))
    card = {"preset": asdict(preset), "part": "generator", "architecture": preset.gen_arch, **facts,
            "steps": training.done, "trouble": training.trouble, "losses": training.log}
    write_atomically(out / "medium.safetensors", lambda path: (save_file(halves, path), path.chmod(0o644)))
    write_atomically(out / "medium.json", lambda path: path.write_text(json.dumps(card, indent=1) + "\n"))


def _finite(training: Training, losses: dict, good: dict) -> bool:
    "Note the losses; if one is no number, go back to the last good weights, in full precision from then on."
    row = {"step": training.done, "seconds": round(training.clock.passed, 1), "rate": training.clock.rate(1.0)}
    row |= {k: float(v) for k, v in losses.items()}
    if all(math.isfinite(v) for v in row.values()):
        training.log.append({k: float(f"{v:.5g}") for k, v in row.items()})
        return True
    training.trouble.append({k: str(v) for k, v in row.items()})
    print("medium: a loss is no number:", row, "- back to the last good weights, full precision", flush=True)
    for name, state in good.items():
        getattr(training, name).load_state_dict(state)
    training.mean = {k: v.clone() for k, v in good["generator"].items()}
    for adam in training.adams.values():
        adam.state.clear()
    training.bf16, training.forward = False, training.generator
    return False


def _snapshot(training: Training) -> dict:
    "Copies of both networks' weights; nothing if one is no number."
    copies = {name: {k: v.detach().clone() for k, v in getattr(training, name).state_dict().items()}
              for name in ("generator", "critic")}
    sums = torch.stack([v.float().sum() for state in copies.values() for v in state.values()])
    return copies if bool(torch.isfinite(sums).all()) else {}


def _try_compiled(training: Training) -> None:
    "Compile the generator at its full size; keep the plain one if that fails."
    try:
        began = time.monotonic()
        compiled = torch.compile(training.generator, dynamic=False)
        batch = training.pairs.batch(training.preset.gen_batch, 1.0, training.preset.size, training.layout)
        with limited(0.15 * training.clock.seconds):
            with training.autocast():
                made = compiled(batch.source, batch.target_labels)
            made.image.float().mean().backward()
        training.generator.zero_grad(set_to_none=True)
        training.forward, training.compiled = compiled, round(time.monotonic() - began, 1)
        print(f"medium: compiled in {training.compiled} s", flush=True)
    except Exception as error:
        training.generator.zero_grad(set_to_none=True)
        training.trouble.append(f"not compiled: {type(error).__name__}: {str(error)[:300]}")
        print("medium:", training.trouble[-1], flush=True)


def _judge(training: Training, pairs: dict, sheet, out: Path, last: bool) -> dict:
    "Scores on people never seen; the sheet. What fails is named, not raised."
    network, scores = mean_network(training), {}
    try:
        if pairs:
            made = synthesise(network, pairs["source"], pairs["labels"], training.device)
            scores |= quick_scores(made, pairs)
    except Exception as error:
        scores["failed"] = f"{type(error).__name__}: {error}"
    try:
        if sheet is not None and len(sheet["frames"]):
            draw_sheet(network, sheet, out / "medium.png", training.device)
    except Exception as error:
        scores["sheet failed"] = f"{type(error).__name__}: {error}"
    try:
        if pairs and last:
            some = np.linspace(0, len(made) - 1, min(len(made), 300)).astype(int)
            scores |= package_scores(made[some], {name: values[some] for name, values in pairs.items()})
    except Exception as error:
        scores["package scores failed"] = f"{type(error).__name__}: {error}"
    return scores


def train(frames: dict, seconds: float, out, device="cuda", seed: int = 0, *, sheet=None, dim: int = 48,
          batch: int = 64, bf16=None, channels_last: bool = True, low_norms: bool = False,
          compile_it: bool = False, facts=None) -> dict:
    """Train for `seconds`, scores and files included; returns the card's facts.

    frames: dictionary of `render_true_pairs`; sheet: the same for the pictures of the contact sheet, or None
    bf16: None takes it on a GPU; low_norms: see `lower_norms`; facts: what else the card should say
    """
    began, out, device = time.monotonic(), Path(out), torch.device(device)
    out.mkdir(parents=True, exist_ok=True)
    on_card = device.type == "cuda"
    if on_card:
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    train_rows = np.flatnonzero(~np.isin(frames["person"], frames["held_out"]))
    people = len(np.unique(frames["person"][train_rows]))
    preset = medium_preset(frames["frames"].shape[1], dim, batch, people, len(frames["held_out"]))
    pairs = PairRows(frames, train_rows, PAPER_COLUMNS, preset, device, seed)
    judged = _pairs_to_judge(frames, PAPER_COLUMNS)
    tail = min(TAIL, 0.15 * seconds)
    options = {"bf16": on_card if bf16 is None else bf16, "low_norms": low_norms,
               "layout": torch.channels_last if channels_last and on_card else torch.contiguous_format}
    training = Training(pairs, preset, device, seed, Clock(seconds - tail - (time.monotonic() - began)), options)
    if compile_it and on_card:
        _try_compiled(training)
    facts = {"seed": seed, "frames": len(train_rows), "people": people,
             "held_out": np.asarray(frames["held_out"]).tolist(),
             "data": "virtual people, tools/render_true_pairs.py", "pairs": "true: same person, same instant",
             "device": torch.cuda.get_device_name(device) if on_card else "cpu", "torch": torch.__version__,
             "bf16": training.bf16, "channels_last": options["layout"] == torch.channels_last,
             "low_norms": low_norms, "compile_seconds": training.compiled} | (facts or {})
    print(f"medium: {counted(len(train_rows), 'frame')} of {counted(people, 'person', 'people')}, "
          f"{counted(len(judged.get('labels', ())), 'judged pair')}, "
          f"batch {preset.gen_batch}, {sum(p.numel() for p in training.generator.parameters()) / 1e6:.1f} M parameters",
          flush=True)
    good = _run(training, judged, sheet, out, facts)
    if not all(bool(torch.isfinite(v).all()) for v in training.mean.values()):  # since the last look
        training.trouble.append("the last weights were no numbers: those of the last snapshot are stored")
        training.mean = good["generator"]
    facts |= {"images_per_second": round(training.done * preset.gen_batch / max(1e-9, training.clock.passed), 1)}
    for last in (False, True):  # first what is sure to be quick
        save(training, out, facts)
        facts["scores"] = _judge(training, judged, sheet, out, last)
    facts["seconds"] = round(time.monotonic() - began, 1)
    save(training, out, facts)
    print("medium: done,", training.done, "steps;", json.dumps(facts["scores"]), flush=True)
    return facts | {"steps": training.done, "last_losses": training.log[-1] if training.log else {}}


def _run(training: Training, judged: dict, sheet, out: Path, facts: dict) -> dict:
    "Step until the clock says so; look at the losses now and then, save now and then. Returns the last good weights."
    clock, good, saved, printed, courses = training.clock, _snapshot(training), time.monotonic(), -math.inf, []
    while clock.share < 1 or training.done == 0:  # one at least
        losses = training.step()
        if training.done % LOG_EVERY and training.done > 3:
            continue
        if not _finite(training, losses, good):
            continue
        if training.done % (8 * LOG_EVERY) == 0:
            good = _snapshot(training) or good
        if clock.passed - printed > 10:
            printed = clock.passed
            print("medium:", json.dumps(training.log[-1]), flush=True)
        if time.monotonic() - saved > CHECKPOINT and clock.seconds - clock.passed > 15:
            courses.append({"step": training.done, "seconds": round(clock.passed, 1),
                            **_judge(training, judged, sheet, out, last=False)})
            facts["course"] = courses
            save(training, out, facts)
            saved = time.monotonic()
            print("medium: checkpoint", json.dumps(courses[-1]), flush=True)
    return good

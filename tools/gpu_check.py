"""What a machine with a GPU is asked in one go: the same numbers as the CPU, how fast, and two short trainings.

The program itself imports no PyTorch. It starts child processes, ends each when its share of the time is over, merges
what they report into <out>/report.json after every change, and is done after `--seconds` whatever happens:

    render   true pairs of virtual people on all cores but two (tools/render_true_pairs.py)        in the background
    checks   parity with the CPU, the notebooks' `#| cuda` cells, timings                           at the same time
    medium   a `medium` GANimation generator (tools/medium_training.py)                             then
    also     `train(frames, seconds, out, device, seed)` of the module named with --also            last

A child that fails does not stop the next; a training that fails early is tried once more in full precision. `--tiny`
runs everything on a CPU with two people at 32 px.
"""
import argparse
import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
if "tools" not in sys.modules:  # another package of that name must not come first
    sys.modules["tools"] = types.ModuleType("tools")
    sys.modules["tools"].__path__ = [str(ROOT / "tools")]
MARGIN = 8.0     # seconds kept at the end
WAYS = {         # of computing the medium generator: layout, normalisation in bfloat16 too, compiled
    name: dict(zip(("channels_last", "low_norms", "compile_it"), way)) for name, way in {
        "channels_last": (True, False, False), "contiguous": (False, False, False),
        "channels_last, low norms": (True, True, False), "contiguous, low norms": (False, True, False),
        "channels_last, compiled": (True, False, True)}.items()}
TINY_SHARES = {  # of --tiny, where none is given: limits that an idle CPU does not need; the trainings take theirs
    "seconds": 300.0, "checks_seconds": 240.0, "render_seconds": 200.0, "medium_seconds": 12.0, "also_seconds": 16.0}
PREWARM = 25.0   # seconds before its turn at which a training begins to import and to load


# ---------------------------------------------------------------- reports

class Report:
    "A dictionary of a stage, written whole to a JSON file after every change."

    def __init__(self, path):
        self.path, self.items = Path(path), {}

    def put(self, name: str, value) -> None:
        "Note and print one result."
        self.items[name] = value
        print(f"{self.path.stem[7:]}: {name}: {json.dumps(value, default=str)[:420]}", flush=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.items, indent=1, default=str))
        os.replace(temporary, self.path)

    def run(self, name: str, function, *arguments) -> None:
        "Note what the function returns, or how it failed; go on in either case."
        began = time.perf_counter()
        try:
            value = function(*arguments)
        except Exception as error:
            traceback.print_exc(limit=-3)
            release_memory()
            value = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
        if isinstance(value, dict):
            value["seconds"] = round(time.perf_counter() - began, 1)
        self.put(name, value)


def release_memory() -> None:
    "Give back what a step that failed or ended held on the GPU."
    import gc
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def merged(scratch: Path, out: Path, extra: dict) -> None:
    "All stages' results, and the ends of their logs, as <out>/report.json."
    report = dict(extra)
    for path in sorted(scratch.glob("report_*.json")):
        try:
            report[path.stem[7:]] = json.loads(path.read_text())
        except (OSError, ValueError):
            pass
    report["logs"] = {path.stem[4:]: path.read_text(errors="replace")[-6000:].splitlines()
                      for path in sorted(scratch.glob("log_*.txt"))}
    temporary = out / ".report.tmp"
    temporary.write_text(json.dumps(report, indent=1))
    os.replace(temporary, out / "report.json")


# ---------------------------------------------------------------- parity

def relative(a, b) -> float:
    "‖a − b‖ / ‖b‖ of two lists of tensors, in float64 on the CPU."
    import torch

    flat = [torch.cat([t.detach().double().cpu().reshape(-1) for t in each]) for each in (a, b)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm().clamp_min(1e-30))


@contextlib.contextmanager
def exact_arithmetic():
    "In this block new numbers are float64, and a network that asks for float32 gets float64."
    import torch

    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def forward_backward(build, inputs, device, exact: bool = False):
    "Outputs and parameter gradients of build() on the inputs; the loss weighs every output by its own fixed number."
    import torch

    network, kind = build().to(device), torch.float64 if exact else torch.float32  # the same random weights in both
    with exact_arithmetic() if exact else contextlib.nullcontext():
        outputs = network.to(kind)(*[x.to(device, kind) for x in inputs])
        outputs, loss = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs), 0
        for k, output in enumerate(outputs):
            weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(k), dtype=torch.float32)
            loss = loss + (output * weight.to(device, kind)).mean()
        loss.backward()
    return outputs, [p.grad for p in network.parameters() if p.grad is not None]


def smooth(network):
    "The network with SiLU in place of its rectifiers and means in place of its maxima: its gradient has no steps."
    from torch import nn

    for name, layer in network.named_children():
        if isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
            setattr(network, name, nn.SiLU())
        elif isinstance(layer, nn.MaxPool2d):
            setattr(network, name, nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding))
        else:
            smooth(layer)
    return network


def shaken(inputs, share: float, seed: int) -> list:
    "The inputs with noise of that share of their size."
    import torch

    random = torch.Generator().manual_seed(seed)
    return [x + share * x.square().mean().sqrt() * torch.randn(x.shape, generator=random) for x in inputs]


SHAKES = 4  # CPU runs with shaken inputs, where the device's gradient is over its limit


def compare(build, inputs, device) -> dict:
    """Errors of outputs and of gradients in float32, of the device and of the CPU, both against float64 on the CPU.

    One rectifier of half a million whose input lies within rounding of 0 may open on one processor and not on another,
    and that alone changes the gradient by 10⁻³ and more. So the gradient is compared twice: of the `smooth` network,
    where nothing can flip, and of the network as it is, beside the CPU's own error. Where the device's is above
    `parity_limit`, the CPU's own is the worst of `SHAKES` more runs whose inputs are off by the device's forward error.
    """
    exact, own = (forward_backward(build, inputs, "cpu", exact=flag) for flag in (True, False))
    names, mine = ("forward", "backward"), forward_backward(build, inputs, device)
    errors = {name: relative(a, b) for name, a, b in zip(names, mine, exact)}
    errors |= {f"CPU's own {name}": relative(a, b) for name, a, b in zip(names, own, exact)}
    for seed in range(SHAKES):
        if errors["backward"] <= parity_limit(errors, "backward") or errors["forward"] > 1e-3:
            break
        again = forward_backward(build, shaken(inputs, errors["forward"], seed), "cpu")[1]
        errors["CPU's own backward"] = max(errors["CPU's own backward"], relative(again, exact[1]))
    soft = [forward_backward(lambda: smooth(build()), inputs, where)[1] for where in (device, "cpu")]
    return errors | {"backward, smooth": relative(*soft)}


def parity_limit(errors: dict, name: str) -> float:
    "Largest error allowed: three times the CPU's own, where that is known, but 1e-3 at least."
    return max(1e-3, 3 * errors.get(f"CPU's own {name}", 0.0))


def over_limit(errors: dict) -> list:
    "Names of the errors above their limit, or that are no number; the CPU's own are not judged."
    return [name for name, value in errors.items()
            if not name.startswith("CPU's own") and not value <= parity_limit(errors, name)]


def no_dropout(build):
    "The built classifier with its dropout at 0: the random numbers of two devices differ."
    import torch

    torch.manual_seed(0)
    network = build()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    return network


def penalty_parity(preset, images, fake, device) -> dict:
    "Loss and gradients of a critic step, whose penalty differentiates twice."
    import torch
    from aufacs_nb.generation.networks import build_critic
    from aufacs_nb.generation.losses import critic_loss

    found = []
    for where in (device, "cpu"):
        critic, epsilon = build_critic(preset).to(where), torch.linspace(0, 1, len(images)).to(where)
        labels = torch.linspace(0, 1, len(images) * len(preset.aus)).reshape(len(images), -1).to(where)
        loss, parts = critic_loss(critic, images.to(where), fake.to(where), labels, preset, epsilon)
        loss.backward()
        found.append(([loss, *parts.values()], [p.grad for p in critic.parameters() if p.grad is not None]))
    return {"forward": relative(found[0][0], found[1][0]), "backward": relative(found[0][1], found[1][1])}


def sample_frames():
    "The sample database's registered frames (uint8), labels in [0, 1], subjects and clips, without its reader."
    import numpy as np
    import pandas as pd
    from aufacs_nb.facs import au_columns, intensity_to_unit

    folder = ROOT / "data_samples" / "registered"
    manifest = pd.read_parquet(folder / "manifest.parquet")
    labels = intensity_to_unit(manifest[au_columns()].to_numpy())
    clips = (manifest["subject"] + "_" + manifest["session"].astype(str)).to_numpy()
    registered = types.SimpleNamespace(frames=np.load(folder / "frames.npy", mmap_mode="r"), manifest=manifest)
    return registered, labels, manifest["subject"].to_numpy(), clips


def step_parity(device) -> dict:
    "Losses of GANimation train steps of the package's trainer, and the weights after them, on both devices."
    from dataclasses import replace
    from aufacs_nb.presets import SMALL
    from aufacs_nb.generation.training import GeneratorTrainer, PairSampler, train_step

    registered, labels, subjects, clips = sample_frames()
    preset, found = replace(SMALL, size=64, gen_dim=8, gen_blocks=2, critic_dim=8, gen_batch=4, warmup_share=0.0,
                            coarse_share=0.0, gen_ema=0.0, gen_lr=1e-4), []
    for where in (device, "cpu"):
        sampler = PairSampler(registered.frames, labels, subjects, preset, 0, clips)
        trainer = GeneratorTrainer(sampler, preset, 10, 1, seed=0, device=where if where == "cpu" else None)
        assert trainer.device.type == where, f"the trainer took {trainer.device}, not {where}"
        found.append(train_step(trainer))
    errors = {name: abs(found[0][name] - found[1][name]) / max(0.01, abs(found[1][name])) for name in found[1]}
    return {f"step {name}": value for name, value in errors.items()}


def detection_parity(device) -> dict:
    "BlazeFace and FaceMesh with their weights on a face."
    import numpy as np
    import torch
    from aufacs_nb.registration.detection import BlazeFace, FaceMesh, load_networks

    image = torch.tensor(face_picture()).permute(2, 0, 1)[None].float() / 255
    resized = lambda size: torch.nn.functional.interpolate(image, size=(size, size), mode="bilinear", antialias=True)
    face, errors = resized(BlazeFace.SIZE) * 2 - 1, {}
    here, there = load_networks(None, device)[:2], load_networks(None, "cpu")[:2]
    inputs = {"BlazeFace": face, "FaceMesh": resized(FaceMesh.SIZE)}
    for mine, other, (name, x) in zip(here, there, inputs.items()):
        with torch.inference_mode():
            errors[name] = relative(mine(x.to(device)), other(x))
    return errors


def face_picture():
    "A photograph with a face, (H, W, 3) uint8: scikit-image's astronaut, else a registered frame."
    import numpy as np

    try:
        from skimage import data
        return np.ascontiguousarray(data.astronaut()[10:266, 94:350])
    except Exception:
        return np.ascontiguousarray(np.load(ROOT / "data_samples" / "registered" / "frames.npy", mmap_mode="r")[0])


def parity_items(device: str, tiny: bool) -> dict:
    "Name → a function that returns the errors of this item."
    import torch
    from dataclasses import replace
    from aufacs_nb.estimation.trunk import build_classifier
    from aufacs_nb.generation.networks import build_critic, build_generator
    from aufacs_nb.presets import PAPER, SMALL, TINY

    side, random, small = (32 if tiny else 96), torch.Generator().manual_seed(1), TINY if tiny else SMALL
    images = lambda n, s: torch.rand(n, 3, s, s, generator=random) * 2 - 1
    labels = torch.rand(2, 7, generator=random)
    wide = replace(PAPER, size=side, critic_layers=min(6, side.bit_length() - 1))
    if tiny:
        wide = replace(wide, gen_dim=8, gen_blocks=1, critic_dim=8)
    faces = lambda preset, arch: compare(lambda: build_generator(replace(preset, gen_arch=arch)),
                                         [images(2, side), labels], device)
    classifier = lambda preset, n, s: compare(lambda: no_dropout(lambda: build_classifier(preset, None)),
                                              [images(n, s)], device)
    return {"generator (paper's width)": lambda: faces(wide, "ganimation"),
            "generator (small, resize)": lambda: faces(small, "ganimation"),
            "flow generator": lambda: faces(small, "flow"),
            "critic": lambda: compare(lambda: build_critic(wide), [images(2, side)], device),
            "critic step with penalty": lambda: penalty_parity(wide, images(2, side), images(2, side), device),
            "one train step": lambda: step_parity(device),
            "detection": lambda: detection_parity(device),
            "slim classifier": lambda: classifier(small, 8, small.cls_size),
            **({} if tiny else {"VGG16": lambda: classifier(PAPER, 1, 112)})}


def parity(report: Report, device: str, tiny: bool) -> None:
    "Every item's relative errors in full precision; the limits are `parity_limit`'s."
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    failed, shown = [], lambda v: float(f"{v:.2e}") if isinstance(v, float) else v
    for name, check in parity_items(device, tiny).items():
        began = time.perf_counter()
        try:
            errors = check()
            if wrong := over_limit(errors):
                errors["FAILED"] = "over the limit: " + ", ".join(f"{w} ({parity_limit(errors, w):.1e})" for w in wrong)
        except Exception as error:
            traceback.print_exc(limit=-3)
            errors = {"FAILED": f"{type(error).__name__}: {str(error)[:300]}"}
        failed += [name] if "FAILED" in errors else []
        report.put(f"parity, {name}", {k: shown(v) for k, v in errors.items()}
                   | {"seconds": round(time.perf_counter() - began, 1)})
    report.put("parity", f"FAILED: {failed}" if failed else "all items within their limits")


# ---------------------------------------------------------------- the notebooks' cells

def cuda_cells(wing: str, name: str = "") -> list:
    "Sources of the `#| cuda` cells of a wing's notebooks that end with `name`; LookupError if there is none."
    found = []
    for path in sorted((ROOT / "nbs" / wing).glob(f"*{name}.ipynb")):
        book = json.loads(path.read_text(encoding="utf-8"))
        sources = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
        found += [source for source in sources if re.match(r"#\|\s*cuda\b", source)]
    if not found:
        raise LookupError(f"nbs/{wing}/*{name}.ipynb: no notebook with a #| cuda cell")
    return found


def detection_cell(tiny: bool) -> dict:
    "Detection: the same landmarks from the CPU's compiled loops and from the GPU."
    import numpy as np
    from PIL import Image
    from aufacs_nb.registration import detection

    photo, collage = face_picture(), np.full((480, 640, 3), 90, np.uint8)
    for side, (x, y) in {256: (10, 20), 160: (300, 30), 112: (470, 60), 72: (330, 260), 44: (480, 300)}.items():
        collage[y:y + side, x:x + side] = np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.BOX))
    names = dict(vars(detection)) | {"collage": collage, "landmarker": detection.FaceLandmarker.from_pretrained()}
    cells = cuda_cells("1_registration", "detection")
    for source in cells:
        exec(compile(source, "detection", "exec"), names)
    found = len(names["landmarker"].find(collage))
    other = len(names["on_card"].find(collage)) if "on_card" in names else None
    assert other in (None, found), f"faces that the CPU finds: {found}; the GPU: {other}"
    return {"cells": len(cells), "faces on CPU": found, "faces on GPU": other}


def training_cell(tiny: bool) -> dict:
    "Generation: the `paper` preset's training with the package's own sampler, shortened."
    import io
    from aufacs_nb.generation import runs, training

    registered, labels, subjects, clips = sample_frames()
    names = vars(training) | vars(runs) | dict(registered=registered, labels=labels, subjects=subjects, clips=clips)
    cells, said = cuda_cells("2_generation"), io.StringIO()
    for source in cells:
        source = re.sub(r"< 60\b", "< 2" if tiny else "< 12", source)
        if tiny:
            for old, new in (('"cuda"', '"cpu"'), ('get_preset("paper")', 'get_preset("tiny")'), ('"bf16"', '"no"')):
                source = source.replace(old, new)
        with contextlib.redirect_stdout(said):
            exec(compile(source, "training", "exec"), names)
    return {"cells": len(cells), "printed": said.getvalue().strip()}


# ---------------------------------------------------------------- timings

def median_ms(step, device: str, seconds: float = 2.0, most: int = 30) -> float:
    "Median time of `step()` in ms, after two calls to warm up, by GPU events; on a CPU one call is enough."
    import statistics
    import torch

    on_card, times = device == "cuda", []
    for _ in range(2 if on_card else 0):
        step()
    if on_card:
        torch.cuda.synchronize()
    end = time.perf_counter() + seconds
    while not times or on_card and (len(times) < 3 or time.perf_counter() < end and len(times) < most):
        if on_card:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            step()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last))
        else:
            began = time.perf_counter()
            step()
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


class NoModules:
    "Stands in for the flop counter's tracker of modules, which cannot follow the penalty's second derivative."
    parents = {"Global"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def count_flops(step) -> int:
    "Floating-point operations of one call, counted by PyTorch (convolutions and products, both passes); 0 if it fails."
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    try:
        with counter:
            step()
        return int(counter.get_total_flops())
    except Exception:
        traceback.print_exc(limit=-3)
        return 0


def set_tf32(on: bool) -> None:
    "Let matrix products and convolutions of float32 use TF32, or not."
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def measure_peaks(device: str, tiny: bool) -> dict:
    "TFLOP/s of a square matrix product of random data in each precision."
    import torch

    n, peaks = 256 if tiny else 8192, {}
    for name, kind, tf32 in (("fp32", torch.float32, False), ("tf32", torch.float32, True),
                             ("bf16", torch.bfloat16, False)):
        set_tf32(tf32)
        a, b = (torch.randn(n, n, device=device).to(kind) for _ in range(2))
        peaks[name] = round(2 * n ** 3 / median_ms(lambda: a @ b, device, 1.0, 20) / 1e9, 1)
    return peaks


class FixedSampler:
    "Stands in for `PairSampler`: the same random batch on the device every time, so that only the networks are timed."

    def __init__(self, preset, device, layout):
        import torch
        from aufacs_nb.generation.training import PairBatch

        n, s = preset.gen_batch, preset.size
        image = lambda: (torch.rand(n, 3, s, s, device=device) * 2 - 1).contiguous(memory_format=layout)
        label = lambda: torch.rand(n, len(preset.aus), device=device)
        self.fixed = PairBatch(image(), label(), image(), label(), torch.arange(n, device=device) % 2 == 0,
                           torch.rand(n, device=device), torch.zeros(n, 2, dtype=torch.long), float(n // 2))

    def batch(self, *_, **__):
        "Always the same."
        return self.fixed


def timed(step, device, images: int, flops: int, peak) -> dict:
    "ms, images a second, TFLOP/s and the share of the card's peak of `step`."
    ms = median_ms(step, device)
    found = {"ms": round(ms, 2), "images/s": round(1000 * images / ms, 1)}
    if flops:
        speed = flops / ms / 1e9
        found |= {"TFLOP/s": round(speed, 2), "share of peak": round(speed / peak, 4) if peak else None}
    return found


def paper_trainer(preset, device: str, precision: str, channels_last: bool):
    "The package's trainer of this preset on a fixed batch."
    import torch
    from aufacs_nb.generation.training import GeneratorTrainer

    layout = torch.channels_last if channels_last else torch.contiguous_format
    set_tf32(precision == "tf32")
    sampler = FixedSampler(preset, device, layout)
    trainer = GeneratorTrainer(sampler, preset, 10 ** 6, preset.n_critic, device=None if device == "cuda" else "cpu",
                               precision="bf16" if precision == "bf16" else "no")
    trainer.layout = layout
    for network in (trainer.generator, trainer.critic):
        network.to(memory_format=layout)
    return trainer


def time_generator(report, preset, peaks, device, left, ways) -> None:
    "The `paper` preset's step: five critic updates, one generator update; images counted as in the training notebook."
    from aufacs_nb.generation.training import train_step

    flops = None
    for precision, last in ways:
        if left() < 8:
            return report.put(f"generator {precision}", "no time left")

        def one(precision=precision, last=last):
            "One configuration."
            nonlocal flops
            trainer = paper_trainer(preset, device, precision, last)
            flops = flops or count_flops(lambda: train_step(trainer))
            images = preset.n_critic * preset.gen_batch
            found = timed(lambda: train_step(trainer), device, images, flops, peaks.get(precision))
            return found | {"TFLOP a step": round(flops / 1e12, 3)}
        report.run(f"generator step, {precision}, {'channels_last' if last else 'contiguous'}", one)
        release_memory()


def time_classifier(report, preset, peaks, device, left, tiny, ways) -> None:
    "The preset's classifier's training step, all layers: VGG16, or slim with --tiny."
    import torch
    from aufacs_nb.estimation.trunk import build_classifier
    from aufacs_nb.estimation.vgg16 import class_loss

    size, batches, flops = preset.cls_size, (2,) if tiny else (32, 256), {}
    for precision, last in ways:
        for batch in batches:
            if left() < 6:
                return report.put(f"classifier {precision}", "no time left")

            def one(precision=precision, last=last, batch=batch):
                "One configuration."
                set_tf32(precision == "tf32")
                layout = torch.channels_last if last else torch.contiguous_format
                model = build_classifier(preset, None).to(device, memory_format=layout).train()
                adam = torch.optim.Adam(model.parameters(), 5e-5)
                images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
                classes = torch.randint(0, 6, (batch,), device=device)

                def step():
                    "Forward, backward, Adam."
                    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                        loss = class_loss(model(images), classes)
                    adam.zero_grad(set_to_none=True)
                    loss.backward()
                    adam.step()
                flops[batch] = flops.get(batch) or count_flops(step)
                return timed(step, device, batch, flops[batch], peaks.get(precision))
            report.run(f"{preset.classifier} step, batch {batch}, {precision}, {'channels_last' if last else 'contiguous'}", one)
            release_memory()


def medium_step(preset, device, channels_last: bool, low_norms: bool, compile_it: bool):
    "Forward and backward of the medium generator in bfloat16, for choosing how to train it."
    import torch
    from aufacs_nb.generation.networks import build_generator
    from tools.medium_training import lower_norms

    set_tf32(True)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = build_generator(preset).to(device, memory_format=layout)
    if low_norms:
        lower_norms(network)
    run = torch.compile(network, dynamic=False) if compile_it else network
    n, s = preset.gen_batch, preset.size
    images = (torch.rand(n, 3, s, s, device=device) * 2 - 1).contiguous(memory_format=layout)
    labels = torch.rand(n, len(preset.aus), device=device)

    def step():
        "One pass there and back."
        with torch.autocast(device, torch.bfloat16):
            made = run(images, labels)
        (made.image.float() - images).abs().mean().backward()
    return step


def time_medium(report, a, device, left, compiled: bool) -> None:
    "The medium generator's pass in each of `WAYS` (not) compiled; the training takes the fastest."
    from tools.limits import limited
    from tools.medium_training import medium_preset

    preset = medium_preset(a.size, a.dim, a.batch)
    ways = {name: way for name, way in WAYS.items() if way["compile_it"] == compiled}
    for name, way in list(ways.items())[:1 if a.tiny else None]:
        if left() < (25 if way["compile_it"] else 4) or way["compile_it"] and a.no_compile:
            report.put(f"medium pass, {name}", "left out")
            continue

        def one(way=way):
            "One configuration."
            step, began = medium_step(preset, device, **way), time.perf_counter()
            with limited(min(60, left())):
                step()
            first = time.perf_counter() - began
            ms = median_ms(step, device, 1.5)
            return {"ms": round(ms, 2), "images/s": round(1000 * preset.gen_batch / ms),
                    "first call, s": round(first, 1)}
        report.run(f"medium pass, {name}", one)


def time_compiled_paper(report, preset, peaks, device, left, a) -> None:
    "The paper's step once more with a compiled generator; the critic, which is differentiated twice, stays as it is."
    import torch
    from aufacs_nb.generation.training import train_step

    from tools.limits import limited

    if left() < 35 or a.no_compile:
        return report.put("generator step, compiled", "left out")

    def one():
        "bfloat16, channels_last."
        trainer = paper_trainer(preset, device, "bf16", True)
        flops = count_flops(lambda: train_step(trainer))
        trainer.generator.forward = torch.compile(trainer.generator.forward, dynamic=False)
        began = time.perf_counter()
        with limited(left() - 8):
            train_step(trainer)
        first = time.perf_counter() - began
        return timed(lambda: train_step(trainer), device, preset.n_critic * preset.gen_batch, flops,
                     peaks.get("bf16")) | {"first call, s": round(first, 1)}
    report.run("generator step, bf16, channels_last, generator compiled", one)


def stage_checks(a, report: Report) -> None:
    "Parity, cells, timings, the most wanted first."
    import torch
    from dataclasses import replace
    from aufacs_nb.presets import PAPER, TINY

    device = "cpu" if a.tiny or not torch.cuda.is_available() else "cuda"
    torch.set_num_threads(2)
    left = lambda: a.until - time.time()
    facts = {"torch": torch.__version__, "cuda": torch.cuda.is_available(), "python": sys.version.split()[0],
             "cores": os.cpu_count()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"name": properties.name, "memory GiB": round(properties.total_memory / 2 ** 30, 1),
                  "multiprocessors": properties.multi_processor_count}
    report.put("machine", facts)
    parity(report, device, a.tiny)
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's own setting, as a user has it
    report.run("cuda cell, detection", detection_cell, a.tiny)
    report.run("cuda cell, training", training_cell, a.tiny)
    torch.backends.cudnn.benchmark = True
    report.run("peak TFLOP/s", measure_peaks, device, a.tiny)
    peaks = {k: v for k, v in report.items["peak TFLOP/s"].items() if isinstance(v, float)}
    paper = replace(TINY, n_critic=2, warmup_share=0.0) if a.tiny else PAPER
    time_medium(report, a, device, left, False)
    last, plain = ([(precision, layout) for precision in ("bf16", "tf32", "fp32")] for layout in (True, False))
    first = last[2:] if a.tiny else last[:1]  # a CPU is slow in bfloat16
    time_generator(report, paper, peaks, device, left, first)
    time_classifier(report, paper, peaks, device, left, a.tiny, first)
    if not a.tiny:
        time_classifier(report, paper, peaks, device, left, a.tiny, last[1:2])
        time_generator(report, paper, peaks, device, left, last[1:])  # fp32 takes longest to tune and to run
        time_medium(report, a, device, left, True)
        time_classifier(report, paper, peaks, device, left, a.tiny, last[2:] + plain[:1])
        time_generator(report, paper, peaks, device, left, plain)
        time_compiled_paper(report, paper, peaks, device, left, a)
    report.put("done", round(time.time() - a.began, 1))


# ---------------------------------------------------------------- trainings

def wait_for_frames(a) -> dict:
    "All frames, once rendering is over or its time is."
    from tools.render_true_pairs import held_out_people, load_frames

    shards = Path(a.scratch) / "shards"
    while not (shards / "finished.json").is_file() and time.time() < a.frames_by:
        time.sleep(0.2)
    said = 0.0
    while time.time() < a.until - 5:
        try:
            frames = load_frames(shards, held_out_people(a.people, a.held_out))
            if set(frames["person"].tolist()) - set(frames["held_out"].tolist()):
                return frames
        except (ValueError, OSError) as error:
            if time.time() - said > 10:
                said = time.time()
                print("waiting for frames:", error, flush=True)
        time.sleep(1)
    raise RuntimeError("no frames came in time")


def wait_for_turn(a) -> None:
    "Until the process before this one has left the GPU."
    go = Path(a.scratch) / f"go_{a.stage}"
    while not go.is_file() and time.time() < a.until - 5:
        time.sleep(0.1)
    if go.is_file():
        a.until = float(go.read_text() or a.until)
    if a.tiny:  # its share from now on, however long the imports took
        a.until = min(a.until, time.time() + (a.medium_seconds if a.stage == "medium" else a.also_seconds))


def best_way(scratch) -> dict:
    "The quickest of `WAYS` as timed; a compiled one must save a fifth, since it costs time to compile."
    plain = next(iter(WAYS))
    try:
        checks = json.loads((Path(scratch) / "report_checks.json").read_text())
    except (OSError, ValueError):
        return WAYS[plain]
    ms = {name: value["ms"] * (1.25 if WAYS[name]["compile_it"] else 1) for name in WAYS
          if isinstance(value := checks.get(f"medium pass, {name}"), dict) and "ms" in value}
    return WAYS[min(ms, key=ms.get, default=plain)]


def prepare_training(a, report: Report, warm=lambda size: None):
    "Import, open the GPU, load the frames, `warm(size)`, wait for the turn; returns device and frames."
    import torch

    device = "cpu" if a.tiny or not torch.cuda.is_available() else "cuda"
    torch.set_num_threads(1 if device == "cpu" else 4)
    if device == "cuda":
        torch.zeros(8, device=device).sum().item()
    frames = wait_for_frames(a)
    people = len(set(frames["person"].tolist()))
    report.put("frames", {"frames": len(frames["frames"]), "people": people, "device": device})
    try:
        warm(a.size)
    except Exception:
        traceback.print_exc(limit=-3)
    wait_for_turn(a)
    return device, frames


def stage_medium(a, report: Report) -> None:
    "The medium generator."
    from tools.medium_training import train, warm_scores
    from tools.render_true_pairs import load_frames

    device, frames = prepare_training(a, report, warm_scores)
    try:
        sheet = load_frames(Path(a.scratch) / "shards", kind="sheet")
    except ValueError:
        sheet = None
    way = dict(WAYS["contiguous"], bf16=False) if a.safe else best_way(a.scratch)
    report.put("way", way)
    seconds = a.until - time.time() - (0 if a.tiny else 2)
    facts = train(frames, seconds, a.out, device, a.seed, sheet=sheet, dim=a.dim, batch=a.batch,
                  facts={"command": "bash tools/gpu_check.sh"}, **way)
    report.put("facts", facts)


def stage_also(a, report: Report) -> None:
    "The other training."
    device, frames = prepare_training(a, report)
    try:
        module = importlib.import_module(f"tools.{a.also}")
    except ModuleNotFoundError:
        sys.path.insert(0, str(ROOT / "tools"))
        module = importlib.import_module(a.also)
    seconds = a.until - time.time() - (0 if a.tiny else 4)
    report.put("seconds given", round(seconds, 1))
    report.put("result", module.train(frames, seconds, Path(a.out), device, a.seed))


# ---------------------------------------------------------------- the conductor

class Child:
    "A stage in a process group of its own, its output shown and kept."

    def __init__(self, name: str, command: list, scratch: Path, environment: dict):
        self.name, self.log = name, open(scratch / f"log_{name}.txt", "a", encoding="utf-8")
        tee = subprocess.Popen(["tee", "-a", self.log.name], stdin=subprocess.PIPE)  # shown and kept
        self.process = subprocess.Popen(command, stdout=tee.stdin, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                        env=environment, process_group=0)
        tee.stdin.close()

    def running(self) -> bool:
        "Whether it has not ended."
        return self.process.poll() is None

    def end(self) -> None:
        "Ask it to stop, then make it."
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
            except (ProcessLookupError, PermissionError):
                pass
            if number == signal.SIGTERM:
                try:
                    self.process.wait(1.5)
                except subprocess.TimeoutExpired:
                    pass


class Conductor:
    "Starts the stages, keeps the time."

    def __init__(self, a):
        self.a, self.began = a, time.time()
        self.end = self.began + a.seconds - MARGIN * (0.2 if a.tiny else 1)
        self.scratch = Path(a.scratch or tempfile.mkdtemp(prefix="gpu_check_"))
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.out, self.children, self.events = Path(a.out), [], []
        self.out.mkdir(parents=True, exist_ok=True)
        cache = {name: str(self.scratch / name.lower()) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR",
                                                                     "MPLCONFIGDIR")}
        self.environment = os.environ | cache | {"PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_COMPILE_THREADS": "8"}

    def note(self, text: str) -> None:
        "An event with its time; the report is written anew."
        self.events.append(f"{time.time() - self.began:6.1f} s  {text}")
        print("gpu_check:", self.events[-1], flush=True)
        self.write()

    def write(self) -> None:
        "Merge the report; a full disk must not stop anything."
        try:
            merged(self.scratch, self.out, {"events": self.events, "options": vars(self.a)})
        except (OSError, ValueError) as error:
            print("gpu_check: report not written:", error, flush=True)

    def stage(self, name: str, until: float, *more, cores: str | None = None) -> Child:
        "Start one stage of this program."
        a = self.a
        command = [sys.executable, "-u", str(Path(__file__).resolve()), "--stage", name, "--scratch", str(self.scratch),
                   "--out", str(self.out), "--until", str(until), "--began", str(self.began), "--frames-by",
                   str(self.began + a.render_seconds + 12), *more]
        for option in ("people", "held_out", "size", "dim", "batch", "seed", "medium_seconds", "also_seconds"):
            command += [f"--{option.replace('_', '-')}", str(getattr(a, option))]
        command += [flag for flag, on in (("--tiny", a.tiny), ("--no-compile", a.no_compile)) if on]
        command += ["--also", a.also] if a.also else []
        limit = {"OMP_NUM_THREADS": cores} if cores else {}
        return self._start(name, command, self.environment | limit)

    def _start(self, name, command, environment) -> Child:
        child = Child(name, command, self.scratch, environment)
        self.children.append(child)
        self.note(f"{name} started")
        return child

    def render(self) -> Child:
        "Start the renderer."
        a = self.a
        command = [sys.executable, "-u", str(ROOT / "tools" / "render_true_pairs.py"), "--out",
                   str(self.scratch / "shards")]
        for option in ("people", "held_out", "instants", "variants", "size", "seed", "workers"):
            command += [f"--{option.replace('_', '-')}", str(getattr(a, option))]
        return self._start("render", command + ["--seconds", str(a.render_seconds)],
                           self.environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})

    def wait(self, child: Child, until: float, meanwhile=lambda: None) -> None:
        "Until it ends or its time is over; the report is written every few seconds."
        written = time.time()
        while child.running() and time.time() < until:
            meanwhile()
            if time.time() - written > 3:
                self.write()
                written = time.time()
            time.sleep(0.1)
        if child.running():
            child.end()
            self.note(f"{child.name} stopped at its limit")
        else:
            self.note(f"{child.name} ended with {child.process.returncode}")

    def go(self, child_name: str, until: float) -> None:
        "Let a prepared training begin; it must be done at `until`."
        temporary = self.scratch / f".go_{child_name}"
        temporary.write_text(str(until))
        os.replace(temporary, self.scratch / f"go_{child_name}")
        self.note(f"{child_name} has the GPU for {until - time.time():.0f} s")

    def run(self) -> None:
        "All stages."
        a, ready = self.a, {}
        shares = {"medium": a.medium_seconds, "also": a.also_seconds if a.also else 0.0}
        shares = {name: seconds for name, seconds in shares.items() if seconds > 0}
        checks_end = min(self.began + a.checks_seconds, self.end)
        renderer = self.render() if shares else None
        order = list(shares)

        def prepare(name, at):
            "Start a training's process `PREWARM` before its turn."
            soon = time.time() > at - PREWARM or at == checks_end and not renderer.running()
            if name and name not in ready and soon:
                ready[name] = self.stage(name, self.end, cores="4")
        first = order[0] if order else None
        if a.checks_seconds > 0:
            self.wait(self.stage("checks", checks_end, cores="2"), checks_end, lambda: prepare(first, checks_end))
        for k, name in enumerate(order):
            if renderer.running() and time.time() > self.began + a.render_seconds + 10:
                renderer.end()
            prepare(name, 0)
            following, left = (order[k + 1] if k + 1 < len(order) else None), self.end - time.time()
            until = self.end if a.tiny else time.time() + left * shares[name] / sum(shares[n] for n in order[k:])
            self.go(name, until)
            began = time.time()
            self.wait(ready[name], until + 1, lambda: prepare(following, until))
            failed = ready[name].process.returncode != 0 and time.time() < until - 40
            if failed and name == "medium":  # once more, with nothing that could go wrong
                self.note(f"{name} failed after {time.time() - began:.0f} s: again, in full precision")
                self.wait(self.stage(name, until, "--safe"), until + 1, lambda: prepare(following, until))
        if renderer is not None and renderer.running():
            renderer.end()

    def finish(self) -> None:
        "End what still runs, write the last report, clear the scratch folder."
        for child in self.children:
            if child.running():
                child.end()
        self.note("finished")
        for path in self.out.iterdir():
            if path.is_file():
                path.chmod(0o644)
                print(f"gpu_check: {path.name} {path.stat().st_size / 2 ** 20:.2f} MiB", flush=True)
        if not self.a.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)


def options() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", required=True, help="folder for report.json and the trained networks")
    add("--seconds", type=float, default=540, help="wall time of everything")
    add("--checks-seconds", type=float, default=165, help="parity, cells and timings; 0 leaves them out")
    add("--medium-seconds", type=float, default=200, help="share of what is left after the checks; 0 leaves it out")
    add("--also", default="", help="module in tools/ with train(frames, seconds, out, device, seed)")
    add("--also-seconds", type=float, default=180, help="its share")
    add("--render-seconds", type=float, default=140, help="no new person is rendered after that")
    add("--people", type=int, default=400, help="as many of these as there is time for")
    add("--held-out", type=int, default=16)
    add("--instants", type=int, default=6)
    add("--variants", type=int, default=12)
    add("--size", type=int, default=128)
    add("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    add("--dim", type=int, default=48, help="first channels of the medium generator")
    add("--batch", type=int, default=64, help="of the medium generator")
    add("--seed", type=int, default=0)
    add("--tiny", action="store_true", help="two people, 32 px, on the CPU")
    add("--no-compile", action="store_true")
    add("--safe", action="store_true", help=argparse.SUPPRESS)
    add("--scratch", default="", help="folder for shards and caches; a temporary one by default")
    for hidden, kind in (("--stage", str), ("--until", float), ("--began", float), ("--frames-by", float)):
        add(hidden, type=kind, default=None, help=argparse.SUPPRESS)
    a = parser.parse_args()
    for name, value in (TINY_SHARES if a.tiny else {}).items():
        if getattr(a, name) == parser.get_default(name):
            setattr(a, name, value)
    if a.tiny:
        a.people, a.held_out, a.instants, a.variants, a.size, a.dim, a.batch, a.workers = 2, 1, 1, 12, 32, 8, 4, 1
    return a


def main() -> None:
    "One stage if it is named, else all of them."
    a = options()
    if a.stage:
        importlib.import_module("tools.render_true_pairs")  # Numba, whatever NumPy is there
        report = Report(Path(a.scratch) / f"report_{a.stage}.json")
        try:
            {"checks": stage_checks, "medium": stage_medium, "also": stage_also}[a.stage](a, report)
        except Exception as error:
            traceback.print_exc(limit=-3)
            report.put("failed", f"{type(error).__name__}: {str(error)[:800]}")
            sys.exit(1)
        return
    conductor = Conductor(a)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        conductor.run()
    except Exception as error:
        traceback.print_exc(limit=-3)
        conductor.note(f"failed: {type(error).__name__}: {error}")
    finally:
        conductor.finish()


if __name__ == "__main__":
    main()

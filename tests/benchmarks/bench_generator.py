"""How fast a full cycle of five critic updates and one generator update is, beside the plain recipe.

    OMP_NUM_THREADS=2 python tests/benchmarks/bench_generator.py [--size 128] [--batch 25] [--dim 64] [--cycles 2]

`plain` is the loop that the implementation behind the paper grew from, written out below: in every one of the five
steps both generator passes (there and back) run with their graphs, in single precision, with contiguous tensors, and
the critic's parameters take gradients in generator steps too. `one pass` is the same with the first pass only, a milder
reading. `ours` is `training.train_step`. All start from the same weights and see the same batches; the table
says how far their losses are apart. Cycles alternate; medians are printed. Peak: the fastest of ten matrix products.
"""
import argparse
import json
import statistics
import time
from dataclasses import replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from aufacs_nb.facs import au_columns, intensity_to_unit
from aufacs_nb.generation.losses import critic_loss, total_loss
from aufacs_nb.presets import PAPER
from aufacs_nb.registration.collections import sample_registered
from aufacs_nb.generation.training import GeneratorTrainer, PairSampler, generator_parts, set_trainable, train_step


def trainer_of(preset, precision="no"):
    data = sample_registered()
    labels = intensity_to_unit(data.manifest[au_columns()].to_numpy())
    sampler = PairSampler(data.frames, labels, data.manifest.subject.to_numpy(), preset, seed=0)
    return GeneratorTrainer(sampler, preset, 1000, preset.n_critic, device="cpu", precision=precision)


def contiguous(trainer):
    for network in (trainer.generator, trainer.critic):
        network.to(memory_format=torch.contiguous_format)
    return trainer


def plain_step(trainer, passes=2):
    "Five critic updates and one generator update without any of our savings; returns the losses."
    p = trainer.preset
    set_trainable(trainer.critic, True)
    for k in range(trainer.n_critic):
        batch = trainer.batch()
        batch = batch._replace(source=batch.source.contiguous(), target=batch.target.contiguous())
        made = trainer.generator(batch.source, batch.target_labels)
        if passes == 2:
            trainer.generator(made.image, batch.source_labels)
        loss, critic_parts = critic_loss(trainer.critic, batch.source, made.image.detach(), batch.source_labels, p,
                                         batch.epsilon)
        step(trainer, "critic", loss)
    made = trainer.generator(batch.source, batch.target_labels)
    parts = generator_parts(trainer.generator, trainer.critic, made, batch, p, warm=False)
    step(trainer, "generator", total_loss(parts, p))
    trainer.done += 1
    return {name: part.item() for name, part in (parts | critic_parts).items()}


def step(trainer, name, loss):
    optimiser = trainer.optimisers[name]
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


class CountFlops(TorchDispatchMode):
    "Floating-point operations of every convolution and product, backward passes and double gradients included."
    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function._overloadpacket in flop_registry:
            self.total += flop_registry[function._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def matmul_peak(dtype, n=2048):
    "Floating-point operations per second of the fastest of ten n × n products."
    a, b = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
    times = []
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return 2 * n ** 3 / min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("size", 128), ("batch", 25), ("dim", 64), ("cycles", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--bf16", action="store_true", help="also without native bf16, where it is slow")
    parser.add_argument("--json", help="write the numbers here too")
    a = parser.parse_args()
    torch.manual_seed(0)
    preset = replace(PAPER, size=a.size, gen_batch=a.batch, gen_dim=a.dim, critic_dim=a.dim)
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.backends.cpu.get_cpu_capability() != "AVX2"
    ways = {"plain": (contiguous(trainer_of(preset)), plain_step),
            "one pass": (contiguous(trainer_of(preset)), lambda t: plain_step(t, 1)),
            "ours": (trainer_of(preset), train_step)}
    if native or a.bf16:
        ways["ours, bf16"] = (trainer_of(preset, "bf16"), train_step)
    peaks, times, losses = {torch.float32: matmul_peak(torch.float32)}, {n: [] for n in ways}, {n: [] for n in ways}
    with CountFlops() as counter:
        train_step(trainer_of(replace(preset, gen_batch=1)))
    flops = counter.total * a.batch
    for cycle in range(a.cycles):
        for name, (trainer, one) in ways.items():
            began = time.perf_counter()
            losses[name].append(one(trainer))
            times[name].append(time.perf_counter() - began)
            print(f"cycle {cycle} {name}: {times[name][-1]:.1f} s", flush=True)
    images = preset.n_critic * a.batch
    result = {"size": a.size, "batch": a.batch, "dim": a.dim, "threads": torch.get_num_threads(),
              "native bf16": bool(native), "fp32 peak, GFLOP/s": peaks[torch.float32] / 1e9, "flops of a cycle": flops}
    for name in ways:
        seconds = statistics.median(times[name])
        apart = max(abs(losses[name][0][k] - v) / max(abs(v), 0.05) for k, v in losses["plain"][0].items())
        result[name] = {"images/s": images / seconds, "times plain": statistics.median(times["plain"]) / seconds,
                        "losses apart in the first cycle": apart}
    result["ours"]["share of peak"] = flops / statistics.median(times["ours"]) / peaks[torch.float32]
    for name in ways:
        print(f"{name:12}", {k: round(v, 4) for k, v in result[name].items()})
    print({k: v for k, v in result.items() if not isinstance(v, dict)})
    if not native:
        print("This processor has no native bf16: the mixed-precision goal cannot be measured here.")
    if a.json:
        with open(a.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()

"""Frames per second from decoded video to registered 224 x 224 on two cores, beside MediaPipe's FaceLandmarker.

    python tests/benchmarks/bench_registration.py [--video FILE] [--out FILE.json] [--rounds 3]
    python tests/benchmarks/bench_registration.py --memory          # peak memory over 200 and over 2,000 frames

MediaPipe 1.2.2 is installed into a virtual environment of its own (build/bench/mediapipe, or --venv) and runs there as
a process; the project never imports it. It decodes the same frames with the same PyAV calls and stops at landmarks in
VIDEO mode, while ours goes on to registered frames on disk. Rounds alternate between the two; compare the numbers of
one run only, and on a machine with other work to do trust processor time rather than frames per second. The default
clip is a virtual person of 300 frames, 640 x 480, who moves and acts; it is rendered once.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import chain, count, islice
from pathlib import Path

MEDIAPIPE = "mediapipe==1.2.2"
ROOT = Path(__file__).parents[2]
TASK = ROOT / "tests/data/face_landmarker.task"
WARM_UP = 20    # frames before the clock starts


# Each worker is a process of its own: it says "ready", waits for a line, does its work and prints one line of JSON.

def ready():
    """Tell the parent that everything is loaded, and wait for its signal; SystemExit if it has given up."""
    print("ready", flush=True)
    if not sys.stdin.readline():
        raise SystemExit("the parent gave up")


def decoded(video, limit=None):
    """RGB frames of a video, as `databases.timed_frames` reads them."""
    import av

    with av.open(video) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number == limit:
                return
            yield frame.to_ndarray(format="rgb24")


def work_mediapipe(video):
    """Decode and find landmarks in VIDEO mode. Runs in MediaPipe's own environment."""
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    def landmarks(limit=None):
        options = vision.FaceLandmarkerOptions(base_options=BaseOptions(model_asset_path=str(TASK)),
                                               running_mode=vision.RunningMode.VIDEO)
        found = number = 0
        with vision.FaceLandmarker.create_from_options(options) as landmarker:
            start, busy = time.perf_counter(), time.process_time()
            for number, image in enumerate(decoded(video, limit), 1):
                picture = mediapipe.Image(mediapipe.ImageFormat.SRGB, image)
                found += bool(landmarker.detect_for_video(picture, number * 33).face_landmarks)
            return {"frames": number, "faces": found, "seconds": time.perf_counter() - start,
                    "busy": time.process_time() - busy}

    landmarks(WARM_UP)
    ready()
    return landmarks()


def registered(manifest, n_jobs):
    """Register a manifest into a folder that is thrown away; seconds, frames and faces."""
    from aufacs_nb.registration.collections import register_manifest

    with tempfile.TemporaryDirectory() as folder:
        start, busy = time.perf_counter(), time.process_time()
        result = register_manifest(manifest, Path(folder) / "out", progress=False, n_jobs=n_jobs)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        return {"frames": len(manifest), "faces": int(result.manifest["valid"].sum()), "seconds": seconds, "busy": busy}


def work_ours(folder, n_jobs):
    """Register all videos of a folder."""
    from aufacs_nb.databases import folder_manifest

    manifest = folder_manifest(folder)
    registered(manifest.iloc[:WARM_UP], 1)
    ready()
    return registered(manifest, int(n_jobs))


class Clock:
    """Processor seconds spent in a function that it wraps."""

    def __init__(self, function):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments, **options):
        start = time.process_time()
        try:
            return self.function(*arguments, **options)
        finally:
            self.seconds += time.process_time() - start

    def __getattr__(self, name):
        return getattr(self.function, name)


def work_parts(video):
    """Processor milliseconds a frame of each part of ours, in one thread, one after the other."""
    import numpy as np
    import torch
    from aufacs_nb.registration.detection import FaceLandmarker
    from aufacs_nb.registration.frontal import register_face
    from aufacs_nb.registration.tracking import track

    torch.set_num_threads(1)
    landmarker = FaceLandmarker.from_pretrained()
    for _, image, faces in track(enumerate(decoded(video, WARM_UP)), landmarker):
        register_face(image, faces[0].landmarks)
    landmarker.mesh, landmarker.detector = Clock(landmarker.mesh), Clock(landmarker.detector)
    decode, register, save = Clock(lambda: list(decoded(video, 300))), Clock(register_face), Clock(np.save)
    follow = Clock(lambda images: [faces[0] if faces else None for _, _, faces in track(enumerate(images), landmarker)])
    ready()
    images = decode()
    results = [register(image, face.landmarks).image for image, face in zip(images, follow(images)) if face]
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "frames.npy", np.stack(results))
    parts = {"decode": decode, "detect and track": follow, "… of it mesh network": landmarker.mesh,
             "… of it detector": landmarker.detector, "register": register, "write": save}
    return {name: 1000 * clock.seconds / len(images) for name, clock in parts.items()}


def variants(compiled):
    """{name: (network, function that prepares a batch)}: ways to run the mesh network on this processor."""
    import copy

    import torch
    from aufacs_nb.registration.detection import FaceLandmarker, load_networks

    modules = copy.deepcopy(load_networks()[1]).to(memory_format=torch.contiguous_format)
    last = copy.deepcopy(modules).to(memory_format=torch.channels_last)
    to_last = lambda images: images.contiguous(memory_format=torch.channels_last)
    found = {"as used on a CPU (compiled loops)": (FaceLandmarker.from_pretrained().mesh, lambda images: images),
             "eager, contiguous": (modules, lambda images: images),
             "eager, channels last": (last, to_last),
             "bfloat16, channels last": (copy.deepcopy(last).bfloat16(), lambda images: to_last(images).bfloat16()),
             "traced and frozen": (torch.jit.freeze(torch.jit.trace(modules, torch.rand(8, 3, 256, 256))),
                                   lambda images: images)}
    if compiled:
        found["torch.compile, channels last"] = torch.compile(last), to_last
    return found


def work_variants(compiled):
    """Milliseconds a picture of the mesh network's variants at batch 1, 8, 32, and their error in pixels."""
    import torch

    torch.set_num_threads(1)
    networks, pictures = variants(compiled == "yes"), torch.rand(32, 3, 256, 256)
    times = {name: {1: [], 8: [], 32: []} for name in networks}
    rows = {}
    with torch.inference_mode():
        expected = networks["eager, contiguous"][0](pictures[:8])[0]
        for name, (network, prepare) in networks.items():
            start = time.perf_counter()
            answer = network(prepare(pictures[:8]))[0]
            rows[name] = {"first call, s": time.perf_counter() - start,
                          "error, px": float((answer.float() - expected).abs().max())}
        ready()
        for _ in range(4):
            for name, (network, prepare) in networks.items():
                for batch, seconds in times[name].items():
                    start = time.perf_counter()
                    network(prepare(pictures[:batch]))
                    seconds.append((time.perf_counter() - start) / batch)
    for name, by_batch in times.items():
        rows[name] |= {f"batch {batch}, ms": 1000 * statistics.median(each[1:]) for batch, each in by_batch.items()}
    return rows


def anonymous():
    """Bytes of this process that no file stands behind (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def work_memory(video, frames):
    """Register the first frames of a long video in this process; its peak memory in MB."""
    from aufacs_nb.databases import file_manifest

    manifest, peak, over = file_manifest(video).iloc[:int(frames)], [0], threading.Event()

    def watch():
        while not over.wait(.05):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    ready()
    watcher.start()
    result = registered(manifest, 1)
    over.set()
    watcher.join()
    return result | {"peak, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                     "peak without mapped files, MB": peak[0] / 2**20}


# The parent: prepares the clip and the environment, starts workers, prints tables.

def two_cores():
    """Pin this process and its children to two cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def run(*commands):
    """Start workers [(python, worker, arguments…)], let them go together, return their answers."""
    processes = [subprocess.Popen([str(python), __file__, "--worker", worker, *map(str, arguments)],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                 for python, worker, *arguments in commands]
    said = [process.stdout.readline() for process in processes]
    for process in processes:
        if said.count("ready\n") == len(said):
            process.stdin.write("go\n")
        process.stdin.close()
    answers = [process.stdout.readlines() for process in processes]
    failed = [" ".join(process.args) for process in processes if process.wait()]
    if failed:
        raise SystemExit(f"a worker failed; start it alone and press enter to see why: {failed[0]}")
    return [json.loads(lines[-1]) for lines in answers]


def environment(folder):
    """Python of a virtual environment with MediaPipe, made if it is not there."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    if subprocess.run([python, "-c", "import mediapipe, av"], capture_output=True).returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet", MEDIAPIPE, "av"], check=True)
    return python


def sample_clip(folder):
    """A virtual person who moves and acts: 300 frames, 640 x 480, rendered once."""
    from aufacs_nb.simulation.simulate import simulate_disfa

    simulate_disfa(folder / "clip", subjects=1, frames=300, size=(640, 480), seed=0)
    return next((folder / "clip").glob("Videos_LeftCamera/*.avi"))


def repeated(video, frames, path):
    """Write a video that repeats another one until it has `frames` frames."""
    import av
    from aufacs_nb.databases import read_video

    again = islice(chain.from_iterable(read_video(video) for _ in count()), frames)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "18"})
        for number, image in enumerate(again):
            if number == 0:
                stream.height, stream.width = image.shape[:2]
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return path


def speed(video, python, rounds, folder):
    """Frames per second of MediaPipe and ours, one clip and two clips, rounds alternating."""
    one, two = folder / "one", folder / "two"
    for place, clips in ((one, 1), (two, 2)):
        place.mkdir()
        for number in range(clips):
            (place / f"clip{number}{video.suffix}").symlink_to(video.absolute())
    setups = {"mediapipe, one clip, default threads": [(python, "mediapipe", video)],
              "ours, one clip, one job": [(sys.executable, "ours", one, 1)],
              "ours, one clip, two jobs": [(sys.executable, "ours", one, 2)],
              "mediapipe, two clips in two processes": 2 * [(python, "mediapipe", video)],
              "ours, two clips in two processes": 2 * [(sys.executable, "ours", one, 1)],
              "ours, two clips, two jobs": [(sys.executable, "ours", two, 2)]}
    rates, busy, found = {name: [] for name in setups}, {name: [] for name in setups}, {}
    for _ in range(rounds):
        for name, commands in setups.items():
            answers = run(*commands)
            frames = sum(answer["frames"] for answer in answers)
            rates[name].append(frames / max(answer["seconds"] for answer in answers))
            busy[name].append(1000 * sum(answer["busy"] for answer in answers) / frames)
            found[name] = sum(answer["faces"] for answer in answers) / frames
    return {name: {"frames/s": statistics.median(each), "lowest": min(each), "highest": max(each),
                   "processor ms a frame": statistics.median(busy[name]), "with a face": found[name]}
            for name, each in rates.items()}


def ratios(rows, parts):
    """Ours over MediaPipe, above 1 where ours is faster: frames per second, and frames per processor second."""
    middle, busy = ({name: row[column] for name, row in rows.items()} for column in ("frames/s", "processor ms a frame"))
    one, two = "mediapipe, one clip, default threads", "mediapipe, two clips in two processes"
    return {"one clip, one job": middle["ours, one clip, one job"] / middle[one],
            "one clip, two jobs": middle["ours, one clip, two jobs"] / middle[one],
            "two clips, two processes": middle["ours, two clips in two processes"] / middle[two],
            "two clips, two jobs": middle["ours, two clips, two jobs"] / middle[two],
            "processor, to registered frames": busy[one] / busy["ours, one clip, one job"],
            "processor, to landmarks only": busy[one] / (parts["decode"] + parts["detect and track"])}


def show(title, rows):
    """Print one table: {row: {column: number}} or {row: number}."""
    print(f"\n{title}")
    for name, row in rows.items():
        cells = row if isinstance(row, dict) else {"": row}
        print(f"  {name:<40}" + "  ".join(f"{column} {value:8.4g}" for column, value in cells.items()))


def options():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, help="a video with one face; a virtual person by default")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--venv", type=Path, default=ROOT / "build/bench/mediapipe", help="MediaPipe's environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(chosen, video, folder):
    """All tables of one run."""
    if chosen.memory:
        long = repeated(video, 2000, folder / "long.mp4")
        rows = {f"{frames} frames": run((sys.executable, "memory", long, frames))[0] for frames in (200, 2000)}
        return {"Memory of one process, MB": rows}
    rows = speed(video, environment(chosen.venv), chosen.rounds, folder)
    compiled, parts = "no" if chosen.no_compile else "yes", run((sys.executable, "parts", video))[0]
    return {"Decoded and processed": rows, "Parts of ours, one thread, processor ms a frame": parts,
            "Ours over MediaPipe": ratios(rows, parts),
            "Mesh network, one thread": run((sys.executable, "variants", compiled))[0]}


def main():
    """Run what the command line asks for."""
    chosen = options()
    if chosen.worker:
        name, *arguments = chosen.worker
        print(json.dumps(globals()[f"work_{name}"](*arguments)))
        return
    two_cores()
    cache = ROOT / "build/bench"
    cache.mkdir(parents=True, exist_ok=True)
    video = chosen.video or sample_clip(cache)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        tables = measure(chosen, video, Path(folder))
    for title, rows in tables.items():
        show(title, rows)
    if chosen.out:
        chosen.out.write_text(json.dumps({"video": video.name, "tables": tables}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

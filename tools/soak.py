"""Ten visitors use the demos for ten minutes in a real browser; memory, kernels and files must come back.

    python tools/soak.py [--visitors 10] [--minutes 10] [--rounds 2] [--seed 0] [--leave 2000] [--out soak.csv]
                         [--log log.txt]

Each visitor opens a demo, uploads a picture, moves sliders, and leaves: through a link, by closing the page, by closing
it before it is there, or as a browser does that is killed. Then they come back for another. Meanwhile the server and
its kernels are looked at every few seconds: how many kernels, their memory, the server's memory and open files, and
files in the temporary folder, where nothing of an upload may stay. When all are gone, the last kernel must end within
the time that the server allows (`IDLE` and `CHECKED` in `aufacs_nb.apps.live`). The minutes are shared by two rounds:
what the first leaves in the server's memory may have been loaded once, what the second adds is lost with every visit.

The script prints a table, and ends with an error if something stays or a visitor was not served. It needs chromium,
and about 0.7 GB for each visitor.
"""
import argparse
import asyncio
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pandas as pd
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

DEMOS = Path(os.environ.get("AUFACS_DEMOS", ROOT / "nbs" / "demos"))
SERVE = "import sys; from aufacs_nb.apps.live import serve_demos; serve_demos(sys.argv[1], int(sys.argv[2]), False)"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream",
         "--use-fake-ui-for-media-stream"]
PICTURES = "img.jupyter-widgets, .live-picture"
UPLOADS = {"au_explorer": "Use my photo", "generator": "Use my photo", "registration": "Use my picture"}
WAYS = ("link", "close", "early", "killed")  # to leave a page
PATIENCE = 300  # seconds for a page, where ten start at once on two cores
GRACE = 60      # seconds more than the server needs to end the last kernel
LEAK = 60       # MB that the server may keep
MORE = 15       # MB that it may keep from the last round


def free_port():
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def chromium():
    """Path of the browser, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Server:
    """`serve_demos` over a copy of the demos in `folder`, with temporary files in a folder of its own."""

    def __init__(self, folder):
        self.folder, self.port, self.log = Path(folder), free_port(), Path(folder) / "log.txt"
        shutil.copytree(DEMOS, self.folder / "demos", ignore=shutil.ignore_patterns("share", "answers.csv", ".*"))
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        command = [sys.executable, "-c", SERVE, str(self.folder / "demos"), str(self.port)]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True,
                                            env=os.environ | {"TMPDIR": str(self.temporary)})
        self.address = f"http://127.0.0.1:{self.port}/"

    def wait(self, limit=90):
        """Poll until it answers; RuntimeError with its log when it does not."""
        for _ in range(limit * 4):
            if self.process.poll() is not None:
                break
            try:
                with urlopen(self.address, timeout=5):
                    return self
            except (URLError, OSError):
                time.sleep(0.25)
        raise RuntimeError(f"no answer at {self.address}:\n{self.log.read_text()[-3000:]}")

    def kernels(self):
        """The processes of its kernels."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "ipykernel_launcher" in command_of(child)]

    def ended(self):
        """Names of the kernels that have ended."""
        return set(re.findall(r"Kernel shutdown: ([\w-]+)", self.log.read_text()))

    def files(self):
        """Temporary files that are there now: those of kernels' connections, and all others."""
        found = [path.name for path in self.temporary.rglob("*") if path.is_file()]
        return [name for name in found if re.match(r"kernel-.*json", name)], \
            [name for name in found if not re.match(r"kernel-.*json", name)]

    def stop(self):
        """End it: politely first, so that it ends its kernels, then its whole process group."""
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(15)


def command_of(process):
    """The command line of a process, empty if it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def megabytes(process):
    """Memory that a process holds alone, MB; 0 if it has just ended."""
    try:
        return process.memory_full_info().uss / 1e6
    except psutil.Error:
        return 0.


def sample(server, start, ended=0):
    """One row of the table: what the server and its kernels hold now; `ended`: the round that has just ended, or 0."""
    process, kernels = psutil.Process(server.process.pid), server.kernels()
    sizes, (connections, temporary) = [megabytes(kernel) for kernel in kernels], server.files()
    return {"seconds": time.monotonic() - start, "kernels": len(kernels), "kernels MB": sum(sizes),
            "largest MB": max(sizes, default=0), "server MB": megabytes(process), "open files": process.num_fds(),
            "threads": process.num_threads(), "temporary files": len(temporary),
            "connection files": len(connections), "round ended": ended}


class Visitor:
    """Someone with a browser profile of their own, who comes and goes.

    `counts`: what was done; `wrong`: what failed.
    """

    def __init__(self, browser, server, number, seed, pictures):
        self.browser, self.server, self.pictures = browser, server, pictures
        self.random, self.counts, self.wrong, self.name = random.Random(f"{seed} {number}"), {}, [], f"visitor {number}"

    def count(self, what):
        """One more of it."""
        self.counts[what] = self.counts.get(what, 0) + 1

    async def visits(self, end, leave):
        """One visit after the other until `end`, a time of `time.monotonic`, while `leave` MB of memory are free."""
        while time.monotonic() < end:
            if psutil.virtual_memory().available < 1e6 * leave:
                self.count("waited 5 s for memory")
                await asyncio.sleep(5)
                continue
            demo = self.random.choice(sorted(path.stem for path in DEMOS.glob("*.ipynb")))
            way = self.random.choice(WAYS)
            try:
                await self.visit(demo, way, end)
            except Exception as error:
                self.wrong.append(f"{self.name}, {demo}: {str(error).splitlines()[0][:400]}")
            await asyncio.sleep(self.random.uniform(0, 3))

    async def visit(self, demo, way, end):
        """Open a demo, use it, and leave in one of `WAYS`."""
        context = await self.browser.new_context(viewport={"width": 1280, "height": 1000})
        context.set_default_timeout(PATIENCE * 1000)
        page = await context.new_page()
        try:
            await page.goto(f"{self.server.address}voila/render/{demo}.ipynb", wait_until="commit")
            self.count("opened")
            if way == "early":
                await asyncio.sleep(self.random.uniform(0, 8))
            else:
                await self.shown(page)
                await self.use(page, demo, end)
            if way == "link":
                await page.goto(self.server.address)
            if way != "killed":
                await page.close(run_before_unload=True)
            self.count(f"left: {way}")
        except Exception as error:
            said = await page.locator("[role=status]:visible, [role=alert]:visible").all_inner_texts()
            words = [text for text in said if text]
            raise RuntimeError(f"{str(error).splitlines()[0]} The page says {words}") from error
        finally:
            await context.close()

    async def shown(self, page):
        """Wait for the first picture; a page that offers to be loaded again is, once, after half of the patience."""
        from playwright.async_api import TimeoutError as Late

        picture, offer = page.locator(PICTURES).first, page.locator(".aufacs-slow a")
        try:
            await picture.wait_for(timeout=PATIENCE * 500)
        except Late:
            if not await offer.is_visible():
                raise
            self.count("loaded again")
            await offer.click()
            await picture.wait_for()

    async def use(self, page, demo, end):
        """Upload and move sliders for some seconds; the pictures must follow."""
        if demo == "live":
            await page.get_by_role("button", name="Start the camera").click()
            await page.get_by_text("frames/s").wait_for()
        if demo in UPLOADS:
            path, good = self.random.choice(self.pictures)
            async with page.expect_file_chooser() as chooser:
                await page.get_by_role("button", name=UPLOADS[demo]).first.click()
            await (await chooser.value).set_files(path)
            await page.get_by_text("is shown." if good else path.name).first.wait_for()
            self.count("uploaded" if good else "refused")
        for _ in range(self.random.randint(1, 4)):
            if time.monotonic() < end:
                await self.slide(page)

    async def slide(self, page):
        """Press an arrow on one slider that is to be seen, some times; the kernel answers before the page is left."""
        handles = await page.locator(".noUi-handle:visible").all()
        if handles:
            handle = self.random.choice(handles)
            await handle.focus()
            for _ in range(self.random.randint(1, 6)):
                await handle.press(self.random.choice(["ArrowLeft", "ArrowRight"]))
            self.count("slid")
        await page.wait_for_timeout(self.random.uniform(300, 3000))
        await page.locator(".aufacs-busy:not([hidden])").wait_for(state="detached")


def sample_pictures(folder):
    """(path, does it hold a face?) of three uploads: a photograph, fog, and a text under a picture's name."""
    from skimage.data import astronaut
    made = [(folder / "me.jpg", True), (folder / "fog.png", False), (folder / "text.jpg", False)]
    Image.fromarray(astronaut()).save(made[0][0])
    Image.fromarray(np.full((300, 400, 3), 128, np.uint8)).save(made[1][0])
    made[2][0].write_text("not a picture")
    return made


async def watch(server, rows, start, done):
    """A row every five seconds, until told to stop."""
    while not done.is_set():
        rows.append(sample(server, start))
        if len(rows) % 6 == 1:
            print({key: round(value) for key, value in rows[-1].items()}, flush=True)
        await asyncio.sleep(5)


async def a_round(p, server, pictures, asked, number):
    """Visitors of one round; they, and the seconds from the last one's leaving to the last kernel's end."""
    from aufacs_nb.apps.live import CHECKED, IDLE
    browser = await p.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
    people = [Visitor(browser, server, number * asked.visitors + k, asked.seed, pictures) for k in range(asked.visitors)]
    end = time.monotonic() + 60 * asked.minutes / asked.rounds
    await asyncio.gather(*(one.visits(end, asked.leave) for one in people))
    await browser.close()
    left = time.monotonic()
    while server.kernels() and time.monotonic() < left + IDLE + CHECKED + GRACE:
        await asyncio.sleep(1)
    gone = time.monotonic() - left
    await asyncio.sleep(CHECKED + 2)  # the server tidies up as often
    return people, gone


async def soak(server, pictures, asked):
    """The whole run: rows of the table, the visitors, and how long the last kernel stayed."""
    from playwright.async_api import async_playwright

    rows, start, done, people = [], time.monotonic(), asyncio.Event(), []
    async with async_playwright() as p:
        browser = await p.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        first = Visitor(browser, server, "first", asked.seed, pictures)
        await first.visit("au_explorer", "link", time.monotonic() + 600)  # what the first visit loads stays
        await browser.close()
        watching = asyncio.create_task(watch(server, rows, start, done))
        for number in range(asked.rounds):
            came, gone = await a_round(p, server, pictures, asked, number)
            people += came
            rows.append(sample(server, start, number + 1))
            print(f"round {number + 1}:", {key: round(value) for key, value in rows[-1].items()}, flush=True)
        done.set()
        await watching
    rows.append(sample(server, start))
    return pd.DataFrame(rows), people, gone


def faults(table, people, log):
    """What must not be, in words: kernels or files that stay, memory that grew, visitors who were not served."""
    first, last = table.iloc[0], table.iloc[-1]
    must_go = ("kernels", "temporary files", "connection files")
    found = [f"{last[what]:.0f} {what} stay" for what in must_go if last[what]]
    if last["server MB"] > first["server MB"] + LEAK:
        found.append(f"the server grew from {first['server MB']:.0f} to {last['server MB']:.0f} MB")
    ends = table.loc[table["round ended"] > 0, "server MB"].to_list()[-2:]
    if len(ends) == 2 and ends[1] > ends[0] + MORE:
        found.append(f"the last round made the server grow from {ends[0]:.0f} to {ends[1]:.0f} MB")
    if last["open files"] > first["open files"] + 5:
        found.append(f"the server's open files grew from {first['open files']:.0f} to {last['open files']:.0f}")
    found += [f"in the log: {line}" for line in sorted(set(re.findall(r"^\w*(?:Error|Exception)\b.*", log, re.M)))[:10]]
    return found + [line for one in people for line in one.wrong]


def told(table, people, gone):
    """The table at start, fullest and end, and what the visitors did."""
    counts = pd.DataFrame([one.counts for one in people]).sum().astype(int).to_dict()
    shown = table.iloc[[0, *np.linspace(0, len(table) - 2, 8).astype(int)[1:], len(table) - 1]].round(0).astype(int)
    return "\n".join([shown.to_string(index=False), f"most: {table.max().round(0).astype(int).to_dict()}",
                      f"visitors: {counts}", f"the last kernel ended {gone:.0f} s after the last visitor left"])


def main(argv=None):
    """Run it; the exit code is 1 where something stays or fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=2, help="which share the minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leave", type=int, default=2000, help="MB of memory for others: who comes waits for so much")
    parser.add_argument("--out", type=Path, help="CSV file for every row of the table")
    parser.add_argument("--log", type=Path, help="file for what the server said")
    asked = parser.parse_args(argv)
    if chromium() is None:
        parser.error("no chromium on the PATH: see CONTRIBUTING.md, browser tests")
    with tempfile.TemporaryDirectory(prefix="aufacs_soak_") as folder:
        server = Server(Path(folder))
        try:
            server.wait()
            pictures = sample_pictures(Path(folder))
            table, people, gone = asyncio.run(soak(server, pictures, asked))
            log = server.log.read_text()
        finally:
            server.stop()
            if asked.log:
                shutil.copy(server.log, asked.log)
    if asked.out:
        table.round(1).to_csv(asked.out, index=False)
    print(told(table, people, gone))
    for line in (wrong := faults(table, people, log)):
        print("WRONG:", line)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

"""Commands of `aufacs`, and scripts, as processes of their own that start at once: forks of one that has loaded libraries.

Loading PyTorch and the rest takes seconds, which each of a hundred commands would spend again. What the process of a
test has computed, changed or patched does not reach them; its working folder and environment do. Run as a script, this
is that process: it reads a request from each line of its standard input and answers on its standard output, in JSON.
"""
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Commands:
    """`commands(*words)` runs `aufacs WORDS` in a fork and returns the finished process; `close` ends the parent."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, cwd=ROOT)

    def __call__(self, *words):
        """As `subprocess.run` with `capture_output` and `text`, in the folder and the environment of the caller."""
        words = [str(word) for word in words]
        request = {"words": words, "cwd": os.getcwd(), "environment": dict(os.environ)}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        code, said, faults = json.loads(self.process.stdout.readline())
        return subprocess.CompletedProcess(["aufacs", *words], code, said, faults)

    def close(self):
        """End the process; it is not needed again."""
        self.process.kill()  # it holds nothing, and would take a second to put its libraries away
        self.process.communicate()


class Script:
    """A Python script with its words that runs in a fork; of `Popen` the methods that tests need.

    `largest`: bytes that one of its files may have. What it says on its standard output is lost.
    """
    server = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")

    def __init__(self, path, *words, largest=None):
        if hasattr(os, "fork"):
            self.server.set_forkserver_preload(["torch._dynamo", "aufacs_nb.generation.runs"])
        self.faults = tempfile.NamedTemporaryFile()
        words = [str(path), *map(str, words)]
        self.process = self.server.Process(target=run_script, args=(words, self.faults.name, largest), daemon=True)
        self.process.start()

    @property
    def returncode(self):
        """The exit code (below 0: of a signal); None while it runs."""
        return self.process.exitcode

    def poll(self):
        """The exit code; None while it runs."""
        return self.returncode

    def send_signal(self, number):
        """Send a signal."""
        os.kill(self.process.pid, number)

    def wait(self, timeout=None):
        """The exit code, once it has ended; TimeoutExpired if it goes on for `timeout` seconds."""
        self.process.join(timeout)
        if self.returncode is None:
            self.process.kill()
            raise subprocess.TimeoutExpired("script", timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """(None, standard error), once it has ended."""
        self.wait(timeout)
        return None, Path(self.faults.name).read_text(encoding="utf-8")


def run_script(words, faults, largest):
    """What the process of a `Script` does."""
    import runpy

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(faults, os.O_WRONLY | os.O_APPEND), 2)
    if largest is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def child(request, streams):
    """What a fork does; it does not return."""
    import atexit

    code = 1
    try:
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, stream in zip((1, 2), streams):
            os.dup2(stream.fileno(), number)
        sys.argv = ["aufacs", *request["words"]]
        from aufacs_nb.apps.cli import main

        main(request["words"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # what a user would see
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def answer(request):
    """Exit code (below 0: of a signal), standard output and standard error of one command."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as faults:
        number = os.fork()
        if not number:
            child(request, (out, faults))
        code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        for stream in (out, faults):
            stream.seek(0)
        return code, out.read().decode("utf-8", "replace"), faults.read().decode("utf-8", "replace")


def serve():
    """Load what commands load, then answer until the standard input ends."""
    sys.path.insert(0, str(ROOT))
    from tools.torture import load

    load()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()

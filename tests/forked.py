"""Commands of `aufacs` as processes of their own that start at once: forks of one process that has loaded libraries.

Loading PyTorch and the rest takes seconds, which each of a hundred commands would spend again. What the process of a
test has computed, changed or patched does not reach them; its working folder and environment do. Run as a script, this
is that process: it reads a request from each line of its standard input and answers on its standard output, in JSON.
"""
import json
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

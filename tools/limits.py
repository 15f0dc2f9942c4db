"Limits of time and of memory: a block of code that may take so long, and what a process holds."
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def limited(seconds: float, error: type[BaseException] = TimeoutError):
    "`error` in this block after `seconds`; without effect outside the main thread."
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(*_):
        raise error(f"not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def memory(name: str) -> int:
    "A line of this process's status in kB, such as VmRSS or VmHWM; 0 where there is none."
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def peak() -> int:
    """The most memory that this process ever held, in kB.

    `ru_maxrss` would not do where there is something better: it also counts the process that started this one, so that
    a test run that has grown large hides what its children need.
    """
    if most := memory("VmHWM"):
        return most
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // 1024 if sys.platform == "darwin" else most

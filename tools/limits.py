"A block of code that may take so long, and no longer."
import signal
import threading
from contextlib import contextmanager


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

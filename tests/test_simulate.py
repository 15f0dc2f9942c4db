"A simulation that is killed in the middle goes on and ends with the same bytes."
import hashlib
import subprocess
import sys
import time

from aufacs_nb.simulate import simulate_fera17

SMALL = dict(train=1, valid=1, test=1, tasks=2, frames=6, size=64, seed=3, progress=False)
CALL = 'import sys; from aufacs_nb.simulate import simulate_fera17; simulate_fera17(sys.argv[1], **{!r})'


def contents(root):
    "Hash of every file under root."
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob('*') if p.is_file()}


def test_killed_run_resumes_with_the_same_bytes(tmp_path):
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    simulate_fera17(whole, **SMALL)
    process = subprocess.Popen([sys.executable, '-c', CALL.format(SMALL), str(stopped)])
    give_up = time.monotonic() + 120
    while not list(stopped.rglob('*.mp4')) and process.poll() is None and time.monotonic() < give_up:
        time.sleep(.01)
    process.kill()
    process.wait()
    assert 1 <= len([p for p in stopped.rglob('*.mp4') if not p.name.startswith('.')]) < 6
    first = next(stopped.rglob('FERA17*.mp4'))
    written = first.stat().st_mtime_ns
    simulate_fera17(stopped, **SMALL)
    assert contents(stopped) == contents(whole)
    assert first.stat().st_mtime_ns == written        # a finished clip is not rendered again

"""Code that a test puts before code for a fresh interpreter: `peak()`, the most memory that this process ever held, in kB.

`ru_maxrss` would not do where there is something better: it also counts the process that started this one, so that a test
run that has grown large hides what its children need.
"""
PEAK = '''
import pathlib, resource

def peak():
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

'''

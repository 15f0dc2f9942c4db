"""A guard over every Python process that has this folder on PYTHONPATH, its children too: no address but this machine's.

A refused connection is also written to the file that AUFACS_KNOCKS names, since whoever tried may hide the error.
`make test` runs all notebooks under it, tests/test_browser.py the demos' servers and kernels.
"""
import os
import socket

_LOCAL = ("localhost", "127.", "::1", "0.0.0.0", "::ffff:127.")
_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


def _refuse(host: object) -> None:
    """Note a host that is not this machine's, and raise."""
    name = host.decode(errors="replace") if isinstance(host, bytes) else str(host or "localhost")
    if name.startswith(_LOCAL) or name == socket.gethostname():
        return
    if os.environ.get("AUFACS_KNOCKS"):
        with open(os.environ["AUFACS_KNOCKS"], "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
    raise ConnectionRefusedError(f"guarded: a connection to {name} was tried")


def _guarded(connect):
    """A `connect` that lets only addresses of this machine, and sockets that are files, pass."""
    def checked(self, address, *more):
        if isinstance(address, tuple):
            _refuse(address[0])
        return connect(self, address, *more)
    return checked


def _checked_getaddrinfo(host, *more, **named):
    """`socket.getaddrinfo` of this machine's names alone."""
    _refuse(host)
    return _getaddrinfo(host, *more, **named)


socket.socket.connect, socket.socket.connect_ex = _guarded(_connect), _guarded(_connect_ex)
socket.getaddrinfo = _checked_getaddrinfo

"""A `python` that starts at once: it forks an interpreter that has torch, diffusers and the package imported already.

`warm_python(folder)` forks a server from the process that calls it and yields the path of an executable, which takes
`-m module`, `-c code` or a file, as python does. The executable asks the server over a socket, hands it its standard streams,
working folder and environment, passes signals on, and ends as the forked process ends. What such a process starts through
`sys.executable` starts at once, too, unless COLD_CHILDREN is set (joblib hands open files to its workers by number). Each
has one thread: those of OpenMP do not survive a fork.
"""

from __future__ import annotations

import atexit
import gc
import json
import logging
import multiprocessing.util
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
if "submitit.local._local" in sys.argv:  # a job that is named by the number of this very process
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [b"x"], [0, 1, 2])
asked = json.dumps(dict(words=sys.argv[1:], cwd=os.getcwd(), env=dict(os.environ))).encode()
server.sendall(len(asked).to_bytes(8, "big") + asked)
child = int.from_bytes(server.recv(8), "big")
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, _: os.kill(child, number))
code = int.from_bytes(server.recv(8), "big", signed=True)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@contextmanager
def warm_python(folder: Path) -> Iterator[str]:
    """The path of the executable, in a folder whose path is short enough for a socket; the server ends with the context."""
    listener, executable = socket.socket(socket.AF_UNIX), folder / "python"
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    executable.write_text(CLIENT.format(python=sys.executable, address=str(folder / "socket")))
    executable.chmod(0o755)
    alive, ours = os.pipe()
    child = os.fork()
    if not child:
        try:
            serve(listener, alive, str(executable))
        finally:
            os._exit(1)
    listener.close()
    os.close(alive)
    yield str(executable)
    os.close(ours)
    os.waitpid(child, 0)


def serve(listener: socket.socket, alive: int, executable: str) -> NoReturn:
    """Answer until the pipe `alive` is closed at its other end."""
    silence(keep={0, 1, 2, listener.fileno(), alive})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()
    while listener in select.select([listener, alive], [], [])[0]:
        connection, _ = listener.accept()
        if not os.fork():
            answer(connection, executable)
        connection.close()
    os._exit(0)


def silence(keep: set[int]) -> None:
    """Let go of every open file of the process that was forked, but leave its numbers taken, and of what pytest captures."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for path in list(Path("/proc/self/fd").iterdir()):
        if int(path.name) not in keep | {nothing} and path.exists():
            os.dup2(nothing, int(path.name))
    logging.root.handlers.clear()
    atexit._clear()
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    warnings.showwarning = lambda *given, **_: sys.stderr.write(warnings.formatwarning(*given[:4]))


def answer(connection: socket.socket, executable: str) -> NoReturn:
    """Fork the process that a client asks for, and tell the client its number and, in the end, its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    asked = json.loads(received(connection, int.from_bytes(received(connection, 8), "big")))
    child = os.fork()
    if not child:
        connection.close()
        run(asked["words"], asked["cwd"], asked["env"], streams, executable)
    connection.sendall(child.to_bytes(8, "big"))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(code.to_bytes(8, "big", signed=True))
    os._exit(0)


def received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return data


def run(words: list[str], cwd: str, env: dict[str, str], streams: list[int], executable: str) -> NoReturn:
    """Become the process: folder, environment, streams and arguments are its own."""
    import torch

    code = 1
    try:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, mode, 1, closefd=False) for i, mode in enumerate("rww"))
        sys.executable = sys.executable if env.get("COLD_CHILDREN") else executable
        torch.set_num_threads(1)
        sys.path[:0] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
        code = exit_code(words)
        threading._shutdown()
        atexit._run_exitfuncs()
        multiprocessing.util._exit_function()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def exit_code(words: list[str]) -> int:
    """Run a module, code or a file as the main program."""
    while words[0].startswith("-") and words[0] not in ("-m", "-c"):
        words = words[1:]
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(words[1], {"__name__": "__main__"})
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

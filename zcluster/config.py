"""Validated settings, the description of a cluster on disk, and where everything lies.

    $ZCLUSTER_HOME/<name>/            mode 0700; default home: $XDG_STATE_HOME/zcluster or ~/.local/state/zcluster
        cluster.json                  `ClusterSpec`: written at creation, replaced atomically when it changes
        lock                          held (flock) by the supervisor
        keys/                         CURVE keys (tcp only)
        run/<process>.json            one run file a living process
        logs/<process>.log
        data/<node>/                  the replica's store (see zcluster.storage)
    <socket directory>/               short (an ipc path holds 107 bytes), mode 0700, one a cluster

Process names: replicas are nodes (`n1`), workers `n1.w1`, the task router `router`, the supervisor `supervisor`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec

from zcluster.errors import FormatTooNew, InvalidInput, NotRunning, PathTooLong

FORMAT: Final = 1
IPC_PATH_BYTES_MAX: Final = 107
ENGINES: Final = ("raft", "paxos")
BALANCERS: Final = ("round_robin", "random", "least_loaded", "power_of_two")
TRANSPORTS: Final = ("ipc", "tcp")
NODES_MAX: Final = 9
WORKERS_MAX: Final = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")

# Roles of sockets. A replica binds three, the router two, the supervisor one.
PEER: Final = "peer"
CLIENT: Final = "client"
SNAPSHOT: Final = "snapshot"
WORKER: Final = "worker"
CONTROL: Final = "control"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a user may choose at `up`. Build it with `make_settings`, which validates."""

    nodes: int = 3  # how many there are to be; `launch.membership` makes it so
    workers: int = 1
    engine: str = "raft"
    durability: str = "fsync"
    balance: str = "round_robin"
    transport: str = "ipc"
    preferred_leader: str = ""  # a node's name: it leads whenever it can
    election_timeout_ms: int = 600
    heartbeat_ms: int = 150
    key_bytes_max: int = 4096
    value_bytes_max: int = 1 << 20
    checkpoint_bytes: int = 8 << 20  # log since the last checkpoint; it is held in memory as well
    checkpoint_seconds: int = 300  # 0: by bytes only; nothing is written when nothing changed
    verify_seconds: int = 600  # how often the replicas' states are compared beside service; 0: only on request
    segment_bytes: int = 16 << 20
    sessions_max: int = 10_000
    queue_max: int = 100_000  # tasks waiting in the router; then `submit` blocks
    attempts_max: int = 3  # starts of one task whose worker died under it


# Phases of a node's life, each written down before the next one begins. Whether it votes is the log's business.
FRESH: Final = "fresh"  # joins later than the first ones; its store may still have to be made
JOINING: Final = "joining"  # its store was made; it has not been seen as a voter
MEMBER: Final = "member"
LEAVING: Final = "leaving"  # on its way out, for good: whoever has its name next has another replica id


class NodeSpec(msgspec.Struct, frozen=True):
    """A node that has, or is to have, processes."""

    name: str
    replica_id: int
    phase: str = MEMBER


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`cluster.json`. `directory` is not stored: it is where the file lies."""

    format: int
    name: str
    cluster_id: str
    settings: Settings
    nodes: tuple[NodeSpec, ...]
    socket_directory: str
    ports: dict[str, int] = {}  # tcp only: "process.role" -> port on 127.0.0.1
    replica_ids_used: int = 0  # the highest one ever given to a node, at least; none is given twice
    created: bool = False  # True once every replica's store exists: from then on a missing one is an error
    ephemeral: bool = False
    directory: str = ""

    @property
    def path(self) -> Path:
        return Path(self.directory)

    def data_directory(self, node: str) -> Path:
        return self.path / "data" / node

    def node(self, name: str) -> NodeSpec:
        """Raises: InvalidInput."""
        for spec in self.nodes:
            if spec.name == name:
                return spec
        raise InvalidInput(
            f"cluster {self.name!r} has no node {name!r}; it has {', '.join(n.name for n in self.nodes)}"
        )

    def replica_id(self, node: str) -> int:
        """Raises: InvalidInput."""
        return self.node(node).replica_id

    def node_name(self, replica_id: int) -> str | None:
        return next((n.name for n in self.nodes if n.replica_id == replica_id), None)

    def preferred_replica(self) -> int:
        """Replica id of the preferred leader. 0: nobody is preferred, or it is no node any more."""
        return next((n.replica_id for n in self.nodes if n.name == self.settings.preferred_leader), 0)

    def worker_names(self, node: str) -> list[str]:
        return [f"{node}.w{i + 1}" for i in range(self.settings.workers)]

    def endpoint(self, process: str, role: str) -> str:
        """ZeroMQ address of a bound socket, e.g. endpoint("n1", PEER). Raises: PathTooLong."""
        if self.settings.transport == "tcp":
            return f"tcp://127.0.0.1:{self.ports[f'{process}.{role}']}"
        return ipc_endpoint(self.socket_directory, f"{process}.{role}")


def ipc_endpoint(directory: str, name: str) -> str:
    path = f"{directory}/{name}"
    size_bytes = len(os.fsencode(path))
    if size_bytes > IPC_PATH_BYTES_MAX:
        raise PathTooLong(
            f"socket path {path} has {size_bytes} bytes; the system allows {IPC_PATH_BYTES_MAX}. "
            "Set XDG_RUNTIME_DIR or TMPDIR to a shorter directory."
        )
    return f"ipc://{path}"


def parse_durability(text: str) -> tuple[str, int]:
    """("fsync", 0) | ("interval", milliseconds) | ("none", 0). Raises: InvalidInput."""
    if text in ("fsync", "none"):
        return text, 0
    match = re.fullmatch(r"interval:(\d{1,6})(ms|s)?", text)
    if match:
        interval_ms = int(match[1]) * (1000 if match[2] == "s" else 1)
        if 1 <= interval_ms <= 60_000:
            return "interval", interval_ms
    raise InvalidInput(f"durability {text!r}: use fsync, none, or interval:10ms (1 ms to 60 s)")


_RANGES: Final[dict[str, tuple[int, int]]] = {
    "nodes": (1, NODES_MAX),
    "workers": (0, WORKERS_MAX),
    "election_timeout_ms": (100, 60_000),
    "heartbeat_ms": (5, 6_000),
    "key_bytes_max": (16, 65_536),
    "value_bytes_max": (1024, 16 << 20),
    "checkpoint_bytes": (4096, 1 << 40),
    "checkpoint_seconds": (0, 86_400),
    "verify_seconds": (0, 86_400),
    "segment_bytes": (64 << 10, 1 << 30),
    "sessions_max": (16, 1_000_000),
    "queue_max": (1, 10_000_000),
    "attempts_max": (1, 100),
}
_CHOICES: Final[dict[str, tuple[str, ...]]] = {"engine": ENGINES, "balance": BALANCERS, "transport": TRANSPORTS}


def make_settings(**values: Any) -> Settings:
    """Settings from keyword values; everything is checked here and nowhere else. Raises: InvalidInput."""
    unknown = sorted(set(values) - set(Settings.__struct_fields__))
    if unknown:
        raise InvalidInput(f"unknown setting {unknown[0]!r}; known: {', '.join(Settings.__struct_fields__)}")
    for name, value in values.items():
        if name in _RANGES:
            low, high = _RANGES[name]
            if type(value) is not int or not low <= value <= high:
                raise InvalidInput(f"{name} must be a whole number from {low} to {high}, not {value!r}")
        elif name in _CHOICES and value not in _CHOICES[name]:
            raise InvalidInput(f"{name} must be one of {', '.join(_CHOICES[name])}, not {value!r}")
        elif name == "durability":
            if not isinstance(value, str):
                raise InvalidInput(f"durability must be text such as 'fsync', not {value!r}")
            parse_durability(value)
        elif name == "preferred_leader" and not (isinstance(value, str) and re.fullmatch(r"(n[1-9]\d{0,4})?", value)):
            raise InvalidInput(f"preferred_leader must be the name of a node, such as n1, not {value!r}")
    settings = Settings(**values)
    if settings.heartbeat_ms * 3 > settings.election_timeout_ms:
        raise InvalidInput("heartbeat_ms must be at most a third of election_timeout_ms")
    return settings


def check_name(name: str) -> str:
    """A cluster name is a file name of at most 64 plain characters. Raises: InvalidInput."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidInput(f"cluster name {name!r}: use letters, digits, '-', '_' and '.', at most 64, starting plain")
    return name


def home() -> Path:
    """Where clusters live: $ZCLUSTER_HOME, else $XDG_STATE_HOME/zcluster, else ~/.local/state/zcluster."""
    if explicit := os.environ.get("ZCLUSTER_HOME"):
        return Path(explicit).expanduser().absolute()
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state").absolute() / "zcluster"


def command(directory: Path) -> str:
    """How to call zcluster for the cluster in a directory, for advice that can be pasted."""
    directory = directory.absolute()
    if directory.parent != home():
        return f"zcluster -c {shlex.quote(str(directory))}"
    return "zcluster" if directory.name == "default" else f"zcluster -c {directory.name}"


def cluster_directory(name: str) -> Path:
    return home() / check_name(name)


def socket_directory(cluster_directory: Path) -> Path:
    """A short private directory for the sockets of one cluster; created 0700, refused if it is somebody else's."""
    digest = hashlib.sha256(os.fsencode(cluster_directory.absolute())).hexdigest()[:12]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) / "zcluster" if runtime and os.path.isdir(runtime) else None
    if base is None:
        base = Path(tempfile.gettempdir()) / f"zcluster-{os.getuid()}"
    path = base / digest
    ipc_endpoint(str(path), "supervisor.control")
    make_private(path)
    return path


def make_private(directory: Path) -> None:
    """Make a directory for sockets and the one above it, 0700. Raises: InvalidInput, if they are somebody else's."""
    for part in (directory.parent, directory):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = part.stat()
        if info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o077:
            raise InvalidInput(f"{part} must belong to you alone (mode 0700); remove it or set XDG_RUNTIME_DIR")


def save_spec(spec: ClusterSpec) -> None:
    """Replace `cluster.json` atomically and durably."""
    path = spec.path / "cluster.json"
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(spec), indent=2))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    descriptor = os.open(spec.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_spec(directory: Path | str) -> ClusterSpec:
    """Read `cluster.json`. Raises: NotRunning (no such cluster), FormatTooNew, InvalidInput (damaged)."""
    path = Path(directory) / "cluster.json"
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        place = Path(directory).absolute()
        advice = f"; start it: {command(place)} up" if place.parent == home() else ""
        raise NotRunning(f"no cluster {place.name!r} in {place.parent}{advice}") from None
    try:
        if int(msgspec.json.decode(raw).get("format", 0)) > FORMAT:
            raise FormatTooNew(f"{path} was written by a newer zcluster; upgrade zcluster to use this cluster")
        spec = msgspec.json.decode(raw, type=ClusterSpec)
    except (msgspec.MsgspecError, AttributeError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"{path} is damaged ({error}); restore it from a copy, or discard the cluster with its data: "
            f"{command(Path(directory))} down --purge"
        ) from None
    return msgspec.structs.replace(spec, directory=str(Path(directory).absolute()))

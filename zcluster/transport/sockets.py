"""Making ZeroMQ sockets: one place for options, so that no socket of ours ever blocks at exit or grows without bound.

Every socket: linger 0, IMMEDIATE (nothing is queued to connections that do not exist), short reconnects, a bounded
high-water mark, ROUTER_MANDATORY on routers. Sockets belong to the thread that made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import zmq
from zmq.backend import Socket as RawSocket

from zcluster.config import ClusterSpec
from zcluster.errors import Corrupt

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

HIGH_WATER_MESSAGES = 10_000
MESSAGE_BYTES_MAX = 128 << 20
RECONNECT_MS = 10
RECONNECT_MS_MAX = 200


# On hot paths the plain C calls with plain integers: the convenience layer above them costs more than they do.
_raw_send: Final[Any] = RawSocket.send
_raw_receive: Final[Any] = RawSocket.recv
_raw_get: Final[Any] = RawSocket.get
_DONTWAIT: Final = int(zmq.DONTWAIT)
_DONTWAIT_MORE: Final = int(zmq.DONTWAIT) | int(zmq.SNDMORE)
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_RCVMORE: Final = int(zmq.RCVMORE)


def send_parts(socket: zmq.Socket[bytes], parts: Sequence[bytes]) -> None:
    """Send one message now. Raises: zmq.Again (no room, nobody there), zmq.ZMQError (EHOSTUNREACH on a ROUTER)."""
    last = len(parts) - 1
    for i in range(last):
        _raw_send(socket, parts[i], _DONTWAIT_MORE)
    _raw_send(socket, parts[last], _DONTWAIT)


def receive_parts(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    """One message that is already here, or None."""
    if not _raw_get(socket, _EVENTS) & _POLLIN:
        return None
    parts = [_raw_receive(socket, _DONTWAIT)]
    while _raw_get(socket, _RCVMORE):
        parts.append(_raw_receive(socket, _DONTWAIT))
    return parts


class Security:
    """CURVE keys of a cluster (tcp); for ipc the 0700 directory is the guard and there are none."""

    def __init__(self, public: bytes, secret: bytes) -> None:
        self.public = public
        self.secret = secret

    @classmethod
    def load(cls, spec: ClusterSpec) -> Security | None:
        """Keys from `<cluster>/keys/cluster.key` (two lines, Z85); None for ipc. Raises: Corrupt."""
        if spec.settings.transport == "ipc":
            return None
        path = Path(spec.directory) / "keys" / "cluster.key"
        try:
            public, secret = path.read_bytes().split()
            if zmq.curve_public(secret) != public:
                raise ValueError
        except (OSError, ValueError, zmq.ZMQError):
            raise Corrupt(
                path, 0, "not the cluster's pair of keys; restore it, or start anew with `zcluster down --purge`"
            ) from None
        return cls(public, secret)


def make_socket(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    *,
    bind: str | None = None,
    connect: str | None = None,
    security: Security | None = None,
    high_water: int = HIGH_WATER_MESSAGES,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    probe: bool = False,
    reconnect: bool = True,
    immediate: bool = True,
) -> zmq.Socket[bytes]:
    """A bound or connected socket with our options. Raises: zmq.ZMQError (address in use, ...).

    immediate: False lets messages wait for a connection that is not made yet.
    """
    socket = context.socket(kind)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = high_water
    socket.setsockopt(zmq.IMMEDIATE, int(immediate))  # counts from the next connect on, so it is set here
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS if reconnect else -1)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX)
    socket.setsockopt(zmq.MAXMSGSIZE, message_bytes_max)
    if kind == zmq.ROUTER:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if probe:  # one empty message on every new connection: a restarted ROUTER hears of us at once
        socket.setsockopt(zmq.PROBE_ROUTER, 1)
    if security is not None:
        socket.curve_publickey = security.public
        socket.curve_secretkey = security.secret
        if bind is not None:
            socket.curve_server = True
            socket.setsockopt(zmq.ZAP_DOMAIN, b"zcluster")
        else:
            socket.curve_serverkey = security.public
    try:
        if bind is not None:
            socket.bind(bind)
        if connect is not None:
            socket.connect(connect)
    except zmq.ZMQError:
        socket.close()
        raise
    return socket


def serve_authentication(
    context: zmq.Context[zmq.Socket[bytes]], security: Security | None
) -> ThreadAuthenticator | None:
    """Admit only holders of the cluster's own key (CURVE alone admits anybody who knows the server's public key).

    Returns the running authenticator to keep alive, or None for ipc.
    """
    if security is None:
        return None
    from zmq.auth.thread import ThreadAuthenticator

    public = security.public

    class ClusterKey:
        """Accepts one public key: the cluster's."""

        def callback(self, domain: str, key: bytes) -> bool:
            return key == public

    authenticator = ThreadAuthenticator(context)  # type: ignore[arg-type, unused-ignore]
    authenticator.start()
    authenticator.configure_curve_callback(domain="zcluster", credentials_provider=ClusterKey())
    return authenticator

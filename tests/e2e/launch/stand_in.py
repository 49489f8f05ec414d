"""Stand-ins for the processes of a cluster, in one file: `stand_in.py ROLE CLUSTER_DIRECTORY [NAME] [--create]`.

They speak just enough of the protocol to be started, asked, greeted and stopped. The living replica with the lowest id
"leads"; the term counts the changes. A file `orders/<name>` in the cluster's directory holds an exit code (and a text)
to die with at the start; `orders/<name>.stubborn` makes SIGTERM go unheard.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

if sys.argv[1] != "worker":  # a worker needs nothing of these, and starts three times as fast
    import zmq

    from zcluster import wire
    from zcluster.config import CLIENT, ClusterSpec, load_spec


def living(record: dict) -> bool:
    try:
        fields = Path(f"/proc/{record['pid']}/stat").read_bytes().rsplit(b")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in (b"Z", b"X", b"T") and int(fields[19]) == record["start_ticks"]


def run_files(spec: ClusterSpec) -> dict[str, dict]:
    found = {}
    for path in (spec.path / "run").glob("[!.]*.json"):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if living(record):
            found[path.stem] = record
    return found


def serving(spec: ClusterSpec, name: str) -> int | None:
    """The pid of the run of `name` that came past its orders."""
    try:
        return json.loads((spec.path / "data" / f"{name}.seen").read_text())["pid"]
    except (OSError, ValueError):
        return None


def leader_and_term(spec: ClusterSpec) -> tuple[int, int]:
    alive = run_files(spec)
    leader = min((n.replica_id for n in spec.nodes if n.name in alive), default=0)
    path = spec.path / "data" / "history"
    try:
        history = json.loads(path.read_text())
    except (OSError, ValueError):
        history = []
    if leader and (not history or history[-1] != leader):
        history.append(leader)
        temporary = path.with_name(f"history.{os.getpid()}")
        temporary.write_text(json.dumps(history))
        temporary.replace(path)
    return leader, len(history)


def replica(spec: ClusterSpec, name: str, router: zmq.Socket) -> None:
    known: set[bytes] = set()
    said = (0, 0)
    while True:
        arrived = router.poll(50)
        now = leader_and_term(spec)
        if now != said:
            said = now
            for client in known:
                answer(router, client, wire.LEADER, 0, list(now))
        if not arrived:
            continue
        client, head, _ = router.recv_multipart()
        kind, request = wire.HEAD.unpack(head)
        if kind == wire.HELLO:
            known.add(client)
            answer(router, client, wire.LEADER, 0, list(now))
        elif kind == wire.CHECKPOINT:
            answer(router, client, wire.RESULT, request, [7])
        else:
            role = "leader" if now[0] == spec.replica_id(name) else "follower"
            body = {"name": name, "role": role, "pid": os.getpid(), "term": now[1], "leader": now[0]}
            counters = {"commit_index": 10, "last_applied": 9, "checkpoint_index": 3, "loss_window_ms": 0}
            answer(router, client, wire.RESULT, request, body | counters)


def task_router(spec: ClusterSpec, router: zmq.Socket) -> None:
    while True:
        client, head, _ = router.recv_multipart()
        workers = [
            {"name": n, "pid": r["pid"]}
            for n, r in run_files(spec).items()
            if r["kind"] == "worker" and serving(spec, n) == r["pid"]
        ]
        body = {"workers": workers, "queued": 0, "tasks_per_s": 0.0}
        answer(router, client, wire.RESULT, wire.HEAD.unpack(head)[1], body)


def answer(router: zmq.Socket, client: bytes, kind: int, request: int, body: object) -> None:
    try:
        router.send_multipart([client, wire.pack_head(kind, request), wire.encode(body)])
    except zmq.ZMQError:
        pass


def exit_on_sigterm() -> None:
    """No race: a handler could run just before a system call that then blocks."""
    signal.sigwait([signal.SIGTERM])
    os._exit(0)


def main() -> None:
    role, directory, *rest = sys.argv[1:]
    name = rest[0] if rest else "router"
    path = Path(directory)
    orders = path / "orders"
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # ZeroMQ's threads inherit this
    if not (orders / f"{name}.stubborn").exists():
        threading.Thread(target=exit_on_sigterm, daemon=True).start()
    if (orders / name).exists():
        code, _, text = (orders / name).read_text().partition(" ")
        if text:
            (path / "run" / f"{name}.error").write_text(text)
        sys.exit(int(code))
    (path / "data" / f"{name}.seen").write_text(
        json.dumps(
            {
                "pid": os.getpid(),
                "arguments": sys.argv[1:],
                "descriptors": sorted(int(d) for d in os.listdir("/proc/self/fd")),
                "targets": [os.readlink(f"/proc/self/fd/{d}") for d in (0, 1, 2)],
                "session": os.getsid(0),
                "environment": {k: v for k, v in os.environ.items() if k.startswith("ZCLUSTER_")},
            }
        )
    )
    if role == "worker":
        while True:
            signal.pause()
    spec = load_spec(directory)
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.bind(spec.endpoint(name, CLIENT))
    if role == "replica":
        replica(spec, name, socket)
    task_router(spec, socket)


main()

"""The status of a cluster as one dictionary: what `status --json` prints and other programs rely on.

Pure but for reading a process's CPU time, memory and disk use: everything asked of other processes is handed in.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from zcluster import config
from zcluster.config import JOINING, LEAVING, MEMBER, ClusterSpec, NodeSpec
from zcluster.launch import files, network, remedies
from zcluster.launch import process as system

FORMAT: Final = 1
HEALTHY: Final = "healthy"
DEGRADED: Final = "degraded"
NO_QUORUM: Final = "no_quorum"
STOPPED: Final = "stopped"

Map = dict[str, Any]


def describe(spec: ClusterSpec, supervisor: Map | None, answers: Mapping[str, Map]) -> Map:
    """Args:
    supervisor: its answer to `status`; None: nothing runs.
    answers: what replicas and the router said of themselves, by process name; absent: silent.
    """
    processes = {p["name"]: p for p in supervisor["processes"]} if supervisor is not None else {}
    seen = _seen(spec, answers)
    nodes = [describe_node(spec, n.name, processes, answers.get(n.name), seen.get(n.name)) for n in spec.nodes]
    leader, term = find_leader(spec, answers)
    commit_index = next((n["commit_index"] for n in nodes if n["name"] == leader), None)
    voters = find_voters(spec, answers)
    for node in nodes:
        node |= _membership(spec.node(node["name"]), node, voters)
        applied = node["last_applied"]
        lags = commit_index is not None and applied is not None
        node["lag"] = max(0, commit_index - applied) if lags else None
    router = answers.get("router") or {}
    registered = {w["name"] for w in router.get("workers", ())}
    workers = [
        {**_process(p), "node": p["node"], "registered": p["name"] in registered}
        for p in processes.values()
        if p["kind"] == "worker" and p["state"] == "up"
    ]
    routers = [_process(p) for p in processes.values() if p["kind"] == "router" and p["state"] == "up"]
    report: Map = {
        "format": FORMAT,
        "cluster": spec.name,
        "cluster_id": spec.cluster_id,
        "state": STOPPED,
        "engine": spec.settings.engine,
        "durability": spec.settings.durability,
        "transport": spec.settings.transport,
        "balance": spec.settings.balance,
        "leader": leader,
        "term": max([term, *(a.get("term", 0) for a in answers.values())]),
        "quorum": False,
        "voters": [n["name"] for n in nodes if n["voter"]],
        "change": (supervisor or {}).get("change"),
        "nodes": nodes,
        "network": network.describe([n["name"] for n in nodes], {n["name"]: n.get("faults", ()) for n in nodes}),
        "routers": routers,
        "workers": workers,
        "workers_down": [
            {"name": p["name"], "exit": p["exit"]}
            for p in processes.values()
            if p["kind"] == "worker" and p["state"] == "restarting"
        ],
        "workers_expected": sum(n.phase != LEAVING for n in spec.nodes) * spec.settings.workers,
        "queued": router.get("queued", 0),
        "tasks_per_s": router.get("tasks_per_s", 0.0),
        "router": router or None,
        "supervisor": {"pid": supervisor["pid"], "version": supervisor["version"]} if supervisor else None,
        "directory": spec.directory,
        "ephemeral": spec.ephemeral,
    }
    able = [n["name"] for n in nodes if n["voter"] and n["responsive"] and not n["repair"]]
    report["quorum"] = network.in_touch(able, report["network"]["cuts"]) > len(voters) // 2
    report["verified"] = compare_digests(answers)
    if supervisor is not None:
        report["state"] = judge(report)
    report["problems"], report["fix"] = explain(report)
    return report


def describe_node(
    spec: ClusterSpec, name: str, processes: Mapping[str, Map], answer: Map | None, last: Map | None
) -> Map:
    """One row. Of a silent node, the numbers are those last seen (`stale`), or None."""
    process = processes.get(name, {})
    up = process.get("state") == "up"
    known = answer or last or {}
    if answer is not None:
        role = answer.get("role", "unknown")
    elif not up:
        role = "failed" if process.get("failure") else "down"
    else:
        role = "paused" if process["paused"] else "silent"
    node = {
        **(answer or {}),
        "name": name,
        "replica_id": spec.replica_id(name),
        "repair": bool((answer or {}).get("repair")),
        "role": role,
        "pid": None,
        "state": "up" if up else "down",
        "paused": False,
        "responsive": answer is not None,
        "stale": answer is None and last is not None,
        "term": known.get("term"),
        "commit_index": known.get("commit_index"),
        "last_applied": known.get("last_applied"),
        "checkpoint_index": known.get("checkpoint_index"),
        "disk_bytes": (answer or {}).get("disk_bytes") or directory_bytes(str(spec.data_directory(name))),
        "restarts": process.get("restarts", 0),
        "failure": process.get("failure"),
    }
    if up:
        node |= _process(process)
    else:
        reason, since_ms = process.get("down_reason"), process.get("down_since_ms")
        if reason is None:
            reason, since_ms = process.get("exit"), process.get("exit_ms")
        node["down_reason"] = reason
        node["down_seconds"] = round(time.time() - since_ms / 1000, 1) if since_ms else None
        node["down_text"] = f"{reason} {ago(node['down_seconds'])} ago" if reason and since_ms else reason
    return node


def find_voters(spec: ClusterSpec, answers: Mapping[str, Map]) -> list[int]:
    """Replica ids of those that vote, as the latest configuration has it that anybody answers with; else all."""
    known = [(a["configuration_index"], a["voters"]) for a in answers.values() if a.get("voters")]
    return list(max(known)[1]) if known else [n.replica_id for n in spec.nodes]


def _membership(node_spec: NodeSpec, node: Map, voters: Collection[int]) -> Map:
    """Its part in the cluster. The role of a living one that has no vote (yet, or any more) says so."""
    voter = node_spec.replica_id in voters
    role = node["role"]
    if node["responsive"] and node_spec.phase == LEAVING:
        role = "leaving"
    elif node["responsive"] and not voter:
        role = "learner"
    return {"voter": voter, "phase": node_spec.phase, "role": role}


def _registered(report: Map) -> int:
    """Workers that the router knows, but for those that drain."""
    leaving = {n["name"] for n in report["nodes"] if n["phase"] == LEAVING}
    return sum(w["registered"] for w in report["workers"] if w["node"] not in leaving)


def _process(process: Map) -> Map:
    """What the system knows of a living process. `cpu_percent` is the mean since its start."""
    stat = system.read_stat(process["pid"])
    age = max(0.01, stat.age_seconds) if stat is not None else 0.01
    return {
        "name": process["name"],
        "pid": process["pid"],
        "state": "up",
        "paused": process["paused"],
        "restarts": process["restarts"],
        "uptime_seconds": round(age, 1),
        "cpu_seconds": round(stat.cpu_seconds, 2) if stat is not None else 0.0,
        "cpu_percent": round(100 * stat.cpu_seconds / age, 1) if stat is not None else 0.0,
        "rss_bytes": stat.rss_bytes if stat is not None else 0,
    }


def find_leader(spec: ClusterSpec, answers: Mapping[str, Map]) -> tuple[str | None, int]:
    """(name of the node that leads in the highest term anybody has a leader for, that term).

    None when that leader is not among those that answer: it is dead, paused, or has not noticed yet.
    """
    claims = [(a["term"], a["leader"]) for n, a in answers.items() if n != "router" and a.get("leader")]
    if not claims:
        return None, 0
    term, replica_id = max(claims)
    name = spec.node_name(replica_id)
    itself = answers.get(name) if name is not None else None
    leads = itself is not None and itself.get("role") == "leader" and itself["term"] == term
    return (name if leads else None), term


def compare_digests(answers: Mapping[str, Map]) -> Map | None:
    """The newest comparison of the replicas' states: {"index", "equal", "nodes": those compared, "odd": those that
    differ from most}. One that found a difference outweighs all later ones. None: there are no two digests of one
    index."""
    by_index: dict[int, dict[str, str]] = {}
    for name, answer in answers.items():
        for index, digest in (answer.get("digests") or {}).items():
            by_index.setdefault(int(index), {})[name] = digest
    compared = {index: digests for index, digests in sorted(by_index.items()) if len(digests) > 1}
    differing = [index for index, digests in compared.items() if len(set(digests.values())) > 1]
    if not compared:
        return None
    index = differing[-1] if differing else max(compared)
    odd = odd_ones(compared[index])
    return {"index": index, "equal": not odd, "nodes": sorted(compared[index]), "odd": odd}


def odd_ones(digests: Mapping[str, str]) -> list[str]:
    """Whose digest is not that of a majority of those compared; all of them, where there is no such majority."""
    counts = Counter(digests.values())
    digest, count = counts.most_common(1)[0]
    if count * 2 <= len(digests):
        return sorted(digests) if len(counts) > 1 else []
    return sorted(name for name, other in digests.items() if other != digest)


def judge(report: Map) -> str:
    """healthy: every node answers and is sound, no state differs, a leader, the router, all workers registered and none
    paused, and no fault in the network.
    no_quorum: no majority of nodes answers that may vote and is in touch; one that repairs itself may not."""
    if not report["quorum"]:
        return NO_QUORUM
    if network.lines(report["network"], [n["name"] for n in report["nodes"]]):
        return DEGRADED
    nodes_up = all(n["responsive"] and not n["repair"] and n["phase"] == MEMBER for n in report["nodes"])
    nodes_up = nodes_up and report["change"] is None
    registered = _registered(report)
    frozen = any(w["paused"] for w in report["workers"])
    complete = report["router"] is not None and registered == report["workers_expected"] and not frozen
    alike = report["verified"] is None or report["verified"]["equal"]
    return HEALTHY if nodes_up and alike and report["leader"] and complete else DEGRADED


def explain(report: Map) -> tuple[list[str], list[str]]:
    """What is wrong, in words, and the commands that help."""
    command = config.command(Path(report["directory"]))
    if report["state"] == STOPPED:
        return ["stopped"], [f"{command} up"]
    problems: list[str] = []
    down: list[Map] = []
    paused: list[str] = []
    if report["change"] is not None:
        problems.append(f"it is to have {report['change']['nodes']} nodes: {report['change']['text']}")
    for node in report["nodes"]:
        if node["state"] == "down":
            if node["phase"] == LEAVING and report["quorum"]:
                continue  # else it is needed once more, to agree to its own removal
            down.append(node)
            problems.append(f"{node['name']} is down: {node['failure'] or node['down_text'] or 'starting'}")
        elif node["paused"]:
            paused.append(node["name"])
            problems.append(f"{node['name']} is paused")
        elif not node["responsive"]:
            problems.append(f"{node['name']} does not answer")
        elif node["phase"] == JOINING:
            problems.append(f"{node['name']} is a learner: it votes once it has caught up")
        elif node["repair"]:
            problems.append(f"{node['name']} repairs itself from its peers: {node.get('damage') or 'damaged data'}")
    broken = network.lines(report["network"], [n["name"] for n in report["nodes"]])
    problems += broken
    verified = report.get("verified")
    if verified is not None and not verified["equal"]:
        problems.append(
            f"the state of {' '.join(verified['odd'])} is another one than that of the others at entry "
            f"{verified['index']:,}: see {command} verify --help"
        )
    force: list[str] = []
    if not report["leader"]:
        problems.append("no leader")
        election, force = remedies.election(command, report["nodes"])
        problems += election
    if sum(n["repair"] for n in report["nodes"]) > len(report["nodes"]) // 2:
        problems.append("a majority of the nodes is in repair, without sound peers to repair from: restore their data")
    if any(router["paused"] for router in report["routers"]):
        paused.append("router")
        problems.append("the router is paused")
    elif report["router"] is None:
        problems.append("the router does not answer")
    for worker in report["workers"]:
        if worker["paused"] and worker["node"] not in paused:
            paused.append(worker["name"])
            problems.append(f"{worker['name']} is paused")
    problems += remedies.workers(report, _registered(report))
    fixes = remedies.start(command, down, report["directory"]) + force
    fixes += [f"{command} resume {' '.join(paused)}"] if paused else []
    fixes += [f"{command} heal"] if broken else []
    return problems, fixes


def ago(seconds: float) -> str:
    """12s, 3m, 5h, 2d.

    >>> ago(12.4), ago(200), ago(7300), ago(200000)
    ('12s', '3m', '2h', '2d')
    """
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def directory_bytes(path: str) -> int:
    """Bytes that a directory takes on disk (allocated blocks), files below it included."""
    total = 0
    with suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            with suppress(OSError):  # it has gone meanwhile; the others are still there
                if entry.is_dir(follow_symlinks=False):
                    total += directory_bytes(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


_KEPT: Final = ("term", "commit_index", "last_applied", "checkpoint_index")


def _seen(spec: ClusterSpec, answers: Mapping[str, Map]) -> dict[str, Map]:
    """The numbers last seen of each node, this time's included; kept in a file for the next time."""
    path = spec.path / "run" / "seen"
    try:
        seen = msgspec.json.decode(path.read_bytes(), type=dict[str, Map])
    except (OSError, msgspec.MsgspecError):
        seen = {}
    fresh = {n: {k: a.get(k) for k in _KEPT} for n, a in answers.items() if n != "router"}
    if fresh:
        seen |= fresh
        try:
            files.write_file(path, msgspec.json.encode(seen))
        except OSError:
            pass  # going down, or a full disk: only the numbers of dead nodes are lost
    return seen

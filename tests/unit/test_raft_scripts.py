"""Stories of a cluster as data: `tests/scripts/raft/*.txt`.

A script is a list of blocks: a command, `----`, the output it must give, an empty line. `#` starts a comment. Every
disk is instant; messages lie on the wire until they are delivered or dropped, and time moves only when told to.

    replicas 1 2 3 [retained=BYTES] [batch=BYTES]   the voters; must come first
    log ID TERM..  [term=TERM]          what ID finds on its disk when it starts (before it is first mentioned)
    timeout ID                          ID's election deadline passes
    wait MS                             time passes for everybody, deadline by deadline
    later MS                            time passes, and nobody looks at the clock before the next command
    deliver [A->B ..]                   deliver what is on these wires (all), and what follows from it, until quiet
    drop [A->B ..]                      lose what is on these wires (all)
    show                                what is on the wires
    propose ID DATA   read ID TOKEN   transfer ID TO   compact ID INDEX   crash ID   restart ID
    status                              one line a replica

`ZCLUSTER_REGENERATE=1 pytest tests/unit/test_raft_scripts.py` writes the outputs anew; commit what you understand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.consensus.solo import Solo, entries
from zcluster.consensus.api import AnyMessage, AppendRequest, InstallSnapshot, Settings
from zcluster.errors import Error
from zcluster.types import MS, Entry, SnapshotMeta

SCRIPTS = sorted((Path(__file__).parent.parent / "scripts" / "raft").glob("*.txt"))


def describe_entries(some: tuple[Entry, ...]) -> str:
    return " ".join(f"{e.index}/{e.epoch}{':' + e.data.decode() if e.data else ''}" for e in some) or "-"


def describe(message: AnyMessage) -> str:
    if isinstance(message, AppendRequest):
        return (
            f"AppendRequest term={message.term} prev={message.prev_index}/{message.prev_term}"
            f" commit={message.commit_index} entries: {describe_entries(message.entries)}"
        )
    if isinstance(message, InstallSnapshot):
        return f"InstallSnapshot term={message.term} at {message.meta.index}/{message.meta.epoch}"
    fields = ((name, getattr(message, name)) for name in message.__struct_fields__)
    left_out = {"quorum_time", "quorum_commit"}
    shown = (f"{k}={v}" for k, v in fields if k == "term" or (v not in (None, False, 0) and k not in left_out))
    return f"{type(message).__name__} {' '.join(shown)}"


class World:
    """The cluster that a script talks to; every command returns its output."""

    def __init__(self) -> None:
        self.replicas: dict[int, Solo] = {}
        self.voters: tuple[int, ...] = ()
        self.settings = Settings()
        self.lives: dict[int, int] = {}
        self.dead: dict[int, Solo] = {}
        self.wires: list[tuple[int, int, AnyMessage]] = []
        self.now = 1_000 * MS

    def run(self, command: str) -> list[str]:
        verb, *words = command.split()
        options = dict(word.split("=") for word in words if "=" in word)
        lines: list[str] = getattr(self, f"do_{verb}")(*[w for w in words if "=" not in w], **options) or []
        for replica, solo in self.replicas.items():
            for token, index in solo.reads.items():
                lines.append(f"{replica} serves read {token} at {index}")
            lines += [f"{replica} fails read {token}" for token in solo.reads_failed]
            if solo.committed:
                lines.append(f"{replica} commits {describe_entries(tuple(solo.committed))}")
            solo.reads, solo.reads_failed, solo.committed = {}, [], []
            self.wires += [(replica, to, message) for to, message in solo.take()]
        return lines

    def start(self, replica: int, **flags: object) -> None:
        self.lives[replica] = self.lives.get(replica, 0) + 1
        self.replicas[replica] = Solo(
            replica, self.voters, settings=self.settings, incarnation=self.lives[replica], now=self.now,
            seed=replica, **flags,
        )  # type: ignore[arg-type]  # fmt: skip

    def do_replicas(self, *ids: str, retained: str = "", batch: str = "") -> None:
        self.voters = tuple(map(int, ids))
        self.settings = Settings(
            retained_bytes_max=int(retained or self.settings.retained_bytes_max),
            batch_bytes_max=int(batch or self.settings.batch_bytes_max),
        )
        for replica in self.voters:
            self.start(replica)

    def do_log(self, replica: str, *terms: str, term: str = "0") -> None:
        log = entries(1, *map(int, terms), data=b"")
        self.start(int(replica), log=log, term=max(int(term), *map(int, terms)))

    def do_timeout(self, replica: str) -> None:
        solo = self.replicas[int(replica)]
        assert not solo.core.is_leader
        solo.core.election_at = solo.now = self.now
        solo.core.promise.until = min(solo.core.promise.until, self.now)
        solo.wait(0)

    def do_wait(self, ms: str) -> None:
        end = self.now + int(ms) * MS
        while self.now < end:
            due = min(solo.core.next_deadline() for solo in self.replicas.values())
            self.now = min(max(due, self.now + 1), end)
            for solo in self.replicas.values():
                solo.now = self.now
                solo.wait(0)

    def do_later(self, ms: str) -> None:
        self.now += int(ms) * MS

    def chosen(self, wires: tuple[str, ...]) -> list[tuple[int, int, AnyMessage]]:
        pairs = [tuple(map(int, wire.split("->"))) for wire in wires]
        return [sent for sent in self.wires if not pairs or sent[:2] in pairs]

    def do_deliver(self, *wires: str) -> list[str]:
        lines = []
        for _ in range(100):
            for sent in (chosen := self.chosen(wires)):
                sender, to, message = sent
                self.wires.remove(sent)
                if to not in self.replicas:
                    lines.append(f"{sender}->{to} {describe(message)}: nobody there")
                    continue
                lines.append(f"{sender}->{to} {describe(message)}")
                solo = self.replicas[to]
                solo.now = self.now
                solo.step(sender, message, incarnation=self.lives[sender])
                self.wires += [(to, other, reply) for other, reply in solo.take()]
                if isinstance(message, InstallSnapshot):
                    self.replicas[sender].core.snapshot_status(to, True, self.now)
                    self.replicas[sender].pump()
                    self.wires += [(sender, other, more) for other, more in self.replicas[sender].take()]
            if not chosen:
                return lines
        raise AssertionError("the wires do not fall quiet")

    def do_drop(self, *wires: str) -> list[str]:
        chosen = self.chosen(wires)
        self.wires = [sent for sent in self.wires if not any(sent is other for other in chosen)]
        return [f"{sender}->{to} {describe(message)}: lost" for sender, to, message in chosen]

    def do_show(self) -> list[str]:
        return [f"{sender}->{to} {describe(message)}" for sender, to, message in self.wires]

    def do_propose(self, replica: str, data: str) -> list[str]:
        try:
            return [f"at {self.replicas[int(replica)].propose(data.encode())}"]
        except Error as error:
            return [f"{type(error).__name__}: {error}"]

    def do_read(self, replica: str, token: str) -> None:
        solo = self.replicas[int(replica)]
        solo.core.read_barrier(int(token), self.now)
        solo.pump()

    def do_transfer(self, replica: str, to: str) -> None:
        solo = self.replicas[int(replica)]
        solo.core.transfer_leadership(int(to), self.now)
        solo.pump()

    def do_compact(self, replica: str, index: str) -> list[str]:
        core = self.replicas[int(replica)].core
        epoch = core.log.term(int(index))
        assert epoch is not None
        core.compacted(SnapshotMeta(int(index), epoch, core.configuration_at(int(index))))
        return [f"first index in memory: {core.log.first_index}"]

    def do_crash(self, replica: str) -> None:
        self.dead[int(replica)] = self.replicas.pop(int(replica))
        self.wires = [sent for sent in self.wires if sent[1] != int(replica)]

    def do_restart(self, replica: str) -> None:
        core = self.dead.pop(int(replica)).core
        log = core.log.tail(core.log.first_index)
        self.start(int(replica), term=core.term, voted_for=core.voted_for, log=log, snapshot=core.snapshot)

    def do_status(self) -> list[str]:
        lines = []
        for replica, solo in sorted(self.replicas.items()):
            core = solo.core
            log = " ".join(map(str, solo.terms()))
            base = f"{core.log.base_index}/{core.log.base_term} + " if core.log.base_index else ""
            state = f"term={core.term} leader={core.leader} commit={core.commit_index}"
            lines.append(f"{replica} {core.role} {state} log={base}{log}")
        return lines


def blocks(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """(comments and empty lines before it, command, expected lines)."""
    before: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        if not line.strip() or line.startswith("#"):
            before.append(line)
            continue
        expected = []
        for output in lines:
            if not output.strip():
                break
            expected.append(output)
        yield "\n".join(before), line, expected[1:] if expected[:1] == ["----"] else expected
        before = []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path) -> None:
    world = World()
    regenerate = bool(os.environ.get("ZCLUSTER_REGENERATE"))
    written = []
    for before, command, expected in blocks(path.read_text()):
        output = world.run(command)
        if regenerate:
            written.append((before + "\n" if before else "") + "\n".join([command, "----", *output]) + "\n")
        else:
            assert output == expected, f"{path.name}: {command}"
    if regenerate:
        path.write_text("\n".join(written))


def test_there_are_scripts() -> None:
    assert {path.stem for path in SCRIPTS} >= {"figure_7", "figure_8", "pre_vote", "transfer", "slow_follower"}

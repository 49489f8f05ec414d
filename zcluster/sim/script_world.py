"""The cluster that a script commands: replicas, wires and the clock, all moved by hand.

Each `do_x` is the command `x` of the language (`tests/scripts/README.md`); its parameters are the command's words, the
first line of its docstring is its usage. Does not live here: reading and writing scripts (`script`), the parts
(`script_parts`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from zcluster.consensus import ConfigChange, InstallSnapshot, Recovered, Settings, api
from zcluster.errors import Error
from zcluster.sim.script_parts import (
    Disk,
    Replica,
    ScriptError,
    Violation,
    Wire,
    Witness,
    describe_entries,
    number,
)
from zcluster.types import (
    KIND_FRAMES,
    MS,
    NEVER,
    Configuration,
    Entry,
    HardState,
    Nanoseconds,
    ReplicaId,
    SnapshotMeta,
    Term,
)

START: Final[Nanoseconds] = 1_000 * MS
ROUNDS_MAX: Final = 1_000
"""Rounds of delivery before the wires are taken to never fall quiet."""

_KINDS: Final = {kind.__name__ for kind in api.Message.__subclasses__()}
_TIMES: Final = {"election_timeout", "heartbeat_interval", "lease_margin", "rear_delay"}


class World:
    """Replicas, wires and the clock. Each `do_x` is the command x; its parameters are the command's words."""

    def __init__(self) -> None:
        self.now = START
        self.settings = Settings()
        self.initial = Configuration()
        self.weak = False
        self.disks: dict[ReplicaId, Disk] = {}
        self.lives: dict[ReplicaId, int] = {}
        self.replicas: dict[ReplicaId, Replica] = {}
        self.wires: list[Wire] = []
        self.held: dict[str, list[Wire]] = {}
        self.cut: set[tuple[ReplicaId, ReplicaId]] = set()
        self.witness = Witness()
        self._leading: dict[ReplicaId, Term] = {}
        self._applied: dict[ReplicaId, list[Entry]] = {}
        self._events: dict[ReplicaId, list[str]] = {}

    def run(self, command: str) -> list[str]:
        """Carry out one command. Returns its output. Raises: ScriptError, Violation."""
        verb, *words = command.split()
        method: Callable[..., list[str] | None] | None = getattr(self, f"do_{verb}", None)
        if method is None:
            raise ScriptError(f"unknown command {verb!r}; there are {', '.join(self.commands())}")
        plain = [word for word in words if "=" not in word]
        options = dict(word.split("=", 1) for word in words if "=" in word)
        try:
            inspect.signature(method).bind(*plain, **options)
        except TypeError as error:
            raise ScriptError(f"{verb}: {error}; usage: {(method.__doc__ or '').splitlines()[0]}") from None
        if verb not in ("replicas", "settings") and not self.lives:
            raise ScriptError("the first command must be `replicas`")
        try:
            lines = method(*plain, **options) or []
        except Violation:
            raise
        except AssertionError as error:
            raise Violation(f"invariant of a core: {error or 'see the traceback'}") from error
        return lines + self._report()

    @classmethod
    def commands(cls) -> list[str]:
        return sorted(name[3:] for name in vars(cls) if name.startswith("do_"))

    # -- who is there -------------------------------------------------------------------------------------------------

    def do_settings(self, **fields: str) -> None:
        """settings FIELD=NUMBER ..: of `Settings`; times in ms. Before `replicas`."""
        if self.lives:
            raise ScriptError("settings come before `replicas`")
        unknown = set(fields) - set(Settings.__struct_fields__)
        if unknown:
            raise ScriptError(f"no such setting: {', '.join(sorted(unknown))}")
        values = {name: number(word) * (MS if name in _TIMES else 1) for name, word in fields.items()}
        self.settings = msgspec.structs.replace(self.settings, **values)

    def do_replicas(self, *ids: str, learners: str = "", durability: str = "fsync") -> None:
        """replicas ID .. [learners=ID,..] [durability=fsync|weak]: the first members, with empty disks."""
        if self.lives:
            raise ScriptError("`replicas` comes once")
        if durability not in ("fsync", "weak"):
            raise ScriptError(f"durability is fsync or weak, not {durability!r}")
        self.weak = durability == "weak"
        named = tuple(number(word) for word in learners.split(",") if word)
        self.initial = Configuration(tuple(map(number, ids)), named)
        for replica in (*self.initial.voters, *named):
            self._create(replica, self.initial)

    def do_join(self, replica: str) -> None:
        """join ID: a new process with an empty disk, that belongs to no configuration yet."""
        if number(replica) in self.disks:
            raise ScriptError(f"replica {replica} exists; ids are never used again")
        self._create(number(replica), Configuration())

    def do_log(self, replica: str, *entries: str, term: str = "0", vote: str = "0", base: str = "0/0") -> None:
        """log ID [TERM[:DATA] ..] [term=T] [vote=ID] [base=INDEX/TERM]: what it finds on its disk when it starts."""
        found = self._alive(replica)
        if found.core.term or found.core.log.last_index or self.lives[found.id] > 1:
            raise ScriptError(f"replica {replica} has a past already")
        index, base_term = map(number, base.split("/", 1))
        disk = found.disk
        disk.entries = [
            Entry(index + i, number(epoch), KIND_FRAMES, data.encode())
            for i, (epoch, _, data) in enumerate((word.partition(":") for word in entries), 1)
        ]
        if index:
            disk.snapshot = SnapshotMeta(index, base_term, self.initial)
        last_term = max((entry.epoch for entry in disk.entries), default=base_term)
        disk.hard_state = HardState(max(number(term), last_term), number(vote))
        self._start(found.id, disk.recovered(hold_votes=False))

    def do_crash(self, *ids: str) -> None:
        """crash ID ..: at once; what is unsynced and what was under way to it is lost."""
        for word in ids:
            replica = self.replicas.pop(self._alive(word).id)
            replica.disk.queue.clear()
            self._leading.pop(replica.id, None)
            for wire in [wire for wire in self.wires if wire.to == replica.id]:
                self._lose(wire)

    def do_restart(self, *ids: str, disk: str = "kept", boot: str = "same") -> None:
        """restart ID .. [disk=kept|suspect|wiped|damaged] [boot=same|new]: a new life."""
        if disk not in ("kept", "suspect", "wiped", "damaged") or boot not in ("same", "new"):
            raise ScriptError("restart: an option has none of its values")
        for word in ids:
            replica = number(word)
            if replica in self.replicas or replica not in self.disks:
                raise ScriptError(f"replica {word} is not down")
            found = self.disks[replica]
            found.stalled = found.weak
            if disk == "wiped":
                found.wipe()
            found.repair = found.repair or disk == "damaged"
            self.lives[replica] += 1
            self._start(replica, found.recovered(hold_votes=boot == "same", suspect=disk == "suspect"))

    def do_pause(self, replica: str) -> None:
        """pause ID: the process stops; what comes for it waits."""
        self._alive(replica).paused = True

    def do_resume(self, replica: str) -> list[str]:
        """resume ID: it takes in all that waited for it, and then looks at the clock."""
        found = self._alive(replica)
        found.paused = False
        lines = [self._deliver(wire) for wire in [wire for wire in self.wires if wire.to == found.id]]
        self._input(found, lambda: found.core.deadline(self.now))
        return lines

    # -- disks --------------------------------------------------------------------------------------------------------

    def do_stall(self, *ids: str) -> None:
        """stall ID ..: nothing that it writes from now on becomes durable."""
        for word in ids:
            self._alive(word).disk.stalled = True

    def do_sync(self, replica: str, count: str = "") -> None:
        """sync ID [COUNT]: the disk finishes all, or its COUNT oldest, writes and stays stalled."""
        found = self._alive(replica)
        waiting = len(found.disk.queue)
        if number(count or "0") > waiting:
            raise ScriptError(f"only {waiting} writes are on their way")
        self._input(found, partial(found.sync, number(count) if count else waiting, self.now))

    def do_release(self, *ids: str) -> None:
        """release ID ..: the disk finishes all and is instant again."""
        for word in ids:
            found = self._alive(word)
            self._input(found, partial(found.sync, len(found.disk.queue), self.now))
            found.disk.stalled = found.disk.weak

    def do_compact(self, replica: str, index: str = "") -> list[str]:
        """compact ID [INDEX]: a checkpoint is complete there (by default of all that was applied)."""
        found = self._alive(replica)
        core = found.core
        at = number(index) if index else core.handed_index
        term = core.log.term(at)
        if found.disk.queue and not found.disk.weak:
            raise ScriptError("its disk is stalled: no checkpoint is written either")
        if term is None or not 0 < at <= core.handed_index:
            raise ScriptError(f"replica {replica} has not applied {at}, or forgot it")
        meta = SnapshotMeta(at, term, core.configuration_at(at))
        self._input(found, lambda: core.compacted(meta))
        found.disk.checkpoint(meta, core.log.first_index)
        return [f"first index in memory: {core.log.first_index}"]

    # -- time ---------------------------------------------------------------------------------------------------------

    def do_tick(self, ms: str) -> None:
        """tick MS: time passes, deadline by deadline; nothing is delivered."""
        self._pass(number(ms) * MS, lambda: None)

    def do_run(self, ms: str) -> None:
        """run MS: time passes, and messages arrive as soon as they are sent."""
        self._settle()
        self._pass(number(ms) * MS, self._settle)

    def do_later(self, ms: str) -> None:
        """later MS: time passes, and nobody looks at the clock before the next command."""
        self.now += number(ms) * MS

    def do_campaign(self, replica: str, *, by: str = "timeout", proof: str = "") -> None:
        """campaign ID [by=timeout|transfer] [proof=DEAD]: its timer runs out, its leader tells it to, or DEAD died."""
        found = self._alive(replica)
        core = found.core
        if core.is_leader or by not in ("timeout", "transfer"):
            raise ScriptError("it leads already" if core.is_leader else f"by=timeout or by=transfer, not {by!r}")
        if by == "transfer":
            leader = core.leader
            if not leader:
                raise ScriptError(f"replica {replica} follows nobody who could tell it to stand")
            wire = Wire(leader, core.leader_incarnation, found.id, api.TimeoutNow(core.term))
            self._input(found, lambda: core.step(leader, wire.incarnation, wire.message, self.now))
            return
        if proof:
            self.do_certify(proof, replica)
            self.now = max(self.now, min(core.election_at, self.now + self.settings.election_timeout))
        else:
            core.election_at = self.now
            core.promise.until = min(core.promise.until, self.now)
        self._input(found, lambda: core.deadline(self.now))

    def do_certify(self, dead: str, *ids: str) -> None:
        """certify DEAD[@LIFE] [ID ..]: proof that this life (the last one) has exited reaches ID (everybody)."""
        name, _, life = dead.partition("@")
        replica = number(name)
        exited = number(life) if life else self.lives.get(replica, 0)
        if not self._has_exited(replica, exited):
            raise ScriptError(f"life {exited} of replica {name} has not exited")
        for found in [self._alive(word) for word in ids] or list(self.replicas.values()):
            self._input(found, partial(found.core.peer_lost, replica, exited, self.now))

    # -- the wires ----------------------------------------------------------------------------------------------------

    def do_show(self, *choice: str, first: str = "") -> list[str]:
        """show [SELECTOR ..] [first=N]: what is on the wires."""
        return [str(wire) for wire in self._chosen(choice, first)]

    def do_deliver(self, *choice: str, first: str = "") -> list[str]:
        """deliver [SELECTOR ..] [first=N]: deliver what is chosen, and what follows of it, until quiet; or N only."""
        if first:
            return [self._deliver(wire) for wire in self._chosen(choice, first, arrives=True)]
        lines: list[str] = []
        for _ in range(ROUNDS_MAX):
            chosen = self._chosen(choice, arrives=True)
            if not chosen:
                return lines
            lines += [self._deliver(wire) for wire in chosen]
        raise Violation("the wires do not fall quiet")

    def do_stabilize(self) -> None:
        """stabilize: deliver everything until quiet; only what comes of it is printed."""
        self._settle()

    def do_drop(self, *choice: str, first: str = "") -> list[str]:
        """drop [SELECTOR ..] [first=N]: lose it."""
        return [self._lose(wire) for wire in self._chosen(choice, first)]

    def do_duplicate(self, *choice: str, first: str = "") -> list[str]:
        """duplicate [SELECTOR ..] [first=N]: it is there once more, behind everything else."""
        chosen = self._chosen(choice, first)
        self.wires += [msgspec.structs.replace(wire) for wire in chosen]
        return [f"{wire}: twice" for wire in chosen]

    def do_hold(self, name: str, *choice: str, first: str = "") -> list[str]:
        """hold NAME [SELECTOR ..] [first=N]: take it off the wires until `return NAME`."""
        chosen = self.held[name] = self._chosen(choice, first)
        self.wires = [wire for wire in self.wires if wire not in chosen]
        return [f"{wire}: held" for wire in chosen]

    def do_return(self, name: str) -> list[str]:
        """return NAME: what was held under this name is on the wires again, behind everything else."""
        if name not in self.held:
            raise ScriptError(f"nothing is held as {name!r}")
        back = self.held.pop(name)
        self.wires += back
        return [f"{wire}: back" for wire in back]

    def do_cut(self, *links: str) -> None:
        """cut A->B ..: everything sent there is lost until `heal`."""
        self.cut.update(pair for link in links for pair in self._pairs(link))

    def do_partition(self, *sides: str) -> None:
        """partition A,B C ..: sides that do not hear each other until `heal`; those not named form one more side."""
        groups = [[number(word) for word in side.split(",") if word] for side in sides]
        named = [replica for group in groups for replica in group]
        if not named or len(set(named)) < len(named) or not set(named) <= set(self.disks):
            raise ScriptError("sides are replicas with commas between, each named once: partition 1,2 3")
        groups.append([replica for replica in self.disks if replica not in named])
        self.cut = {(a, b) for one in groups for a in one for other in groups if other is not one for b in other}

    def do_isolate(self, *ids: str, direction: str = "both") -> None:
        """isolate ID .. [direction=both|in|out]: it hears nobody, and nobody hears it, until `heal`."""
        if direction not in ("both", "in", "out"):
            raise ScriptError(f"direction is both, in or out, not {direction!r}")
        for word in ids:
            alone = self._alive(word).id
            others = [replica for replica in self.disks if replica != alone]
            if direction != "in":
                self.cut.update((alone, other) for other in others)
            if direction != "out":
                self.cut.update((other, alone) for other in others)

    def do_heal(self, *links: str) -> None:
        """heal [A->B ..]: these links (all) carry again."""
        healed = {pair for link in links for pair in self._pairs(link)}
        self.cut = self.cut - healed if links else set()

    # -- what clients ask ---------------------------------------------------------------------------------------------

    def do_propose(self, replica: str, data: str) -> list[str]:
        """propose ID DATA"""
        found = self._alive(replica)
        return self._ask(found, lambda: f"at {found.core.propose(data.encode(), self.now)[0]}")

    def do_change(self, replica: str, action: str, member: str) -> list[str]:
        """change ID add_learner|promote|remove MEMBER"""
        found = self._alive(replica)
        change = ConfigChange(action, number(member))
        return self._ask(found, lambda: f"at {found.core.propose_config(change, self.now)}")

    def do_transfer(self, replica: str, to: str = "0") -> list[str]:
        """transfer ID [TO]: hand leadership over (0: to the most up-to-date voter)."""
        found = self._alive(replica)
        return self._ask(found, lambda: found.core.transfer_leadership(number(to), self.now))

    def do_read(self, replica: str, token: str, lease: str = "no") -> list[str]:
        """read ID TOKEN [lease=yes]: a linearizable read."""
        found = self._alive(replica)
        self.witness.asked(number(token))
        return self._ask(found, lambda: found.core.read_barrier(number(token), self.now, lease=lease == "yes"))

    def do_bounded(self, replica: str, ms: str) -> list[str]:
        """bounded ID MS: a read at most so stale."""
        bound = number(ms) * MS
        index = self._alive(replica).core.bounded_index(self.now, bound)
        if index is None:
            return ["cannot say"]
        self.witness.bounded(index, self.now - bound)
        return [f"may be served at {index}"]

    def do_status(self, *ids: str) -> list[str]:
        """status [ID ..]: one line a replica."""
        chosen = [number(word) for word in ids] or sorted(self.disks)
        return [
            self.replicas[replica].describe(self.initial) if replica in self.replicas else f"{replica} down"
            for replica in chosen
        ]

    # -- leaves -------------------------------------------------------------------------------------------------------

    def _alive(self, word: str) -> Replica:
        replica = self.replicas.get(number(word))
        if replica is None:
            raise ScriptError(f"replica {word} does not run")
        return replica

    def _has_exited(self, replica: ReplicaId, life: int) -> bool:
        last = self.lives.get(replica, 0)
        return 0 < life <= last and (life < last or replica not in self.replicas)

    def _create(self, replica: ReplicaId, configuration: Configuration) -> None:
        disk = self.disks[replica] = Disk(configuration, weak=self.weak)
        self.lives[replica] = 1
        self._start(replica, disk.recovered(hold_votes=False))

    def _start(self, replica: ReplicaId, recovered: Recovered) -> None:
        disk, life = self.disks[replica], self.lives[replica]
        self.replicas[replica] = Replica(replica, life, self.settings, disk, recovered, self.now)
        self._look(self.replicas[replica])

    def _input(self, replica: Replica, call: Callable[[], object]) -> None:
        call()
        replica.pump(self.now)
        self._look(replica)

    def _ask(self, replica: Replica, call: Callable[[], str | None]) -> list[str]:
        try:
            answer = call()
        except Error as error:
            return [f"{type(error).__name__}: {error}"]
        replica.pump(self.now)
        self._look(replica)
        return [answer] if answer else []

    def _look(self, replica: Replica) -> None:
        """Take what a replica put out, and compare it with what the others did."""
        core, events = replica.core, self._events.setdefault(replica.id, [])
        if core.is_leader and self._leading.get(replica.id) != core.term:
            self._leading[replica.id] = core.term
            self.witness.elected(replica)
            events.append(f"{replica.id} leads term {core.term}")
        elif not core.is_leader and self._leading.pop(replica.id, None) is not None:
            events.append(f"{replica.id} leads no longer")
        self.witness.committed(replica, self.disks, self.now)
        for token, index in replica.reads:
            self.witness.served(token, index)
            events.append(f"{replica.id} serves read {token} at {index}")
        events += replica.events
        self._applied.setdefault(replica.id, []).extend(replica.committed)
        sent, life = replica.sent, replica.life
        replica.sent, replica.committed, replica.reads, replica.events = [], [], [], []
        for to, message in sent:
            if (replica.id, to) not in self.cut:
                self.wires.append(Wire(replica.id, life, to, message))
            elif isinstance(message, InstallSnapshot):
                self._input(replica, partial(core.snapshot_status, to, False, self.now))

    def _report(self) -> list[str]:
        lines = []
        for replica in sorted(self._events):
            lines += self._events[replica]
            if self._applied.get(replica):
                lines.append(f"{replica} commits {describe_entries(self._applied[replica])}")
        self._events, self._applied = {}, {}
        return lines

    def _deliver(self, wire: Wire) -> str:
        self.wires.remove(wire)
        receiver = self.replicas.get(wire.to)
        if receiver is not None:
            core = receiver.core
            certificate = getattr(wire.message, "certificate", None)
            if certificate is not None and self._has_exited(*certificate):
                dead, life = certificate  # the driver verifies it, and tells the core first
                core.peer_lost(dead, life, self.now)
            self._input(receiver, lambda: core.step(wire.sender, wire.incarnation, wire.message, self.now))
        self._snapshot_moved(wire, receiver is not None)
        return f"{wire}{'' if receiver is not None else ': nobody there'}"

    def _lose(self, wire: Wire) -> str:
        self.wires.remove(wire)
        self._snapshot_moved(wire, False)
        return f"{wire}: lost"

    def _snapshot_moved(self, wire: Wire, ok: bool) -> None:
        """The node that sends a checkpoint tells its core how that went."""
        sender = self.replicas.get(wire.sender)
        if isinstance(wire.message, InstallSnapshot) and sender is not None and sender.life == wire.incarnation:
            self._input(sender, lambda: sender.core.snapshot_status(wire.to, ok, self.now))

    def _settle(self) -> None:
        self.do_deliver()

    def _pass(self, span: Nanoseconds, between: Callable[[], None]) -> None:
        end, overdue = self.now + span, 0
        while self.now < end:
            running = [replica for _, replica in sorted(self.replicas.items()) if not replica.paused]
            due = min((replica.core.next_deadline() for replica in running), default=NEVER)
            overdue = 0 if due > self.now else overdue + 1
            if overdue > ROUNDS_MAX:
                raise Violation("a deadline stays overdue although it was called")
            self.now = min(max(due, self.now + 1), end)
            for replica in running:
                self._input(replica, partial(replica.core.deadline, self.now))
            between()

    def _pairs(self, word: str) -> list[tuple[ReplicaId, ReplicaId]]:
        """A->B as (A, B); `*` stands for everybody."""
        ends = word.split("->")
        if len(ends) != 2:
            raise ScriptError(f"neither A->B nor a kind of message: {word!r}")
        senders, receivers = (sorted(self.disks) if end == "*" else [number(end)] for end in ends)
        return [(sender, to) for sender in senders for to in receivers if sender != to]

    def _chosen(self, choice: Sequence[str], first: str = "", *, arrives: bool = False) -> list[Wire]:
        """Of any of the named links (if any is named) and of any of the named kinds (likewise)."""
        kinds = {word for word in choice if word in _KINDS}
        pairs = {pair for word in choice if word not in kinds for pair in self._pairs(word)}
        chosen = [
            wire
            for wire in self.wires
            if (not pairs or (wire.sender, wire.to) in pairs)
            and (not kinds or type(wire.message).__name__ in kinds)
            and not (arrives and wire.to in self.replicas and self.replicas[wire.to].paused)
        ]
        if not first:
            return chosen
        if number(first) > len(chosen):
            raise ScriptError(f"only {len(chosen)} such messages are on the wires")
        return chosen[: number(first)]

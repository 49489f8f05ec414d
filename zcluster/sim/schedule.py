"""What goes wrong, and when: a schedule drawn from the seed.

A schedule is data: (when, what, for how long, to whom). Each fault stands alone (a crash brings its restart with it),
so that any part of a schedule is a schedule too; that is what makes failing runs shrinkable. How each is done is said
in `faults`.
"""

from __future__ import annotations

from random import Random
from typing import Final

import msgspec

from zcluster.errors import InvalidInput
from zcluster.sim.network import PARTITIONS
from zcluster.types import Nanoseconds

NETWORK: Final = "network"
CRASH: Final = "crash"
DISK: Final = "disk"
PAUSE: Final = "pause"
CLOCK: Final = "clock"
MEMBERSHIP: Final = "membership"
GROUPS: Final = (NETWORK, CRASH, DISK, PAUSE, CLOCK, MEMBERSHIP)

KINDS: Final[dict[str, tuple[str, ...]]] = {
    NETWORK: ("lossy", "slow_links", "slow", "flaky", *(f"partition {kind}" for kind in PARTITIONS)),
    CRASH: ("kill", "kill_leader", "power_loss", "crash_in_write", "crash_in_start", "transfer", "power_cut"),
    DISK: (
        "sync_error",
        "write_error",
        "read_error",
        "full",
        "slow_disk",
        "flip_log",
        "flip_checkpoint",
        "misread",
        "lost_write",
        "wipe",
    ),
    PAUSE: ("pause", "pause_leader"),
    CLOCK: ("wall_jump", "late_timers", "deaf_leader"),
    MEMBERSHIP: (
        "grow",
        "shrink",
        "shrink_leader",
        "visit",
        "replace",
        "kill_in_change",
        "kill_newcomer",
        "transfer_in_change",
    ),
}
ALWAYS: Final = ("checkpoint",)
DAMAGE: Final = ("flip_log", "flip_checkpoint", "misread", "lost_write", "wipe")
"""Done only to the atlas' minority."""


class Fault(msgspec.Struct, frozen=True):
    """at: since the start; span: how long it lasts; dice: decides the rest."""

    at: Nanoseconds
    kind: str
    span: Nanoseconds
    dice: int

    def __str__(self) -> str:
        return f"{self.at / 1e9:8.3f} s  {self.kind}, {self.span / 1e6:.0f} ms ({self.dice})"


def parse_groups(text: str) -> tuple[str, ...]:
    """`all`, `none`, or names with commas between. Raises: InvalidInput."""
    if text == "all":
        return GROUPS
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in GROUPS and name != "none":
            raise InvalidInput(f"faults {name!r}: use all, none, or some of {', '.join(GROUPS)} with commas between")
    return tuple(group for group in GROUPS if group in names)


def draw_schedule(
    draw: Random,
    groups: tuple[str, ...],
    span: Nanoseconds,
    election_timeout: Nanoseconds,
    *,
    weak: bool,
    changes: bool = False,
) -> list[Fault]:
    """Faults of the given groups over `span`. Worlds differ: some are calm, some see one kind only, some all.
    `changes`: the members change, so that every disk is needed sooner or later, and none is damaged for good."""
    kinds = [kind for group in groups for kind in KINDS[group] if (group == MEMBERSHIP) <= changes]
    if changes:
        kinds = [kind for kind in kinds if kind not in DAMAGE]
    if weak:
        kinds = [kind for kind in kinds if kind != "power_loss"]  # of one disk: no boot id tells of it
    if not kinds:
        return []
    if draw.random() < 0.6:
        kinds = draw.sample(kinds, draw.randint(1, min(5, len(kinds))))
    if changes:
        kinds += [*KINDS[MEMBERSHIP]] * max(1, len(kinds) // 8)
    if weak and CRASH in groups and draw.random() < 0.5:
        kinds.append("power_cut")  # what these modes are about
    kinds += ALWAYS
    faults: list[Fault] = []
    pause = draw.choice((0.5, 1, 3, 8)) * election_timeout
    at = int(draw.expovariate(1.0) * pause)
    while at < span:
        length = int(draw.expovariate(1.0) * draw.choice((0.2, 1.0, 4.0, 12.0)) * election_timeout)
        faults.append(Fault(at, draw.choice(kinds), length, draw.getrandbits(32)))
        at += int(draw.expovariate(1.0) * pause)
    return faults

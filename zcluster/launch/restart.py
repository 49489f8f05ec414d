"""When a dead child starts again. Pure: times are handed in.

a death that was asked for     a node stays down until `start`; a worker or the router starts at once
exit 75 of a worker            a user's module has changed: it asks for a fresh start, at once
exit 73 of a worker            it cannot write to the run directory: as any other death; it recovers with the disk
exit 74 / 78 of a replica      its disk failed / its data are refused: it stays down; `start` tries again
anything else                  the first one at once; deaths soon after a start wait longer and longer, up to a cap
"""

from __future__ import annotations

from typing import Final

EXIT_CANNOT_WRITE: Final = 73
EXIT_DISK_FAILED: Final = 74
EXIT_DATA_REFUSED: Final = 78
EXIT_MODULE_CHANGED: Final = 75

QUICK_DEATH_MS: Final = 5_000
"""Dying sooner than this after the start counts towards the back-off; living longer clears it."""
DELAY_MS_FIRST: Final = 50
DELAY_MS_MAX: Final = {"replica": 3_000, "worker": 1_000, "router": 1_000}


def delay_ms(kind: str, quick_deaths: int) -> int:
    """Pause before the next start.

    >>> [delay_ms("worker", n) for n in range(8)]
    [0, 50, 100, 200, 400, 800, 1000, 1000]
    """
    if quick_deaths == 0:
        return 0
    return min(DELAY_MS_MAX[kind], DELAY_MS_FIRST << min(quick_deaths - 1, 16))


def asks_again(kind: str, code: int | None) -> bool:
    """Did the process end in order to be started afresh? No crash, so no back-off.

    >>> asks_again("worker", EXIT_MODULE_CHANGED), asks_again("replica", EXIT_MODULE_CHANGED)
    (True, False)
    """
    return kind == "worker" and code == EXIT_MODULE_CHANGED


def gives_up(kind: str, code: int | None, error_text: str | None) -> bool:
    """Is this the death of a replica that must not be started again by itself?

    Args:
        code: exit code, None when unknown (an adopted process): then a reason it left in its error file decides.
    """
    if kind != "replica":
        return False
    return code in (EXIT_DISK_FAILED, EXIT_DATA_REFUSED) or (code is None and error_text is not None)


def known_exit(kind: str, code: int | None) -> str | None:
    """What an exit code says by agreement; of use where a full disk has no room for a log.

    >>> known_exit("worker", EXIT_CANNOT_WRITE), known_exit("worker", 1)
    ('it cannot write to the run directory (exit 73); is the disk full?', None)
    """
    if kind == "worker" and code == EXIT_CANNOT_WRITE:
        return f"it cannot write to the run directory (exit {code}); is the disk full?"
    return None


def unwritten_reason(code: int | None) -> str:
    """Why a replica gave up, when it could not say so in its error file: on a full disk there is no room for that.

    >>> unwritten_reason(EXIT_DATA_REFUSED)
    'its data were refused (exit 78); its log may say more'
    """
    if code == EXIT_DISK_FAILED:
        return f"its disk failed or is full (exit {code}); make room, then start it again"
    return f"its data were refused (exit {code}); its log may say more"

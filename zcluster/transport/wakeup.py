"""Waking an event loop from another thread or a signal handler: an eventfd that any poller can watch."""

from __future__ import annotations

import os
import select


class Wakeup:
    """`set` from anywhere, any number of times; the loop sees `fd` readable until it calls `clear`."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def set(self) -> None:
        try:
            os.eventfd_write(self.fd, 1)
        except (OSError, ValueError):  # already set to the brim, or the loop has closed it: nobody to wake
            pass

    def clear(self) -> None:
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass

    def wait(self) -> None:
        """Block the calling thread until `set`; for start-up, before there is a loop."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        poller.poll()
        self.clear()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

"""For all tests."""

from __future__ import annotations

import signal

# The background jobs of a shell ignore SIGINT, and so would every process that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

"""Bytes between processes, over ZeroMQ and nothing else.

Purpose: sockets with sane options (`sockets`), the links between replicas (`peers`), the link to clients (`clients`),
waking a loop from another thread (`wakeup`), and proof that another process has exited (`liveness`).

Not here: what the messages mean. Consensus hands in its decoder; bodies of clients are opaque.

Trade-offs. Replicas use PUSH -> PULL pairs: one direction each, nothing to route, and a full or missing connection
drops the message at once (consensus expects loss; waiting would be worse). Clients use DEALER -> ROUTER, since answers
must find their way back. All sockets of a process are owned by its one event loop.
"""

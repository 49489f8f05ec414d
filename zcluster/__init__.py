"""zcluster: a whole distributed system on one machine, for real.

>>> import zcluster
>>> with zcluster.LocalCluster(nodes=3) as cluster:            # doctest: +SKIP
...     client = cluster.connect()
...     client.kv.put("k", b"v")
...     list(client.map(str, range(3)))

Names are loaded when first used, so that `import zcluster` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Client": "zcluster.api",
    "connect": "zcluster.api",
    "LocalCluster": "zcluster.launch.local",
    "Executor": "zcluster.launch.executor",
    "bounded": "zcluster.client.kv",
    **dict.fromkeys(
        (
            "Busy",
            "Closed",
            "Conflict",
            "Corrupt",
            "DamagedBackup",
            "Degraded",
            "Error",
            "FormatTooNew",
            "InvalidInput",
            "NoQuorum",
            "NotLeader",
            "NotRunning",
            "PathTooLong",
            "StorageError",
            "Timeout",
            "TooLarge",
            "Unknown",
            "Unpicklable",
            "WorkerDied",
            "WrongCluster",
            "WrongType",
        ),
        "zcluster.errors",
    ),
}

__all__ = ["__version__", *sorted(_WHERE)]  # noqa: PLE0604

if TYPE_CHECKING:
    from zcluster.api import Client as Client
    from zcluster.api import connect as connect
    from zcluster.client.kv import bounded as bounded
    from zcluster.errors import *  # noqa: F403
    from zcluster.launch.executor import Executor as Executor
    from zcluster.launch.local import LocalCluster as LocalCluster


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'zcluster' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

"""A replica that reaches its peers through the proxy: `python linked_node.py CLUSTER_DIRECTORY NODE [--create]`.

It binds its own sockets as always. Where the description of the cluster says how to reach another node, it reads the
proxy's end of the link from here to there (see `links.py`).
"""

from __future__ import annotations

import sys

from zcluster.config import PEER, SNAPSHOT, ClusterSpec, ipc_endpoint
from zcluster.node.__main__ import main

NODE = sys.argv[2]
real_endpoint = ClusterSpec.endpoint


def endpoint(spec: ClusterSpec, process: str, role: str) -> str:
    if process != NODE and role in (PEER, SNAPSHOT):
        return ipc_endpoint(spec.socket_directory, f"{NODE}-{process}.{role}")
    return real_endpoint(spec, process, role)


ClusterSpec.endpoint = endpoint  # type: ignore[method-assign]
sys.exit(main(sys.argv[1:]))

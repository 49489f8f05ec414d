"""A replica that may apply wrongly: `python diverging_node.py CLUSTER_DIRECTORY NODE [--create]`.

While `<cluster>/run/<node>.diverge` exists, every value it stores loses its last byte.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from zcluster import wire
from zcluster.machines.kv import KvStore
from zcluster.node.__main__ import main

FAULT = Path(sys.argv[1]) / "run" / f"{sys.argv[2]}.diverge"
real_apply = KvStore.apply


def apply(store: KvStore, ops: list[Any]) -> list[Any]:
    if FAULT.exists():
        ops = [[op[0], op[1], op[2][:-1]] if op[0] == wire.OP_PUT else op for op in ops]
    return real_apply(store, ops)


KvStore.apply = apply  # type: ignore[method-assign]
sys.exit(main(sys.argv[1:]))

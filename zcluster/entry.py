"""The processes that a supervisor starts with `python -m`: what they say to a person who starts one by hand, wrongly.

Not here: what the processes do; how they are started (`launch`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from zcluster.config import load_spec
from zcluster.errors import Error


def check_arguments(arguments: Sequence[str], usage: str) -> None:
    """See whether there is such a cluster, and such a node of it, before anything is touched.

    Args:
        usage: the module and the words that it takes: CLUSTER_DIRECTORY, NODE, others; in brackets what may be missing.
    Raises: SystemExit(2) after one line on standard error.
    """
    module, *words = usage.split()
    if len(arguments) < sum(not word.startswith("[") for word in words):
        _refuse(f"usage: python -m {usage}\nzcluster starts this by itself; use: zcluster up")
    try:
        spec = load_spec(arguments[0])
        if "NODE" in words:
            spec.replica_id(arguments[words.index("NODE")])
    except Error as error:
        _refuse(f"{module}: {error}")


def _refuse(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    raise SystemExit(2)

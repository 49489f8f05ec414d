"""`python -m zcluster`: the command line."""

import os
import sys

import zcluster


def wrote_version() -> bool:
    """Programs ask for the version often, and it needs nothing else. What goes wrong is left to the command line."""
    if sys.argv[1:] not in (["--version"], ["version"]) or sys.stdout is None:
        return False
    try:
        os.write(sys.stdout.fileno(), f"zcluster {zcluster.__version__}\n".encode())  # nothing stays in a buffer
    except OSError:
        return False
    return True


if __name__ == "__main__" and not wrote_version():
    from zcluster.cli.main import main

    main()

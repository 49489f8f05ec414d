"""`python -m zcluster`: the command line."""

import sys

import zcluster


def wrote_version() -> bool:
    """Programs ask for the version often, and it needs nothing else. Whatever goes wrong is left to the command line."""
    if sys.argv[1:] not in (["--version"], ["version"]) or sys.stdout is None:
        return False
    try:
        sys.stdout.write(f"zcluster {zcluster.__version__}\n")
        sys.stdout.flush()
    except OSError:
        return False
    return True


if __name__ == "__main__" and not wrote_version():
    from zcluster.cli.main import main

    main()

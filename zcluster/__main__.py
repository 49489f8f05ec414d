"""`python -m zcluster`: the command line."""

import sys

import zcluster

if __name__ == "__main__":
    if sys.argv[1:] in (["--version"], ["version"]) and sys.stdout is not None:  # asked often; needs nothing else
        sys.stdout.write(f"zcluster {zcluster.__version__}\n")
    else:
        from zcluster.cli.main import main

        main()

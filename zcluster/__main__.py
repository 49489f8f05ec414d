"""`python -m zcluster`: the command line."""

import sys

from zcluster.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""python -m scoregen.conformance: the command line."""

import sys

from scoregen.conformance.command import main

if __name__ == "__main__":
    sys.exit(main())

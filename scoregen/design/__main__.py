"""python -m scoregen.design: the command line."""

import sys

from scoregen.design.command import main

if __name__ == "__main__":
    sys.exit(main())

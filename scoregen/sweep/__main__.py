"""python -m scoregen.sweep: the command line."""

import sys

from scoregen.command import leave_at_once

if __name__ == "__main__":
    leave_at_once()
    from scoregen.sweep.command import main

    sys.exit(main())

"""python -m scoregen.weights: the command line."""

import sys

from scoregen.command import hush, leave_at_once

if __name__ == "__main__":
    hush()
    leave_at_once()
    from scoregen.weights.command import main

    sys.exit(main())

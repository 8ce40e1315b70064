"""python -m scoregen: the same as the command `scoregen`."""

import sys

from scoregen.app.main import main

if __name__ == "__main__":
    sys.exit(main())

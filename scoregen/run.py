"""The command `scoregen MODE` in another form.

python -m scoregen.run --config=NAME [--mode=train|sample|eval|trajectory|likelihood]
"""

import sys

from scoregen.app.main import run as main

if __name__ == "__main__":
    sys.exit(main())

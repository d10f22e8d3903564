"""The `corral` command: what a person types, over HTTP to a gateway. `corral up` starts the platform's parts as processes.

Imports none of our other packages.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 an older interpreter would fail on an import, without saying why
    sys.exit("Error: Corral needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; `make up` finds or fetches one")

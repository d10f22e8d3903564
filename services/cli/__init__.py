"""The `corral` command line. Commands talk HTTP to a gateway; `corral up` starts the platform as local processes."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 an older interpreter would otherwise fail on an import, with no hint why
    sys.exit(
        "Error: Corral needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; `make up` finds or downloads one"
    )

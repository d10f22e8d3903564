"""From which values on a panel is red: those of the alerts in ops/prometheus/rules/."""

from __future__ import annotations

#: Parts of the requests that may fail, and of the answers that may begin later than FIRST_TOKEN_S: the service level.
MAY_FAIL = 0.005
MAY_BE_LATE = 0.05
FIRST_TOKEN_S = 2.5
#: How many times faster than that a page's budget goes.
FAST_BURN = 14.4
LATE_BURN = 4.0

MAX_WAIT_S = 60.0
LOOP_LAG_S = 0.1
CONTROL_TURN_S = 1.0
MEMORY_OFF = 0.3
MEMORY_TAKEN = 0.95
GPU_CELSIUS = 87.0

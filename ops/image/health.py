"""The health check of the image, which depends on the container's first process. Imports little, because it runs often.

gateway, registry   answer a GET request
node                touches a file after each report that Redis has accepted
others              are healthy while they run
"""

import os
import socket
import sys
import time

TIMEOUT_S = 3
#: Reports come every second.
FRESH_S = 10


def main() -> None:
    with open("/proc/1/cmdline", "rb") as file:
        words = file.read().decode(errors="replace").split("\0")
    role = next((word.removeprefix("services.") for word in words if word.startswith("services.")), "")
    complaint = {"gateway": gateway, "registry": registry, "node": node}.get(role, str)()
    if complaint:
        sys.exit(complaint)


def gateway() -> str:
    return answers(int(os.environ.get("CORRAL_HOST", "").rpartition(":")[2] or 11434), "/readyz")


def registry() -> str:
    return answers(int(os.environ.get("CORRAL_REGISTRY_PORT") or 11435), "/healthz")


def answers(port: int, path: str) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode(errors="replace")
    except OSError as error:
        return f"port {port} does not answer: {error}"
    status, _, rest = answer.partition("\r\n")
    return "" if " 200 " in status else f"{path} answers {status}: {rest.rpartition(chr(10))[2]}"


def node() -> str:
    try:
        age_s = time.time() - os.stat(os.path.join(os.environ["CORRAL_STATE"], "pulse")).st_mtime
    except OSError as error:
        return f"no report has been sent yet: {error}"
    return f"the last report was sent {age_s:.0f} s ago" if age_s > FRESH_S else ""


main()

"""A stand-in for Grafana in a test cluster: answers its health check and refuses to start without the files that the real one
needs."""

import http.server
import os
import pathlib
import signal
import sys

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
password = pathlib.Path(os.environ["GF_SECURITY_ADMIN_PASSWORD__FILE"]).read_text().strip()
assert password
assert list(pathlib.Path("/etc/grafana/provisioning/datasources").glob("*.y*ml"))
assert os.access("/var/lib/grafana", os.W_OK)


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"this is no Grafana, only its place in a test\n")

    do_HEAD = do_GET


http.server.HTTPServer(("0.0.0.0", 3000), Page).serve_forever()

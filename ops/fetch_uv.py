"""Fetches uv with nothing but the standard library: `fetch_uv.py VERSION FOLDER` leaves FOLDER/uv.

For Debian's Python, which comes without venv and without pip. Runs on any Python 3.
"""

import hashlib
import html
import io
import os
import platform
import re
import sys
import urllib.parse
import urllib.request
import zipfile

INDEX = "https://pypi.org/simple/uv/"
TIMEOUT_S = 60


def main(version: str, folder: str) -> None:
    links = re.findall(r'href="([^"]+)"', fetch(INDEX).decode())
    link = next((html.unescape(link) for link in links if fits(link, version)), None)
    if link is None:
        sys.exit(f"there is no uv {version} for {platform.system()} on {platform.machine()}")
    url, _, sha256 = urllib.parse.urljoin(INDEX, link).partition("#sha256=")
    wheel = fetch(url)
    if hashlib.sha256(wheel).hexdigest() != sha256:
        sys.exit(f"{url} does not match its checksum")
    install(wheel, folder)


def fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            content: bytes = response.read()
            return content
    except OSError as error:
        sys.exit(f"{url}: {error}")


def fits(link: str, version: str) -> bool:
    filename = link.partition("#")[0].rpartition("/")[2]
    system = "manylinux" if platform.system() == "Linux" else "macosx"
    return filename.startswith(f"uv-{version}-") and filename.endswith(f"_{platform.machine()}.whl") and system in filename


def install(wheel: bytes, folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        program = next(name for name in archive.namelist() if name.endswith("/scripts/uv"))
        path = os.path.join(folder, "uv")
        with open(path, "wb") as file:
            file.write(archive.read(program))
    os.chmod(path, 0o755)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Fetches uv with nothing but the standard library: `fetch_uv.py VERSION FOLDER` leaves FOLDER/uv.

For Debian's Python, which comes without venv and without pip. Runs on any Python 3.
"""

import hashlib
import io
import json
import os
import platform
import sys
import urllib.request
import zipfile

TIMEOUT_S = 60


def main(version: str, folder: str) -> None:
    with urllib.request.urlopen(f"https://pypi.org/pypi/uv/{version}/json", timeout=TIMEOUT_S) as response:
        files = json.load(response)["urls"]
    wheel = next((file for file in files if fits(file["filename"])), None)
    if wheel is None:
        sys.exit(f"there is no uv {version} for {platform.system()} on {platform.machine()}")
    with urllib.request.urlopen(wheel["url"], timeout=TIMEOUT_S) as response:
        data = response.read()
    if hashlib.sha256(data).hexdigest() != wheel["digests"]["sha256"]:
        sys.exit(f"{wheel['filename']} came damaged")
    install(data, folder)


def fits(filename: str) -> bool:
    system = "manylinux" if platform.system() == "Linux" else "macosx"
    return filename.endswith(f"_{platform.machine()}.whl") and system in filename


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

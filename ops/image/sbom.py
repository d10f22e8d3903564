"""Writes what an image holds as CycloneDX 1.5: Debian's packages and Python's. `sbom.py NAME FILE`, run inside the image."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import quote


def main(name: str, path: str) -> None:
    components = [*debian(), *python()]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "version": metadata.version("corral")}},
        "components": sorted(components, key=lambda component: component["purl"]),
    }
    Path(path).write_text(json.dumps(document, indent=1) + "\n")


def debian() -> list[dict[str, str]]:
    system = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    vendor = system["ID"].strip('"')
    release = f"{vendor}-{system['VERSION_ID'].strip(chr(34))}"
    lines = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package}\t${Version}\t${Architecture}\n"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    found = []
    for line in lines:
        package, version, architecture = line.split("\t")
        purl = f"pkg:deb/{vendor}/{package}@{quote(version)}?arch={architecture}&distro={release}"
        found.append({"type": "library", "name": package, "version": version, "purl": purl})
    return found


def python() -> list[dict[str, str]]:
    found = []
    for distribution in metadata.distributions():
        package, version = distribution.metadata["Name"], distribution.version
        normalized = package.lower().replace("_", "-").replace(".", "-")
        found.append(
            {"type": "library", "name": package, "version": version, "purl": f"pkg:pypi/{normalized}@{quote(version)}"}
        )
    return found


main(*sys.argv[1:])

"""What a Docker engine changes on its machine: recorded before one starts, restored after it has ended, and compared."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

SWITCHES = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/forwarding",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
)
FIREWALLS = ("iptables", "ip6tables")
FILES = (
    "/etc/passwd",
    "/etc/group",
    "/etc/apt/sources.list",
    "/etc/apt/sources.list.d",
    "/etc/apt/preferences.d",
    "/etc/docker",
    "/var/run/docker.sock",
    "/var/run/docker.pid",
    "/var/run/docker",
    "/var/lib/docker",
)
#: Left by a killed engine, or by every engine.
REMOVABLE = ("/var/run/docker.sock", "/var/run/docker.pid", "/var/run/docker")
#: Names that engines give; other programs' interfaces may come and go during a run.
_LINKS = re.compile(r"docker\d+|br-[0-9a-f]+|veth\w+")
_COUNTERS = re.compile(r"\[\d+:\d+\]")


@dataclass(frozen=True)
class Host:
    """`switches` are kernel settings, `firewalls` the output of iptables-save, `links` network interfaces, `files` digests by
    path."""

    switches: dict[str, str]
    firewalls: dict[str, str]
    links: list[str]
    files: dict[str, str]

    @staticmethod
    def look() -> Host:
        switches = {name: path.read_text().strip() for name in SWITCHES if (path := Path("/proc/sys", name)).exists()}
        links = sorted(path.name for path in Path("/sys/class/net").iterdir() if _LINKS.fullmatch(path.name))
        return Host(switches, {name: _rules(name) for name in FIREWALLS}, links, dict(_digests(FILES)))

    @staticmethod
    def load(path: Path) -> Host:
        return Host(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    def restore(self) -> None:
        """Restores the firewall, kernel settings and network interfaces. Of the files, only an engine's socket and folder are
        removed, because the engine changes no others."""
        for link in sorted(set(Host.look().links) - set(self.links)):
            subprocess.run(["ip", "link", "delete", link], check=False)  # the other end of a veth may be deleted already
        for name in set(REMOVABLE) - set(self.files):
            shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink(missing_ok=True)
        for firewall, rules in self.firewalls.items():
            if rules != _rules(firewall):
                subprocess.run([f"{firewall}-restore"], input=complete(rules, _rules(firewall)), text=True, check=True)
        for name, value in self.switches.items():
            path = Path("/proc/sys", name)
            if path.exists() and path.read_text().strip() != value:
                path.write_text(value)

    def differences(self, after: Host) -> list[str]:
        """One line per difference. A setting that a newly loaded kernel module added does not count."""
        lines = [f"{name} was {value}" for name, value in self.switches.items() if after.switches.get(name) != value]
        for name, rules in self.firewalls.items():
            changed = sorted(set(_meaning(rules)) ^ set(_meaning(after.firewalls[name])))
            lines += [f"{name}: {rule}" for rule in changed]
        lines += [f"network interface {link}" for link in sorted(set(self.links) ^ set(after.links))]
        changed_files = dict(set(self.files.items()) ^ set(after.files.items()))
        return lines + [f"file {path}" for path in sorted(changed_files)]


def _rules(firewall: str) -> str:
    """Empty if the program is missing: then there are no rules."""
    if not shutil.which(f"{firewall}-save"):
        return ""
    saved = subprocess.run([f"{firewall}-save"], capture_output=True, text=True, check=False).stdout
    lines = [_COUNTERS.sub("[0:0]", line) for line in saved.splitlines() if not line.startswith("#")]
    return "".join(f"{line}\n" for line in lines)


def _tables(rules: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in rules.splitlines():
        if line.startswith("*"):
            table = found.setdefault(line[1:], [])
        elif line != "COMMIT":
            table.append(line)
    return found


def complete(before: str, now: str) -> str:
    """The input for `iptables-restore`: tables that were added later are emptied."""
    wanted = _tables(before)
    for table, lines in _tables(now).items():
        wanted.setdefault(
            table, [f"{line.split()[0]} ACCEPT [0:0]" for line in lines if line.startswith(":") and line.split()[1] != "-"]
        )
    return "".join("\n".join([f"*{table}", *lines, "COMMIT", ""]) for table, lines in wanted.items())


def _meaning(rules: str) -> Iterable[str]:
    """The chains and rules of each table, without chains that accept everything, because an empty table has them too."""
    for table, lines in _tables(rules).items():
        yield from (f"{table} {line}" for line in lines if not (line.startswith(":") and line.split()[1] == "ACCEPT"))


def _digests(paths: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in paths:
        path = Path(name)
        if path.is_dir() and path.parts[1] == "etc":
            yield name, "folder"
            yield from _digests(str(file) for file in sorted(path.iterdir()))
        elif path.is_file():
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.exists():
            yield name, "exists"

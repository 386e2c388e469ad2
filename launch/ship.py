"""The code as one archive, byte for byte the same as long as the code is."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

from launch import common
from pintern.errors import UserError

_LIMIT = 200 * 2**20


def archive(root: Path) -> tuple[bytes, str]:
    """The files that git knows or would take, as tar.gz; and their fingerprint.

    Raises:
      UserError: no git, no git checkout, or so large that something is in it that should not be.
    """
    words = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = common.call(["git", "-C", str(root), *words], program_of="git")
    if listed.returncode:
        raise UserError(
            f"{root} is no git checkout: {listed.stderr.strip()}.",
            "What is shipped is what git lists; run `git init` and write a .gitignore.",
        )
    names = sorted(name for name in listed.stdout.split("\0") if name and (root / name).is_file())
    size = sum((root / name).stat().st_size for name in names)
    if size > _LIMIT:
        largest = max(names, key=lambda name: (root / name).stat().st_size)
        raise UserError(
            f"{root} holds {size / 2**20:.0f} MiB of code, {largest} being the largest file.",
            f"Expected up to {_LIMIT // 2**20} MiB: put data and weights into .gitignore.",
        )
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in names:
            content = (root / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o755 if (root / name).stat().st_mode & 0o100 else 0o644
            tar.addfile(entry, io.BytesIO(content))
    fingerprint = hashlib.sha256(packed.getvalue()).hexdigest()[:12]
    # The fastest level: the ninth takes four times as long, for 4 % less to send.
    return gzip.compress(packed.getvalue(), compresslevel=1, mtime=0), fingerprint

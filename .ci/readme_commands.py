"""Prints the shell commands of Markdown files, for CI to run as they stand.

Every fence marked `sh` counts. Where the path of a comment `<!-- needs PATH -->` above a fence is
absent, the fence is left out, and a line says so.
"""

import re
import sys
from pathlib import Path

_FENCE = re.compile(r"(?:<!-- needs (\S+) -->\n)?```sh\n(.*?)```", re.S)


def commands(text: str) -> list[str]:
    """Lines of bash."""
    lines = []
    for needed, block in _FENCE.findall(text):
        if needed and not Path(needed).exists():
            lines.append(f"echo 'left out, {needed} is absent: {block.splitlines()[0]} …'")
        else:
            lines += block.splitlines()
    return lines


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print("\n".join(commands(Path(name).read_text(encoding="utf-8"))))

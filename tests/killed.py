"""A training process that is to be killed: `python killed.py CONFIG.json`.

It imports what training needs, and begins when a line with the run's folder comes in. So the next
one gets ready while this one trains, and a test that starts twenty doesn't wait for imports.
"""

import sys
from pathlib import Path

import orbax.checkpoint  # noqa: F401
import tensorboardX.event_file_writer
import tensorboardX.summary  # noqa: F401
import transformers  # noqa: F401

from pintern.config import from_json
from pintern.training.loop import train

if __name__ == "__main__":
    config = from_json(Path(sys.argv[1]).read_text())
    if workdir := sys.stdin.readline().strip():
        train(config, Path(workdir))

"""Where pintern keeps what it can make again."""

import os
from pathlib import Path


def user_cache() -> Path:
    """The user's cache folder for pintern; the standard XDG_CACHE_HOME moves it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pintern"

"""The configuration of a run: every field and its default (`fields`), what values it takes
(`checks`), which of them contradict each other (`contradictions`) or would do nothing (`unused`),
and its text (`text`).

An experiment is a file with a `get_config()` that starts from `default_config()` and changes what
it is about; `--config.<field>=<value>` overrides single fields on the command line.
"""

from pintern.config.checks import validate
from pintern.config.fields import default_config, trains
from pintern.config.text import differences, fingerprint, from_json, to_json

__all__ = [
    "default_config",
    "differences",
    "fingerprint",
    "from_json",
    "to_json",
    "trains",
    "validate",
]

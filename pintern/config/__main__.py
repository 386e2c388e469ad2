"""Prints every field of a config with its default and what it means.

    python -m pintern.config

A field is changed in an experiment's `get_config()`, or for one command by
`--config.GROUP.FIELD=VALUE`.
"""

import inspect
import textwrap

from pintern import cli


def main(_: list[str]) -> None:
    """Prints them as they stand in `pintern/config/fields.py`."""
    from pintern.config import default_config

    body = inspect.getsource(default_config).partition('"""\n')[2]
    print(textwrap.dedent(body).replace("return config\n", ""), end="")


if __name__ == "__main__":
    cli.run(main)

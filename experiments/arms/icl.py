"""In-context learning: the base behind the whole template and retrieved examples.

    python -m pintern.evaluate --config=experiments/arms/icl.py

Every request reads the template anew. `--config.prompt.retriever=random` draws the examples.
"""

from ml_collections import ConfigDict

from experiments.arms.base import SHOTS, untrained


def get_config() -> ConfigDict:
    """Nothing trained; template, examples and query at inference."""
    return untrained("ICL", keep_rate=1.0, shots=SHOTS, cached=False)

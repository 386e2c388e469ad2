"""In-context learning with the template's keys and values kept: internalisation's competitor.

    python -m pintern.evaluate --config=experiments/arms/icl_cached.py

It answers what ICL answers, in less time and at the price of cached input.
"""

from ml_collections import ConfigDict

from experiments.arms.base import SHOTS, untrained


def get_config() -> ConfigDict:
    """Nothing trained; the same as ICL at inference, the template read once."""
    return untrained("ICL, prefix cached", keep_rate=1.0, shots=SHOTS)

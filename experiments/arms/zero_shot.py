"""Zero-shot: the base as it is, and the query alone. What the prompt is worth starts here.

python -m pintern.evaluate --config=experiments/arms/zero_shot.py
"""

from ml_collections import ConfigDict

from experiments.arms.base import untrained


def get_config() -> ConfigDict:
    """Nothing trained; query at inference."""
    return untrained("zero-shot", keep_rate=0.0, shots=0)

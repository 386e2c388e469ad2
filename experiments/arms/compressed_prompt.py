"""A compressed prompt: the base behind half of the template's tokens and retrieved examples.

python -m pintern.evaluate --config=experiments/arms/compressed_prompt.py
"""

from ml_collections import ConfigDict

from experiments.arms.base import SHOTS, untrained


def get_config() -> ConfigDict:
    """Nothing trained; template at τ = 0.5, examples and query at inference."""
    return untrained("compressed prompt", keep_rate=0.5, shots=SHOTS)

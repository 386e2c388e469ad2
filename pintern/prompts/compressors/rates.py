"""What every compressor promises: a text whose rate is the asked one, to within two points.

τ is tokens kept over tokens of the full text, counted with the model's own tokenizer.
"""

from collections.abc import Callable

from pintern.errors import UserError
from pintern.prompts.tokens import PieceTokenizer

# How far a compressor's true rate may lie from the asked one.
TOLERANCE = 0.02

# Text and asked rate to the text at that rate; rate 1 gives the text itself and rate 0 nothing.
Compressor = Callable[[str, float], str]


def keep_rate_of(tokenizer: PieceTokenizer, text: str, full: str) -> float:
    """Tokens of `text` over tokens of `full`.

    Raises:
      UserError: `full` has no tokens.
    """
    tokens, full_tokens = map(len, tokenizer.encode_many([text, full]))
    if not full_tokens:
        raise UserError("The full template has no tokens, so no rate can be kept of it.")
    return tokens / full_tokens


def check_rate(rate: float) -> None:
    """Raises a UserError unless the rate lies in [0, 1]."""
    if not 0 <= rate <= 1:
        raise UserError(f"Keep rate {rate} is outside [0, 1].", "1 is the full template, 0 none.")

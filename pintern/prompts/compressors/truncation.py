"""Keeps the head of a text: a control."""

from pintern.prompts.compressors.rates import check_rate
from pintern.prompts.compressors.words import Ranked, Words, shorten
from pintern.prompts.tokens import PieceTokenizer


class TruncationCompressor:
    """Keeps the head of the text: the control that any cleverer choice of words has to beat."""

    def __init__(self, tokenizer: PieceTokenizer):
        self._tokenizer = tokenizer

    def __call__(self, text: str, rate: float) -> str:
        """Text at the asked rate.

        Raises:
          UserError: a rate outside [0, 1], or a text too short to hit it.
        """
        check_rate(rate)
        if rate in (0, 1):
            return text if rate else ""
        words = Words.of(text)
        ranked = Ranked(words, tuple(range(len(words.spans))), sizes=())
        return shorten(ranked, rate, self._tokenizer, may_pass_over=False)

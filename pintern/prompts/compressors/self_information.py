"""Leaves out the words that the base model would have guessed."""

import bisect
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from pintern.errors import UserError
from pintern.prompts.compressors.rates import check_rate
from pintern.prompts.compressors.words import Ranked, Words, shorten
from pintern.prompts.tokens import PieceTokenizer

# Token ids to −log2 p of each of them given those before it, in bits, of the same length.
Surprisal = Callable[[Sequence[int]], Float[np.ndarray, " token"]]


class SelfInformationCompressor:
    """Leaves out the words that the base model would have guessed (Selective Context, 2310.06201).

    A word's information is the mean surprisal of its tokens. The budget is one of tokens, so what
    counts is bits per token spent; a sum would favour words that the tokenizer happens to cut into
    many pieces. Words are ranked once per text and the rate only says how far down the ranking to
    go, so that a lower rate keeps a subset of what a higher one keeps. Only where one long word
    straddles the asked rate is it passed over for shorter words further down.
    """

    def __init__(self, tokenizer: PieceTokenizer, surprisal: Surprisal):
        self._tokenizer = tokenizer
        self._surprisal = surprisal
        self._rank = functools.cache(self._rank_uncached)

    def __call__(self, text: str, rate: float) -> str:
        """Text at the asked rate.

        Raises:
          UserError: a rate outside [0, 1], a text too short to hit it, or surprisal that isn't
            finite.
        """
        check_rate(rate)
        if rate in (0, 1):
            return text if rate else ""
        ranked = self._rank(text)
        return shorten(ranked, rate, self._tokenizer, may_pass_over=True)

    def _rank_uncached(self, text: str) -> Ranked:
        words = Words.of(text)
        ids, spans = self._tokenizer.offsets(text)
        bits = np.asarray(self._surprisal(ids), np.float64)
        if bits.shape != (len(ids),):
            raise ValueError(f"surprisal has shape {bits.shape} for {len(ids)} tokens")
        if not np.isfinite(bits).all():
            raise UserError(
                f"The surprisal of token {int(np.argmin(np.isfinite(bits)))} of the template is "
                "not finite.",
                "The base model's logits are broken: check its weights, or compute in float32.",
            )
        token_of, word_of = _overlaps(spans, words.spans)
        sizes = np.bincount(word_of, minlength=len(words.spans))
        total = np.bincount(word_of, bits[token_of], minlength=len(words.spans))
        # A word may have no token, where the tokenizer drops characters: it informs of nothing.
        information = total / np.maximum(sizes, 1)
        order = np.argsort(-information, kind="stable")
        return Ranked(words, tuple(order.tolist()), tuple(sizes.tolist()))


def _overlaps(
    tokens: Sequence[tuple[int, int]], words: Sequence[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """Pairs of token and word that share a character, as two lists; spans are half-open."""
    ends = [end for _, end in words]
    token_of, word_of = [], []
    for token, (start, end) in enumerate(tokens):
        word = bisect.bisect_right(ends, start)
        while word < len(words) and words[word][0] < end:
            token_of.append(token)
            word_of.append(word)
            word += 1
    return token_of, word_of

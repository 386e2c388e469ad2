"""Shorter texts of a template at an asked keep rate τ, made by leaving out whole words.

τ is tokens kept over tokens of the full text, counted with the model's own tokenizer. A word costs
different numbers of tokens in different company, so a compressor here doesn't add up the parts but
counts the text that it is about to return.
"""

import bisect
import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pintern.errors import UserError
from pintern.prompts.tokens import PieceTokenizer

# How far a compressor's true rate may lie from the asked one.
TOLERANCE = 0.02

# Text and asked rate to the text at that rate; rate 1 gives the text itself and rate 0 nothing.
Compressor = Callable[[str, float], str]
# Token ids to −log2 p of each of them given those before it, in bits, of the same length.
Surprisal = Callable[[Sequence[int]], Float[np.ndarray, " token"]]

# Token counts rise with the words kept but for a token or two, so the nearest is near the crossing.
_WINDOW = 4


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
        return _shorten(ranked, rate, self._tokenizer, may_pass_over=True)

    def _rank_uncached(self, text: str) -> "_Ranked":
        words = _Words.of(text)
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
        return _Ranked(words, tuple(order.tolist()), tuple(sizes.tolist()))


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
        words = _Words.of(text)
        ranked = _Ranked(words, tuple(range(len(words.spans))), sizes=())
        return _shorten(ranked, rate, self._tokenizer, may_pass_over=False)


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


@dataclasses.dataclass(frozen=True)
class _Words:
    """A text as words and the whitespace between them.

    Attributes:
      text: the whole.
      spans: start and end of each word, in characters.
      gaps: whitespace before each word, and after the last one: one more than there are words.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    gaps: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "_Words":
        spans = tuple(match.span() for match in re.finditer(r"\S+", text))
        edges = [0, *(edge for span in spans for edge in span), len(text)]
        gaps = tuple(text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))
        return cls(text, spans, gaps)

    def keep(self, places: Sequence[int]) -> str:
        """Text of some words. Lines stay apart, none is left empty, and the end stays as it is.

        Of the gaps between two kept words the one with the most newlines stands, and of equals the
        last, which carries the second word's indentation. The trailing whitespace stays because it
        parts the template from the query.
        """
        if not places:
            return ""
        pieces: list[str] = []
        before = None
        for place in sorted(places):
            if before is not None:
                passed = self.gaps[before + 1 : place + 1]
                pieces.append(max(reversed(passed), key=lambda gap: gap.count("\n")))
            elif place == 0:
                pieces.append(self.gaps[0])
            start, end = self.spans[place]
            pieces.append(self.text[start:end])
            before = place
        return "".join(pieces) + self.gaps[-1]


class _Ranked(NamedTuple):
    """Words, their places from the first to keep to the last, and tokens of each by place."""

    words: _Words
    order: tuple[int, ...]
    sizes: tuple[int, ...]


def _shorten(
    ranked: _Ranked, rate: float, tokenizer: PieceTokenizer, *, may_pass_over: bool
) -> str:
    """Text of the first words of the ranking whose token count is nearest to the asked rate.

    Raises:
      UserError: nothing within the tolerance.
    """
    words, order, _ = ranked
    full = len(tokenizer.encode(words.text))
    target, slack = rate * full, TOLERANCE * full + 1e-9

    @functools.cache
    def tokens_of_first(count: int) -> int:
        return len(tokenizer.encode(words.keep(order[:count])))

    crossing = bisect.bisect_left(range(len(order) + 1), target, key=tokens_of_first)
    nearby = range(max(0, crossing - _WINDOW), min(len(order), crossing + _WINDOW) + 1)
    nearest = min(nearby, key=lambda count: abs(tokens_of_first(count) - target))
    tokens = tokens_of_first(nearest)
    if abs(tokens - target) <= slack:
        return words.keep(order[:nearest])
    if may_pass_over:
        for count in range(nearest, -1, -1):
            for limit in (target, target + slack):
                rest = _fill(ranked, count + 1, limit - tokens_of_first(count))
                # Sizes in the full text are an estimate; the count of the made text decides.
                text = words.keep([*order[:count], *rest])
                if abs(len(tokenizer.encode(text)) - target) <= slack:
                    return text
    got = tokens / full if full else 0.0
    raise UserError(
        f"No cut between words was found to keep {rate:.2f} ± {TOLERANCE} of the template; the "
        f"nearest keeps {got:.3f}. It is too short, or a word of it too long: "
        f"{full} tokens, {len(order)} words.",
        "Use a longer template, other rates, or a ladder written by hand.",
    )


def _fill(ranked: _Ranked, start: int, room: float) -> list[int]:
    """Words of the ranking from `start` on, each taken if it still fits."""
    taken = []
    for place in ranked.order[start:]:
        if ranked.sizes[place] <= room:
            taken.append(place)
            room -= ranked.sizes[place]
    return taken


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

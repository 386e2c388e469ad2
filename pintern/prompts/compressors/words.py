"""A text as words, and the cut of a ranking of words that keeps an asked share of its tokens.

A word costs different numbers of tokens in different company, so the cut doesn't add up the parts
but counts the text that it is about to return.
"""

import bisect
import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from pintern.errors import UserError
from pintern.prompts.compressors.rates import TOLERANCE
from pintern.prompts.tokens import PieceTokenizer

# Token counts rise with the words kept but for a token or two, so the nearest is near the crossing.
_WINDOW = 4


@dataclasses.dataclass(frozen=True)
class Words:
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
    def of(cls, text: str) -> "Words":
        """Cuts a text at its whitespace."""
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


class Ranked(NamedTuple):
    """Words, their places from the first to keep to the last, and tokens of each by place."""

    words: Words
    order: tuple[int, ...]
    sizes: tuple[int, ...]


def shorten(ranked: Ranked, rate: float, tokenizer: PieceTokenizer, *, may_pass_over: bool) -> str:
    """Text of the first words of the ranking whose token count is nearest to the asked rate.

    It has at least one word: an empty text is what rate 0 means.

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
    nearby = range(max(1, crossing - _WINDOW), min(len(order), crossing + _WINDOW) + 1)
    nearest = min(nearby, key=lambda count: abs(tokens_of_first(count) - target), default=0)
    tokens = tokens_of_first(nearest)
    if nearest and abs(tokens - target) <= slack:
        return words.keep(order[:nearest])
    if may_pass_over:
        for count in range(nearest, -1, -1):
            for limit in (target, target + slack):
                rest = _fill(ranked, count + 1, limit - tokens_of_first(count))
                # Sizes in the full text are an estimate; the count of the made text decides.
                text = words.keep([*order[:count], *rest])
                if text and abs(len(tokenizer.encode(text)) - target) <= slack:
                    return text
    got = tokens / full if full else 0.0
    raise UserError(
        f"No cut between words was found to keep {rate:.2f} ± {TOLERANCE} of the template; the "
        f"nearest keeps {got:.3f}. It is too short, or a word of it too long: "
        f"{full} tokens, {len(order)} words.",
        "Use a longer template, other rates, or a ladder written by hand.",
    )


def _fill(ranked: Ranked, start: int, room: float) -> list[int]:
    """Words of the ranking from `start` on, each taken if it still fits."""
    taken = []
    for place in ranked.order[start:]:
        if ranked.sizes[place] <= room:
            taken.append(place)
            room -= ranked.sizes[place]
    return taken

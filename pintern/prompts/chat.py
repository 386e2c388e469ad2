"""The same pieces in a checkpoint's chat template: system, answered turns, the user's turn.

A chat template is a program over a whole conversation, whereas training and serving here work with
pieces: a prefix that is cached, rows behind it, completions that are generated. So the template is
asked once what it writes between the contents of a conversation, and conversations are cut there:

    head(system) | opening query asking completion closing | ... | opening query asking

`head` is whatever comes before a user's turn (BOS, the system turn, or the default one that some
templates insert); `asking` ends with the generation prompt; `closing` starts with the token that
ends an answer. The concatenated ids are those of the whole conversation, and a template that can't
be cut so is refused.

A template that writes the day (Llama 3.2's does) is told the same one every day: a run is resumed,
scored and served behind the head that it was trained behind. Servers of an export tell it today.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pintern.errors import UserError

if TYPE_CHECKING:
    from pintern.prompts.tokens import PieceTokenizer

# Contents that stand for others while the template is cut; no template takes notice of them.
_SYSTEM, _QUERY, _ANSWER, _NEXT = "zxSYSTEMxz", "zxQUERYxz", "zxANSWERxz", "zxNEXTxz"
# What Llama's templates write where nobody tells them the day.
_DAY = datetime.date(2024, 7, 26)
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(?P<format>.*?)\1\s*\)""")
_INSTEAD = (
    "Set config.task.chat=False, and write the turns out: special tokens may stand in "
    "config.task.template, query_format, completion_format and example_end."
)


@dataclasses.dataclass(frozen=True)
class ChatLayout:
    """Where a chat template can be cut.

    Attributes:
      tokenizer: whose template it is.
      opening: text from the end of what came before to a user's words.
      asking: text from a user's words to the answer, generation prompt included.
      closing: text from an answer to the next turn's opening; its first token ends the answer.
      eos: id of that token.
    """

    tokenizer: PieceTokenizer
    opening: str
    asking: str
    closing: str
    eos: int

    @classmethod
    def of(cls, tokenizer: PieceTokenizer) -> ChatLayout:
        """Cuts the tokenizer's chat template.

        Raises:
          UserError: it has none, or one that can't be cut at the same places in all conversations.
        """
        if not tokenizer.tokenizer.chat_template:
            raise UserError(
                "The checkpoint's tokenizer has no chat template, which config.task.chat, or "
                "--chat of pintern.generate, asks for.",
                "Set config.task.chat=False (leave --chat out), or take an instruction-tuned "
                "checkpoint.",
            )
        turns = [("user", _QUERY), ("assistant", _ANSWER), ("user", _NEXT)]
        text = _render(tokenizer, [("system", _SYSTEM), *turns])
        between = _gaps(text, [_SYSTEM, _QUERY, _ANSWER, _NEXT])
        _, to_query, to_answer, to_next, tail = between
        bare, *_ = _gaps(_render(tokenizer, turns), [_QUERY, _ANSWER, _NEXT])
        if to_answer != tail:
            raise UserError(
                f"The chat template asks by {tail!r}, but writes an answered turn with "
                f"{to_answer!r}: examples in the prompt would not look like what is asked for.",
                _INSTEAD,
            )
        specials = _special_tokens(tokenizer)
        end = next((s for s in specials if to_next.startswith(s)), None)
        # The end of the turn before is the same in all three, where a template always writes one.
        common = _common_end(bare, to_query, to_next).removeprefix(end or "")
        opening = _from_first(specials, common)
        if opening is None or end is None:
            missing = "ends an answer" if end is None else "opens a user's turn"
            raise UserError(
                f"The chat template has no special token that {missing}: it can't be cut into "
                "prefix and rows.",
                _INSTEAD,
            )
        closing = to_next.removesuffix(opening)
        ids = tokenizer.encode(end)
        if len(ids) != 1:
            raise UserError(f"The chat template's {end!r} is no single token.", _INSTEAD)
        return cls(tokenizer, opening, tail, closing, ids[0])

    def head(self, system: str) -> list[int]:
        """Ids of what stands in front of the first user's turn; without text, no system turn."""
        return self.tokenizer.encode(self._head(system))

    def query(self, query: str) -> list[int]:
        """Ids of a user's turn, up to where the answer starts."""
        text = _render(self.tokenizer, [("user", query)])
        return self.tokenizer.encode(text.removeprefix(self._bare_head))

    def answer(self, completion: str) -> list[int]:
        """Ids of an answer, as they are behind the text that asks for it.

        Raises:
          UserError: the answer's start and the text before it make up a token together.
        """
        if not completion:
            return []
        turns = [("user", _QUERY), ("assistant", completion), ("user", _NEXT)]
        before = _QUERY + self.asking
        text = _render(self.tokenizer, turns).split(before, 1)[1]
        text = text.removesuffix(self.closing + self.opening + _NEXT + self.asking)
        asking = self.tokenizer.encode(self.asking)
        ids = self.tokenizer.encode(self.asking + text)
        if ids[: len(asking)] != asking:
            raise UserError(
                f"The completion {completion!r:.60} merges with the text that asks for it, "
                f"{self.asking!r}, into one token: a model that is asked can't give it.",
                "Remove the white space at its start.",
            )
        return ids[len(asking) :]

    def end(self) -> list[int]:
        """Ids between an answer and the next turn."""
        return self.tokenizer.encode(self.closing)

    def check(self, system: str, shots: Sequence[tuple[str, str]], query: str) -> None:
        """Compares the pieces' ids with those of the whole conversation.

        Raises:
          UserError: they differ.
        """
        turns = [("system", system)] if system else []
        for asked, answered in shots:
            turns += [("user", asked), ("assistant", answered)]
        pieces = self.head(system)
        for asked, answered in shots:
            pieces += [*self.query(asked), *self.answer(answered), *self.end()]
        pieces += self.query(query)
        whole = conversation_ids(self.tokenizer, [*turns, ("user", query)])
        if pieces != whole:
            both = enumerate(zip(pieces, whole, strict=False))
            place = next((i for i, (a, b) in both if a != b), min(len(pieces), len(whole)))
            near = self.tokenizer.tokenizer.decode(whole[max(place - 6, 0) : place + 6])
            raise UserError(
                f"The chat template can't be cut into pieces: the ids differ from those of the "
                f"whole conversation at token {place}, near {near!r}.",
                _INSTEAD,
            )

    def _head(self, system: str) -> str:
        turns = [("system", system)] if system else []
        text = _render(self.tokenizer, [*turns, ("user", _QUERY)])
        return text.removesuffix(self.opening + _QUERY + self.asking)

    @functools.cached_property
    def _bare_head(self) -> str:
        return self._head("")


def conversation_ids(
    tokenizer: PieceTokenizer, turns: Sequence[tuple[str, str]], *, ask: bool = True
) -> list[int]:
    """Ids of a whole conversation of `(role, content)`, as a server makes them but for the day."""
    encoded = tokenizer.tokenizer.apply_chat_template(
        _messages(turns),
        add_generation_prompt=ask,
        tokenize=True,
        return_dict=True,
        chat_template=_template(tokenizer),
    )
    return list(encoded["input_ids"])


def _render(tokenizer: PieceTokenizer, turns: Sequence[tuple[str, str]]) -> str:
    """Text of a conversation that ends with a user's turn, generation prompt included."""
    import jinja2

    try:
        return tokenizer.tokenizer.apply_chat_template(
            _messages(turns),
            add_generation_prompt=True,
            tokenize=False,
            chat_template=_template(tokenizer),
        )
    except jinja2.TemplateError as error:
        roles = ", ".join(dict.fromkeys(role for role, _ in turns))
        raise UserError(
            f"The chat template takes no conversation of {roles}: {error}.", _INSTEAD
        ) from error


def _template(tokenizer: PieceTokenizer) -> str:
    """The chat template, with the day in place of the calls that ask for today's."""
    template = tokenizer.tokenizer.get_chat_template()
    return _TODAY.sub(lambda found: repr(_DAY.strftime(found["format"])), template)


def _messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def _gaps(text: str, contents: Sequence[str]) -> list[str]:
    """What stands before, between and after the contents."""
    gaps = []
    for content in contents:
        gap, found, text = text.partition(content)
        if not found or content in text:
            raise UserError(
                "The chat template leaves out or repeats a part of the conversation.", _INSTEAD
            )
        gaps.append(gap)
    return [*gaps, text]


def _common_end(*texts: str) -> str:
    length = 0
    while length < min(map(len, texts)) and len({text[-length - 1] for text in texts}) == 1:
        length += 1
    return texts[0][len(texts[0]) - length :]


def _from_first(specials: Sequence[str], text: str) -> str | None:
    """The text from its first special token on: a place where no token reaches across."""
    places = [text.find(special) for special in specials if special in text]
    return text[min(places) :] if places else None


def _special_tokens(tokenizer: PieceTokenizer) -> list[str]:
    """Texts that are always one token, longest first."""
    added = tokenizer.tokenizer.added_tokens_decoder.values()
    return sorted((token.content for token in added), key=len, reverse=True)

"""From examples to token ids: one prefix per level, one row per example.

prefix = BOS + template at the level's rate
row    = retrieved examples (least similar first) + query + completion + EOS

In a chat template the template is the system's text, each example a turn of user and assistant, and
the query the user's last turn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from pintern.prompts.chat import ChatLayout
from pintern.prompts.task import Example, Task
from pintern.prompts.tokens import PieceTokenizer


class Row(NamedTuple):
    """Token ids of one row.

    Attributes:
      tokens: examples, query and completion; the completion is empty when it is to be generated.
      start: index of the completion's first token.
    """

    tokens: list[int]
    start: int

    @property
    def read(self) -> list[int]:
        """What a model is given in training: the last token is a target, and predicts none."""
        return self.tokens[:-1]


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Token ids of one example's pieces, tokenised once.

    Attributes:
      query: ids of the formatted query.
      completion: ids of the formatted completion, without EOS.
    """

    query: list[int]
    completion: list[int]


@dataclasses.dataclass(frozen=True)
class Renderer:
    """Turns pieces into prefixes and rows. Training, evaluation and serving all go through it.

    Attributes:
      tokenizer: the checkpoint's.
      task: whose format is used.
      example_end: ids between an example and what follows.
      chat: the checkpoint's chat template in pieces; None writes the task's format.
    """

    tokenizer: PieceTokenizer
    task: Task
    example_end: list[int]
    chat: ChatLayout | None = None

    @classmethod
    def create(cls, tokenizer: PieceTokenizer, task: Task) -> Renderer:
        """Tokenises what is common to all rows.

        Raises:
          UserError: the task asks for a chat template that can't be cut into pieces.
        """
        if not task.chat:
            return cls(tokenizer, task, tokenizer.encode(task.format.example_end))
        chat = ChatLayout.of(tokenizer)
        shown = [(e.query, e.completion) for e in task.train[:2]]
        query = task.test[0].query if task.test else "?"
        for system in (task.template, ""):
            chat.check(system, shown, query)
        return cls(tokenizer, task, chat.end(), chat)

    @property
    def eos(self) -> int:
        """Id that ends a completion."""
        return self.tokenizer.eos if self.chat is None else self.chat.eos

    def pieces(self, examples: Sequence[Example]) -> list[Pieces]:
        """Tokenises many examples; an empty completion stays empty."""
        if self.chat is not None:
            return [
                Pieces(self.chat.query(e.query), self.chat.answer(e.completion)) for e in examples
            ]
        form = self.task.format
        queries = self.tokenizer.encode_many([form.render_query(e.query) for e in examples])
        completions = self.tokenizer.encode_many(
            [form.render_completion(e.completion) if e.completion else "" for e in examples]
        )
        return [Pieces(q, c) for q, c in zip(queries, completions, strict=True)]

    def prefix(self, text: str) -> list[int]:
        """BOS (where the family has one) and the template."""
        if self.chat is not None:
            return self.chat.head(text)
        return [*self.tokenizer.bos, *(self.tokenizer.encode(text) if text else [])]

    def row(self, example: Pieces, shots: Sequence[Pieces] = (), *, complete: bool = True) -> Row:
        """One row. The most similar example stands last, next to the query.

        Args:
          example: what is asked, and its completion.
          shots: retrieved examples, most similar first.
          complete: add completion and EOS (training); False leaves them to be generated.
        """
        tokens: list[int] = []
        for shot in reversed(shots):
            tokens += [*shot.query, *shot.completion, *self.example_end]
        tokens += example.query
        start = len(tokens)
        if complete:
            tokens += [*example.completion, self.eos]
        return Row(tokens, start)

"""Tokenisation by pieces: the one function through which training and serving make token ids.

Template, examples, query and completion are tokenised apart and concatenated. A boundary then falls
at the same place whether or not the piece before it is there, so that dropping the template can't
change the query's ids, and a prefix that was cached is the prefix that the row was trained behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pintern.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class PieceTokenizer:
    """A tokenizer that sees one piece at a time.

    Attributes:
      tokenizer: the checkpoint's own.
      bos: ids at the head of every sequence; empty for families without a start token.
      eos: id that ends a completion.
    """

    tokenizer: PreTrainedTokenizerBase
    bos: tuple[int, ...]
    eos: int

    @classmethod
    def load(cls, directory: str | Path) -> PieceTokenizer:
        """Reads the tokenizer of a checkpoint directory.

        Raises:
          UserError: no tokenizer there, or one without an end token.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            first_line = (str(error).splitlines() or ["unreadable"])[0]
            raise UserError(
                f"No usable tokenizer in {directory}: {first_line}",
                "Put tokenizer.json and tokenizer_config.json beside config.json.",
            ) from error
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"The tokenizer in {directory} names no eos_token.",
                "Name one in tokenizer_config.json: a completion ends with it.",
            )
        starts = tokenizer.bos_token_id is not None and _adds_bos(tokenizer)
        return cls(tokenizer, (tokenizer.bos_token_id,) if starts else (), tokenizer.eos_token_id)

    @property
    def size(self) -> int:
        """One more than the largest id it can produce."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def encode(self, piece: str) -> list[int]:
        """Ids of one piece, without start or end tokens."""
        return self.encode_many([piece])[0]

    def encode_many(self, pieces: Sequence[str]) -> list[list[int]]:
        """Ids of many pieces, each as if alone."""
        if not pieces:
            return []
        return self.tokenizer(list(pieces), add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out, spaces as they are."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def offsets(self, piece: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a piece, and the span of characters that each covers."""
        encoded = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the family starts its sequences with BOS: its post-processor says so.

    A tokenizer.json without one (Llama conversions often lack it) falls back on the class: a BOS
    that differs from EOS is there to be used, whereas GPT-2's BOS is its EOS under another name.
    """
    if tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return True
    return tokenizer.bos_token_id != tokenizer.eos_token_id

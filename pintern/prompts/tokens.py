"""Tokenisation by pieces: the one function through which training and serving make token ids.

Template, examples, query and completion are tokenised apart and concatenated. A boundary then falls
at the same place whether or not the piece before it is there, so that dropping the template can't
change the query's ids, and a prefix that was cached is the prefix that the row was trained behind.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pintern.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Families whose models saw BOS at the head of every sequence. Their tokenizer.json says so by its
# post-processor, which conversions often lack; those of other families mean it when they lack one.
_START_WITH_BOS = (
    "llama",
    "mistral",
    "mixtral",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "opt",
)


@dataclasses.dataclass(frozen=True)
class PieceTokenizer:
    """A tokenizer that sees one piece at a time.

    Attributes:
      tokenizer: the checkpoint's own.
      bos: ids at the head of every sequence; empty for families without a start token.
      eos: id that ends a completion.
      also_end: further ids that end one when decoding: a checkpoint's generation_config.json may
        name several, or one that isn't its tokenizer's.
    """

    tokenizer: PreTrainedTokenizerBase
    bos: tuple[int, ...]
    eos: int
    also_end: tuple[int, ...] = ()

    @classmethod
    def load(cls, directory: str | Path) -> PieceTokenizer:
        """Reads the tokenizer of a checkpoint directory.

        Raises:
          UserError: no tokenizer there, or one without an end token.
        """
        from transformers import AutoTokenizer

        directory = Path(directory)
        try:
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"No usable tokenizer in {directory}: {first_line(error)}",
                "Put tokenizer.json and tokenizer_config.json beside config.json.",
            ) from error
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"The tokenizer in {directory} names no eos_token.",
                "Name one in tokenizer_config.json: a completion ends with it.",
            )
        starts = _starts_with_bos(
            tokenizer,
            asked=_read_json(directory / "tokenizer_config.json").get("add_bos_token"),
            family=_read_json(directory / "config.json").get("model_type"),
        )
        ends = _read_json(directory / "generation_config.json").get("eos_token_id")
        ends = ends if isinstance(ends, list) else [ends]
        also_end = tuple(sorted({*ends} - {tokenizer.eos_token_id, None}))
        bos = (tokenizer.bos_token_id,) if starts else ()
        return cls(tokenizer, bos, tokenizer.eos_token_id, also_end)

    def ending_with(self, eos: int) -> PieceTokenizer:
        """The same with another id that ends a completion; the old one still ends one."""
        also_end = {*self.also_end, self.eos} - {eos}
        return dataclasses.replace(self, eos=eos, also_end=tuple(sorted(also_end)))

    @property
    def size(self) -> int:
        """One more than the largest id it can produce."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @property
    def identity(self) -> str:
        """Changes whenever a text may get other ids."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            return backend.to_str()
        return repr((self.tokenizer, sorted(self.tokenizer.get_vocab().items())))

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


class TextStream:
    """Text of a completion that arrives token by token.

    One character may take several tokens, so what is not whole yet is held back; the pieces add up
    to the text of all ids.

    Args:
      tokenizer: of the ids.
      strip: leave out white space at both ends, as scored answers are read.
    """

    def __init__(self, tokenizer: PieceTokenizer, *, strip: bool = False):
        self._tokenizer, self._strip = tokenizer, strip
        self._ids: list[int] = []
        self._told = 0  # characters

    def push(self, token: int) -> str:
        """What can be told now that this token is known; often nothing."""
        self._ids.append(token)
        # Bytes that don't make up a character yet are decoded to the replacement character.
        return self._tell(self._text().rstrip("\ufffd"))

    def end(self) -> str:
        """What was held back."""
        return self._tell(self._text())

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids)

    def _tell(self, text: str) -> str:
        text = text.strip() if self._strip else text
        told, self._told = self._told, max(self._told, len(text))
        return text[told:]


def _starts_with_bos(
    tokenizer: PreTrainedTokenizerBase, *, asked: bool | None, family: str | None
) -> bool:
    """Whether sequences start with BOS, as the checkpoint's servers have it.

    The tokenizer itself adds it, or its config asks for it (`add_bos_token`), or it is of a family
    whose models expect it. BLOOM has a BOS that no sequence starts with, and GPT-2's is its EOS
    under another name.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    if tokenizer("x")["input_ids"][:1] == [bos]:
        return True
    if asked is not None:
        return asked
    if family is None:  # a tokenizer before it has a model
        return bos != tokenizer.eos_token_id
    return family in _START_WITH_BOS


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} holds no JSON object: {error}.", "Get an intact copy.") from error

"""A realistic template and the tokenizers that the prompt tests share."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pintern.prompts.tokens import PieceTokenizer

SHARED = Path(__file__).parents[1] / ".." / "shared"

TEMPLATE = """\
You translate questions of our warehouse staff into one SQLite query each. Answer with the query
alone: no comment, no code fence, no semicolon at its end.

Tables
  - orders (ord_7) holds one line per order: id is c_01, customer is c_02, day is c_03, net amount
    in cents is c_04, state is c_05, and the warehouse that shipped it is c_06.
  - customers (cst_2) holds id k_01, name k_02, country k_03, segment k_04 and the day of the first
    contact k_05. A customer without any order is a lead.
  - stock (stk_9) holds article s_01, warehouse s_02, pieces on hand s_03, pieces reserved s_04 and
    the reorder level s_05. One article may lie in several warehouses.
  - articles (art_4) holds id a_01, title a_02, family a_03, weight in grams a_04, list price in
    cents a_05.

House rules
1. Orders in state 'X' were cancelled and never count, unless the question asks for cancelled ones.
2. "Revenue" is the sum of c_04 divided by 100.0; round it to two places.
3. "Free stock" is s_03 minus s_04. An article is short when its free stock, summed over all of its
   warehouses, falls below the largest s_05 of these lines.
4. Days are written as 20240131. A month is given by its first six digits, a year by the first four.
5. Country names in questions are English; the column holds ISO codes, such as DE, FR, NL or US.
6. "Key accounts" are customers of segment 3 or 4 with at least 12 orders in the current year.
7. Sort every list by the asked figure, largest first, and by name where figures are equal. Give at
   most 20 lines unless the question names a number.
8. When a question says "last year", take the calendar year before the newest day in orders, and not
   the year before today.

Joins: c_02 equals k_01, s_01 equals a_01. Orders don't name articles; for those use lines (lin_5)
with order l_01, article l_02, pieces l_03 and price in cents l_04.
"""


@functools.cache
def tiny_tokenizer() -> PieceTokenizer:
    """Byte-level BPE of 420 tokens, so that most words are several tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEMPLATE], trainer)
    return _wrap(tokenizer_object=made, eos_token="</s>")


@functools.cache
def gpt2_tokenizer() -> PieceTokenizer | None:
    """GPT-2's own tokenizer; None where the shared folder is absent."""
    path = SHARED / "data" / "tokenizer_gpt2" / "tokenizer.json"
    return _wrap(tokenizer_file=str(path), eos_token="<|endoftext|>") if path.exists() else None


@functools.cache
def llama_tokenizer() -> PieceTokenizer | None:
    """The SentencePiece tokenizer of stories260K; None where the shared folder is absent."""
    path = SHARED / "models" / "stories260K"
    return PieceTokenizer.load(path) if path.exists() else None


TOKENIZERS: dict[str, Callable[[], PieceTokenizer | None]] = {
    "tiny": tiny_tokenizer,
    "gpt2": gpt2_tokenizer,
    "llama": llama_tokenizer,
}


def unigram_bits(ids: Sequence[int]) -> np.ndarray:
    """Surprisal of each id under the frequencies of the sequence itself."""
    count = Counter(ids)
    return np.array([-math.log2(count[i] / len(ids)) for i in ids])


def _wrap(**arguments: object) -> PieceTokenizer:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(**arguments, clean_up_tokenization_spaces=False)
    return PieceTokenizer(fast, bos=(), eos=fast.eos_token_id)

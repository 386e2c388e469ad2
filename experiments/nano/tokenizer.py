"""The nano model's byte-pair tokenizer, trained on episodes: a word or a code is one token."""

import random
from collections.abc import Iterator
from pathlib import Path

from experiments.nano import vocabulary as words
from experiments.nano.questions import random_question
from experiments.nano.schema import random_schema, render_template

VOCAB_SIZE = 2048
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
# A word or number with the space before it; long digit strings fall into fours, so that a year
# is the same token in a question and inside 20210101.
PIECE_PATTERN = r" ?[A-Za-z]+| ?\d{1,4}| ?[^\sA-Za-z\d]+|\s"


def _corpus(rng: random.Random, episodes: int) -> Iterator[str]:
    for _ in range(episodes):
        schema = random_schema(rng, rng.randint(1, 5), rng.randint(2, 7))
        yield render_template(schema, rng)
        for _ in range(8):
            question = random_question(schema, rng)
            yield f"Question: {question.query}\nSQL: {question.sql}\n"
    years = [str(year) for year in words.YEARS]
    spaced = (
        words.CODES,
        *words.TEXTS.values(),
        words.FLAGS,
        words.METRICS,
        words.TABLES,
        years,
    )
    for _ in range(400):  # every code and value often enough to become one token
        for group in spaced:
            yield "".join(f" {word}" for word in group)
        for group in (*words.TEXTS.values(), years):
            yield "".join(f"'{word}'" for word in group)


def train_tokenizer(seed: int, directory: Path) -> None:
    """Trains on episodes and writes tokenizer.json and tokenizer_config.json."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PIECE_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(random.Random(seed), 2000), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(directory)

"""Answers compared as text: exact match, BLEU and chrF."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pintern.errors import UserError
from pintern.evaluation.metrics.scores import Grade, Scores, grade_outcomes
from pintern.prompts.task import Example

# Texts in single or double quotes, in which a doubled quote stands for one.
_QUOTED = re.compile(r""""(?:[^"]|"")*"|'(?:[^']|'')*'""")


def references_of(example: Example) -> tuple[str, ...]:
    """The right answers of an example."""
    return example.references or (example.completion,)


def normalise_space(text: str) -> str:
    """Any white space is one space, and none at the ends."""
    return " ".join(text.split())


def normalise_brackets(text: str) -> str:
    """Of a logical form: every bracket stands alone, and white space is one space."""
    return normalise_space(re.sub(r"([\[\]])", r" \1 ", text))


def normalise_formula(text: str) -> str:
    """Of a spreadsheet formula: no leading `=`, no white space, upper case but for quoted text."""
    parts, end = [], 0
    for quoted in _QUOTED.finditer(text):
        parts += [_bare(text[end : quoted.start()]), quoted.group()]
        end = quoted.end()
    return "".join([*parts, _bare(text[end:])]).removeprefix("=")


def _bare(text: str) -> str:
    return "".join(text.split()).upper()


# Setting `normalise` of exact match, to what is done to both texts and its place in the signature.
NORMALISERS: dict[str, tuple[Callable[[str], str], str]] = {
    "space": (normalise_space, "exact|space:normalised|case:mixed"),
    "brackets": (normalise_brackets, "exact|space:normalised|brackets:apart|case:mixed"),
    "formula": (normalise_formula, "exact|formula:no-space,no-leading-=|case:upper-outside-quotes"),
}


def grade_exact(
    predictions: Sequence[str], examples: Sequence[Example], options: Mapping[str, Any]
) -> Grade:
    """Equal to one of the references after `normalise`: `space`, `brackets` or `formula`."""
    name = options.get("normalise", "space")
    if name not in NORMALISERS:
        raise UserError(f"Unknown normalisation {name!r}.", f"Known: {', '.join(NORMALISERS)}.")
    normalise, signature = NORMALISERS[name]
    outcomes = [
        "right"
        if normalise(prediction) in {normalise(text) for text in references_of(example)}
        else "mismatch"
        for prediction, example in zip(predictions, examples, strict=True)
    ]
    return grade_outcomes("exact", outcomes, signature)


def grade_bleu(
    predictions: Sequence[str], examples: Sequence[Example], options: Mapping[str, Any]
) -> Grade:
    """sacrebleu's corpus BLEU over all references.

    Options: `tokenize`, sacrebleu's, `none` by default; `lowercase`, both sides, no by default.
    """
    from sacrebleu.metrics import BLEU

    tokenize = options.get("tokenize", "none")
    if tokenize not in BLEU.TOKENIZERS:
        raise UserError(
            f"Unknown BLEU tokenizer {tokenize!r}.", f"sacrebleu has: {', '.join(BLEU.TOKENIZERS)}."
        )
    try:
        # `force` only silences sacrebleu's warning about input that is tokenised already.
        how = {"tokenize": tokenize, "lowercase": options.get("lowercase", False), "force": True}
        corpus, sentence = BLEU(**how), BLEU(**how, effective_order=True)
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"BLEU tokenizer {tokenize!r} isn't installed: {normalise_space(str(error))}"
        ) from error

    def grade(chosen: Sequence[int]) -> Scores:
        texts = [predictions[index] for index in chosen]
        references = [references_of(examples[index]) for index in chosen]
        value = corpus.corpus_score(texts, _streams(references)).score
        found = [
            sentence.sentence_score(text, refs)
            for text, refs in zip(texts, references, strict=True)
        ]
        # What corpus BLEU sums over the sentences: n-grams matched, n-grams there, both lengths.
        sums = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in found], np.int64)

        def pooled(rows: np.ndarray) -> float:
            total = sums[rows].sum(0).tolist()
            orders = (len(total) - 2) // 2
            return BLEU.compute_bleu(
                total[:orders],
                total[orders:-2],
                *total[-2:],
                smooth_method=corpus.smooth_method,
                smooth_value=corpus.smooth_value,
            ).score

        per_example = [score.score for score in found]
        return Scores("bleu", value, per_example, str(corpus.get_signature()), {}, False, pooled)

    return grade


def grade_chrf(
    predictions: Sequence[str], examples: Sequence[Example], options: Mapping[str, Any]
) -> Grade:
    """sacrebleu's corpus chrF over all references; `word_order` 2 is chrF++, 0 (default) chrF."""
    from sacrebleu.metrics import CHRF

    order = options.get("word_order", 0)
    if not (isinstance(order, int) and order >= 0):
        raise UserError(f"chrF's word_order is {order!r}; it must be a whole number from 0 on.")
    chrf = CHRF(word_order=order)

    def grade(chosen: Sequence[int]) -> Scores:
        texts = [predictions[index] for index in chosen]
        references = [references_of(examples[index]) for index in chosen]
        per_example = [
            chrf.sentence_score(text, refs).score
            for text, refs in zip(texts, references, strict=True)
        ]
        value = chrf.corpus_score(texts, _streams(references)).score
        return Scores("chrf", value, per_example, str(chrf.get_signature()), {}, False)

    return grade


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """As sacrebleu takes them: the first reference of every example, the second, …, or None."""
    most = max(map(len, references))
    return [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]

"""BLEC: does a sentence say what its logical form says? (Shu et al., 2021, arXiv 2108.00577.)

Bidirectional Logic Evaluation of Consistency is a rule-based test of right or wrong. A sentence is
wrong if a function of the logical form has no word for it in the sentence, if a number of the
logical form isn't there as digits, word or ordinal, or if the sentence denies (`not`) what the
logical form doesn't. The rules are the paper's; the word lists below are our own, so a figure is
comparable with others of pintern, and with the paper's only as far as the lists agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pintern.errors import UserError
from pintern.evaluation.metrics.scores import Grade, grade_outcomes
from pintern.prompts.task import Example

_ORDINALS = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth".split()
_CARDINALS = "zero one two three four five six seven eight nine ten".split()

_MAX = r"most|max\w*|top|best|first|last|latest|late|more|win\w*|won|lead\w*|led|record|\w{2,}est"
_MIN = r"least|min\w*|bottom|worst|first|last|early|few|fewer|less|lose\w*|lost|\w{2,}est"
_NTH = r"\d+(?:st|nd|rd|th)|next|runner|" + "|".join(_ORDINALS[1:])
_MORE = r"more|greater|above|over|exceed\w*|after|later|least|beyond|past|\w{2,}er"
_LESS = r"less|fewer|below|under|before|earlier|most|within|\w{2,}er"
_NOT = r"not|no|never|none|without|other|except|unlike|different|differ\w*|neither|nor|\w+n't"
_MOST = r"most\w*|majority|many|more than half|generally|usually|largely"
_ALL = r"all|every|each|always|entire\w*|whole|both|no|none|never|only"

# A function of Logic2Text's logical forms to words that express it. What isn't here (`eq`, `hop`,
# `and`, `filter_eq`, …) is said by naming cells and columns, with no word of its own.
WORDS: dict[str, str] = {
    "only": r"only|one|single|sole|solely|lone|unique|just|except",
    "max": _MAX,
    "argmax": _MAX,
    "min": _MIN,
    "argmin": _MIN,
    "nth_max": f"{_NTH}|{_MAX}",
    "nth_argmax": f"{_NTH}|{_MAX}",
    "nth_min": f"{_NTH}|{_MIN}",
    "nth_argmin": f"{_NTH}|{_MIN}",
    "avg": r"average\w*|mean|avg|per",
    "sum": r"sum\w*|total\w*|combined|altogether|overall|together|in all",
    "diff": r"difference|differ\w*|more|less|fewer|greater|than|by|gap|margin|apart|\w{2,}er",
    "greater": _MORE,
    "less": _LESS,
    "filter_greater": _MORE,
    "filter_greater_eq": _MORE,
    "filter_less": _LESS,
    "filter_less_eq": _LESS,
    "not_eq": _NOT,
    "filter_not_eq": _NOT,
    "round_eq": r"about|around|approx\w*|roughly|nearly|almost|average\w*|mean|total\w*|sum",
    **{f"most_{name}": _MOST for name in ("eq", "not_eq", "less", "less_eq", "greater")},
    "most_greater_eq": _MOST,
    **{f"all_{name}": _ALL for name in ("eq", "not_eq", "less", "less_eq", "greater")},
    "all_greater_eq": _ALL,
}
_PATTERNS = {name: re.compile(rf"\b(?:{words})\b") for name, words in WORDS.items()}
_DENIAL = re.compile(r"\bnot\b|n't\b")


def blec_errors(logic: str, sentence: str, reference: str) -> list[str]:
    """What the sentence lacks of its logical form, or denies; empty is consistent.

    Args:
      logic: linearised, as Logic2Text's `logic_str`: `eq { count { … } ; 3 } = true`.
      sentence: to judge.
      reference: the gold sentence. What it doesn't say either isn't asked of the sentence: the
        paper does so for numbers, and here it holds for functions as well, for no list of words is
        complete.
    """
    parts = [part.strip() for part in re.split(r"[{};=]", logic)]
    sentence, reference = sentence.lower(), reference.lower()
    errors = []
    for part in dict.fromkeys(parts):
        if part in _PATTERNS:
            says = _PATTERNS[part].search
        elif re.fullmatch(r"\d+", part):
            says = _number(part).search
        else:
            continue
        if not says(sentence) and says(reference):
            errors.append(part)
    denied = _DENIAL.search(sentence) and not _DENIAL.search(reference)
    if denied and not any("not" in part.split("_") for part in parts):
        errors.append("not")
    return errors


def _number(digits: str) -> re.Pattern[str]:
    """Matches a number as it may be written: 1000, 1,000, three, third, 3rd."""
    value = int(digits)
    forms = [re.escape(digits), re.escape(f"{value:,}"), rf"{value}(?:st|nd|rd|th)"]
    if value < len(_CARDINALS):
        forms += [_CARDINALS[value], _ORDINALS[value]]
    if value == 1:
        forms += ["only", "single", "an?"]
    if value == 2:
        forms += ["both", "twice", "pair"]
    # Of 1,500 neither the 1 nor the 500 is a number.
    before, after = r"(?<![\d.])(?!(?<=\d,)\d{3}\b)\b", r"\b(?!\.\d|,\d{3}\b)"
    return re.compile(rf"{before}(?:{'|'.join(forms)}){after}")


def grade_blec(
    predictions: Sequence[str], examples: Sequence[Example], options: Mapping[str, Any]
) -> Grade:
    """Share of sentences without an error; an example's facts hold its `logic`."""
    outcomes = []
    for prediction, example in zip(predictions, examples, strict=True):
        if not isinstance(example.facts.get("logic"), str):
            raise UserError(
                f"Metric 'blec' needs the logical form of example {example.id or '(no id)'}.",
                "Give it as facts: {'logic': '...'}, or use another metric.",
            )
        if not prediction.strip():
            outcomes.append("empty")
            continue
        errors = blec_errors(example.facts["logic"], prediction, example.completion)
        outcomes.append(errors[0] if errors else "right")
    signature = "blec|words:pintern-1|excused:absent-from-reference|case:lower"
    return grade_outcomes("blec", outcomes, signature)

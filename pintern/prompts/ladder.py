"""The template's text at each keep rate, as files that a person can read and edit.

A folder holds `template-<rate>.txt` for each rung, the rate to two decimals, and `ladder.json`,
which records what the rates came to.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pintern.errors import UserError
from pintern.files import bring_up_to_date, write_atomically
from pintern.prompts.compressors.rates import TOLERANCE, Compressor, check_rate, keep_rate_of
from pintern.prompts.task import read_template
from pintern.prompts.text import read_text
from pintern.prompts.tokens import PieceTokenizer


@dataclasses.dataclass(frozen=True)
class Rung:
    """The template at one rate.

    Attributes:
      asked: keep rate τ that the rung stands for.
      got: tokens over tokens of the full template.
      tokens: of the text, by the model's tokenizer.
      text: what the prompt holds.
    """

    asked: float
    got: float
    tokens: int
    text: str


def build_ladder(
    template: str, rates: Sequence[float], compressor: Compressor, tokenizer: PieceTokenizer
) -> dict[float, Rung]:
    """The template at each rate, from a compressor, in the order of the rates.

    Raises:
      UserError: a rate outside [0, 1], two rates of one file name, or a text that misses its rate
        by more than 2 points.
    """
    _check_rates(rates)
    ladder = {}
    for rate in rates:
        rung = _rung(rate, compressor(template, rate), template, tokenizer)
        if abs(rung.got - rate) > TOLERANCE + 1e-9:
            raise UserError(
                f"The compressor was asked for keep rate {rate:.2f} and gave {rung.got:.3f}.",
                f"It must come within ±{TOLERANCE}: use another one, or a ladder written by hand.",
            )
        ladder[rate] = rung
    return ladder


def write_ladder(directory: str | Path, ladder: Mapping[float, Rung]) -> None:
    """Writes every rung and the record. Writing the same ladder again changes nothing.

    A text that is there and differs may be a person's work, so nothing is written then. The record
    only follows from the texts, and is brought up to date.

    Raises:
      UserError: names a text that is there and differs, or a folder that can't be written.
    """
    directory = Path(directory)
    _check_rates(ladder)
    files = {directory / rung_file(rate): rung.text for rate, rung in ladder.items()}
    record = [
        {"file": rung_file(rate), "asked": rung.asked, "got": rung.got, "tokens": rung.tokens}
        for rate, rung in ladder.items()
    ]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        missing = [path for path in files if not path.exists()]
        for path in files.keys() - set(missing):
            if read_text(path) != files[path]:  # as it was read: an editor's mark is no difference
                raise UserError(
                    f"{path} is there already and differs from the ladder's text.",
                    "Read the ladder from this folder to keep it, or write to another folder.",
                )
        for path in missing:
            write_atomically(path, files[path])
        bring_up_to_date(directory / "ladder.json", json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"The ladder can't be written to {directory}: {error.strerror or error}.",
            "Give a folder that may be written to.",
        ) from error


def read_ladder(
    directory: str | Path, rates: Sequence[float], tokenizer: PieceTokenizer, template: str
) -> dict[float, Rung]:
    """Reads texts written or edited by hand. They needn't hit their rates: `got` says what they do.

    Rates 0 and 1 need no file; one that is there must be empty and the template respectively.

    Raises:
      UserError: missing files, all of them listed; a text that is empty, longer than the template
        in tokens, or isn't what rate 0 or 1 means.
    """
    directory = Path(directory)
    _check_rates(rates)
    paths = {rate: directory / rung_file(rate) for rate in rates}
    missing = [p.name for rate, p in paths.items() if rate not in (0, 1) and not p.exists()]
    if missing:
        there = ", ".join(sorted(path.name for path in directory.glob("template-*.txt")))
        raise UserError(
            f"The ladder in {directory} lacks {', '.join(missing)}.",
            "Write the template at each of these rates, or ask for a rate that is there"
            + (f": {there}." if there else "; none is."),
        )
    return {rate: _read_rung(path, rate, tokenizer, template) for rate, path in paths.items()}


def rung_file(rate: float) -> str:
    """Name of the file that holds the template at a rate."""
    return f"template-{rate:.2f}.txt"


def _read_rung(path: Path, rate: float, tokenizer: PieceTokenizer, template: str) -> Rung:
    if rate == 0:
        if path.exists() and read_text(path):
            raise UserError(
                f"{path} is not empty, but keep rate 0 is no template.",
                "Empty it, or give the text a rate of its own.",
            )
        return _rung(rate, "", template, tokenizer)
    if rate == 1:
        if path.exists() and read_template(path) != template:
            raise UserError(
                f"{path} differs from the task's template, but keep rate 1 is the template itself.",
                "Change the task's template instead, or delete this file.",
            )
        return _rung(rate, template, template, tokenizer)
    rung = _rung(rate, read_template(path), template, tokenizer)
    if rung.got > 1:
        raise UserError(
            f"{path} has {rung.tokens} tokens, {rung.got:.2f} times the full template's.",
            "A rung may not be longer than the template that it stands for: shorten it.",
        )
    return rung


def _rung(rate: float, text: str, template: str, tokenizer: PieceTokenizer) -> Rung:
    got = keep_rate_of(tokenizer, text, template)
    return Rung(asked=rate, got=got, tokens=len(tokenizer.encode(text)), text=text)


def _check_rates(rates: Iterable[float]) -> None:
    taken: dict[str, float] = {}
    for rate in rates:
        check_rate(rate)
        other = taken.setdefault(rung_file(rate), rate)
        if other != rate:
            raise UserError(
                f"Keep rates {other} and {rate} would share the file {rung_file(rate)}.",
                "Keep rates at least 0.01 apart.",
            )

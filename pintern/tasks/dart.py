"""DART (Nan et al., 2021): a set of triples to text that says them, v1.1.1 as JSON or XML."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from pintern.errors import UserError
from pintern.prompts.task import Example, PromptFormat, Task, read_template
from pintern.prompts.text import read_text
from pintern.tasks.sources import Row, objects, take
from pintern.tasks.splits import load_splits

TEMPLATE = Path(__file__).parents[1] / "assets" / "dart" / "template.txt"
PUBLISHED = {"train": 30_526, "dev": 2_768, "test": 5_097}  # sets of triples


def dart_task(data: str, seed: int) -> Task:
    """Triples to text, judged by BLEU and chrF against all of a set's texts.

    For training each text of a set is an example of its own, as the paper counts them; a test
    example is a set, with all its texts as references. A set is written
    `<H> subject <R> relation <T> object …`, the paper's linearisation.

    Args:
      data: see `sources.open_source`; also the XML files of v1.1.1, in WebNLG's format. Of
        tensorflow-datasets, `gem/dart`.
      seed: of a hold-out, where only one split is there.

    Raises:
      UserError: see `splits.load_splits`; a row without triples or texts, a triple that isn't one.
    """
    train, test, note = load_splits(
        "DART",
        data,
        seed,
        test="test",
        learn=_learn,
        judge=_judge,
        sizes=PUBLISHED,
        readers={".xml": read_xml},
    )
    return Task(
        name="dart",
        template=read_template(TEMPLATE),
        format=PromptFormat(
            query="Facts: {query}\nText:", completion=" {completion}", example_end="\n"
        ),
        train=train,
        test=test,
        metric="bleu",
        further_metrics=("chrf",),
        metric_options={"tokenize": "13a"},
        note=note,
    )


def read_xml(path: Path) -> list[Row]:
    """Rows of a file in WebNLG's XML, as the JSON files have them; empty texts are left out.

    Raises:
      UserError: not XML, or a triple that isn't three parts with ` | ` between.
    """
    try:
        root = ElementTree.fromstring(read_text(path))
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is not XML: {error}.", "Get the file again.") from error
    return [
        {
            "tripleset": [triple.text or "" for triple in entry.iter("mtriple")],
            "annotations": [
                {"source": lex.get("comment", ""), "text": lex.text}
                for lex in entry.iter("lex")
                if lex.text and lex.text.strip()
            ],
        }
        for entry in root.iter("entry")
    ]


def linearise(triples: list[tuple[str, str, str]]) -> str:
    """`<H> subject <R> relation <T> object`, triple after triple."""
    return " ".join(f"<H> {head} <R> {relation} <T> {tail}" for head, relation, tail in triples)


def _judge(row: Row, where: str) -> list[Example]:
    texts = _texts(row, where)
    query = linearise(_triples(row, where))
    return [Example(query=query, completion=texts[0], references=tuple(texts))]


def _learn(row: Row, where: str) -> list[Example]:
    (example,) = _judge(row, where)
    return [
        dataclasses.replace(example, completion=text, references=()) for text in example.references
    ]


def _triples(row: Row, where: str) -> list[tuple[str, str, str]]:
    found = []
    for triple in take(row, "tripleset", list, where):
        # gem/dart and the XML have a text, the JSON a list of three.
        parts = triple.split(" | ") if isinstance(triple, str) else triple
        if (
            not isinstance(parts, list)
            or len(parts) != 3
            or not all(isinstance(part, str) for part in parts)
        ):
            raise UserError(
                f"{where}: {triple!r} is no triple.", "Expected subject, relation and object."
            )
        found.append(tuple(" ".join(part.split()) for part in parts))
    if not found:
        raise UserError(f"{where}: tripleset is empty.", "Each row needs a triple.")
    return found


def _texts(row: Row, where: str) -> list[str]:
    if "annotations" in row:
        annotations = objects(take(row, "annotations", list | dict, where))
        texts = [_text(annotation, where) for annotation in annotations]
    elif row.get("references"):  # gem/dart: several references, and in train one target
        texts = [_text({"text": text}, where) for text in take(row, "references", list, where)]
    else:
        texts = [take(row, "target", str, where)]
    texts = [" ".join(text.split()) for text in texts]
    if not any(texts):
        raise UserError(f"{where} has no text.", "Each row needs an annotation or a target.")
    return [text for text in dict.fromkeys(texts) if text]


def _text(annotation: Row, where: str) -> str:
    """What an annotation says, which may be nothing: the published test split has such a one."""
    if isinstance(annotation, dict) and annotation.get("text") == "":
        return ""
    return take(annotation, "text", str, where)

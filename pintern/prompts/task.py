"""A task as data: a template that recurs, examples to learn from, and examples to be judged by."""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pintern.errors import UserError
from pintern.prompts.text import parse_json_line, read_text

_TEXTS = ("query", "completion", "id", "slice")
_FIELDS = (*_TEXTS, "references", "facts")


@dataclasses.dataclass(frozen=True)
class Example:
    """One query with its wanted answer.

    Attributes:
      query: what varies from request to request.
      completion: the answer, without the format's leading space.
      id: unique within its file; predictions are reported under it.
      slice: part of the test set that it belongs to (`seen`, `unseen`, …), scored apart as well.
      references: every right answer, where there are several; empty stands for `completion` alone.
      facts: what a metric needs and the model never reads, e.g. the tests that a program must pass.
    """

    query: str
    completion: str
    id: str = ""
    slice: str = ""
    references: tuple[str, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """How queries and completions are written down, in training and in serving alike.

    Attributes:
      query: must hold `{query}`; its end is where the model starts to answer.
      completion: must hold `{completion}`.
      example_end: closes an example that is shown in the prompt.

    Raises:
      UserError: a text without its placeholder.
    """

    query: str = "Question: {query}\nSQL:"
    completion: str = " {completion}"
    example_end: str = "\n"

    def __post_init__(self) -> None:
        for field in ("query", "completion"):
            if f"{{{field}}}" not in getattr(self, field):
                raise UserError(
                    f"format.{field} is {getattr(self, field)!r}; it never says {{{field}}}.",
                    f"Write {{{field}}} where the {field} of an example belongs.",
                )

    # `replace` and not `format`: braces are ordinary characters in templates and in queries.
    def render_query(self, query: str) -> str:
        """Piece that asks one query."""
        return self.query.replace("{query}", query)

    def render_completion(self, completion: str) -> str:
        """Piece that answers."""
        return self.completion.replace("{completion}", completion)

    def render_example(self, example: Example) -> tuple[str, str, str]:
        """Pieces of an example shown in the prompt: query, completion, end."""
        return (
            self.render_query(example.query),
            self.render_completion(example.completion),
            self.example_end,
        )


@dataclasses.dataclass(frozen=True)
class Task:
    """Everything that a run learns and is judged by.

    Attributes:
      name: as it is called in reports.
      template: the recurring text, whole.
      format: how queries and completions are written.
      train: examples to learn from; retrieved examples come from here too.
      test: examples to be judged by.
      unlabelled: further queries without an answer, for distillation.
      metric: name of the score.
      further_metrics: names of scores that are recorded beside it.
      database: what the metric executes answers on, if it executes them.
      metric_options: settings of the metrics, by name; see `pintern.evaluation.metrics`.
      note: what a reader of the scores must know, e.g. whose split it is; printed with them.
      chat: render by the checkpoint's chat template, with queries and completions as they are; the
        format is then not used.
    """

    name: str
    template: str
    format: PromptFormat
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    unlabelled: tuple[str, ...] = ()
    metric: str = "exact"
    further_metrics: tuple[str, ...] = ()
    database: str | None = None
    metric_options: Mapping[str, object] = dataclasses.field(default_factory=dict, hash=False)
    note: str = ""
    chat: bool = False


def task_from_files(
    name: str,
    template: str | Path,
    train: str | Path,
    test: str | Path,
    *,
    unlabelled: str | Path | None = None,
    format: PromptFormat | None = None,
    metric: str = "exact",
    database: str | None = None,
) -> Task:
    """Reads a task from a template file and JSONL files of examples.

    Its note counts test queries that are in train with another answer, which retrieval may show.

    Args:
      name: as it is called in reports.
      template: path of the recurring text.
      train: path of the examples to learn from, see `read_examples`.
      test: path of the examples to be judged by.
      unlabelled: path of further queries, see `read_queries`.
      format: how queries and completions are written; None is the default format.
      metric: name of the score.
      database: what the metric executes answers on.

    Raises:
      UserError: an unreadable file, or a test example that is also in train.
    """
    task = Task(
        name=name,
        template=read_template(template),
        format=format or PromptFormat(),
        train=read_examples(train),
        test=read_examples(test),
        unlabelled=() if unlabelled is None else read_queries(unlabelled),
        metric=metric,
        database=database,
    )
    trained_on = {(example.query, example.completion) for example in task.train}
    leaked = [
        e
        for e in task.test
        if any((e.query, answer) in trained_on for answer in (e.completion, *e.references))
    ]
    if leaked:
        raise UserError(
            f"{len(leaked)} of the {len(task.test)} examples in {test} are also in {train}, "
            f"e.g. id {leaked[0].id!r}: {_shown(leaked[0].query)}.",
            "Take them out of one of the two files.",
        )
    asked = {query for query, _ in trained_on}
    if shared := sum(example.query in asked for example in task.test):
        note = f"Test queries that {train} has as well: {shared:,} of {len(task.test):,}."
        task = dataclasses.replace(task, note=note)
    return task


def read_template(path: str | Path) -> str:
    """Text of a template file, its whitespace untouched.

    Raises:
      UserError: missing, not UTF-8, or empty.
    """
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path} is empty.", "It should hold the text that recurs in every prompt.")
    return text


def read_examples(path: str | Path) -> tuple[Example, ...]:
    """Examples from JSONL: `query`, `completion`, and optionally what else an `Example` has.

    An example without an id gets its line number.

    Raises:
      UserError: names the file, the line, and what is wrong there.
    """
    examples: list[Example] = []
    line_of: dict[str, int] = {}
    for line, record in parse_records(read_text(path), path, required=("query", "completion")):
        identity = record.get("id") or str(line)
        if identity in line_of:
            raise UserError(
                f"{path}, line {line}: id {identity!r} is taken by line {line_of[identity]}.",
                "Ids must be unique; an example without one has its line number.",
            )
        line_of[identity] = line
        references = tuple(record.get("references", ()))
        examples.append(Example(**{**record, "id": identity, "references": references}))
    return tuple(examples)


def read_queries(path: str | Path) -> tuple[str, ...]:
    """Queries from JSONL that needn't have completions; one that is there is ignored.

    Raises:
      UserError: names the file, the line, and what is wrong there.
    """
    records = parse_records(read_text(path), path, required=("query",))
    return tuple(record["query"] for _, record in records)


def split_examples(
    examples: Sequence[Example], test_share: float, seed: int, where: str = "The training set"
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Splits one set into train and test, both in the given order.

    Examples with the same query stay together, so that no answer leaks; the share is therefore one
    of distinct queries. Who goes where depends on the seed and on the set of queries alone. `where`
    they come from is for messages.

    Returns:
      train, test.

    Raises:
      UserError: a share outside (0, 1), or one that leaves a side empty.
    """
    if not 0 < test_share < 1:
        raise UserError(f"test_share is {test_share}; it must lie between 0 and 1.")
    queries = sorted({example.query for example in examples})
    random.Random(seed).shuffle(queries)
    count = round(test_share * len(queries))
    if not 0 < count < len(queries):
        raise UserError(
            f"{where} has {len(queries)} distinct queries; holding out {test_share:g} of them to "
            "test on leaves one side empty.",
            "Give more, or a test set (config.task.test; of config.task.data, a split).",
        )
    held_out = frozenset(queries[:count])
    return (
        tuple(example for example in examples if example.query not in held_out),
        tuple(example for example in examples if example.query in held_out),
    )


def parse_records(
    text: str, where: str | Path, required: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number and checked fields of each line of JSONL that isn't blank.

    Args:
      text: of the file.
      where: the file's name, for messages.
      required: fields that every line must have.

    Raises:
      UserError: names the file, the line, and what is wrong there.
    """
    found = False
    # Not `splitlines`: JSON strings may hold other characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            found = True
            yield number, _parse_record(line, f"{where}, line {number}", required)
    if not found:
        raise UserError(
            f"{where} is empty.",
            f"Each line should be a JSON object with {' and '.join(required)}.",
        )


def _parse_record(line: str, where: str, required: tuple[str, ...]) -> dict[str, Any]:
    record = parse_json_line(line, where)
    if not isinstance(record, dict):
        raise UserError(f"{where}: {_shown(line)} is not an object.", "Write {...} on each line.")
    expected = f"The fields are {', '.join(_FIELDS)}; {' and '.join(required)} must be there."
    for field, value in record.items():
        if field not in _FIELDS:
            raise UserError(f"{where}: unknown field {field!r}.", expected)
        if field in _TEXTS and not isinstance(value, str):
            raise UserError(f"{where}: {field} is {_shown(value)}, which is not text.", expected)
    references = record.get("references", [])
    if not (isinstance(references, list) and all(isinstance(text, str) for text in references)):
        raise UserError(f"{where}: references is {_shown(references)}; expected a list of texts.")
    if not isinstance(record.get("facts", {}), dict):
        raise UserError(f"{where}: facts is {_shown(record['facts'])}; expected an object.")
    for field in required:
        if field not in record:
            raise UserError(f"{where}: {field} is missing.", expected)
        if not record[field].strip():
            raise UserError(f"{where}: {field} is empty.", expected)
    return record


def _shown(value: object, limit: int = 60) -> str:
    shown = repr(value)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"

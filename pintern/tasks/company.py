"""The embedded default: questions to the database of one company, answered by running SQL."""

from pathlib import Path

from pintern.prompts.task import PromptFormat, Task, read_examples, read_queries, read_template

ASSETS = Path(__file__).parents[1] / "assets" / "company"


def company_task() -> Task:
    """Template of schema, glossary and house rules; labelled pairs; a query log; two test slices.

    `experiments/company` generates it. Test slice `seen` needs only columns and rules that occur in
    labelled pairs; `unseen` needs at least one that stands in the prompt alone.
    """
    return Task(
        name="company",
        template=read_template(ASSETS / "template.txt"),
        format=PromptFormat(
            query="Question: {query}\nSQL:", completion=" {completion}", example_end="\n"
        ),
        train=read_examples(ASSETS / "train.jsonl"),
        test=read_examples(ASSETS / "test.jsonl"),
        unlabelled=read_queries(ASSETS / "log.jsonl"),
        metric="sql",
        database=str(ASSETS / "company.sqlite"),
    )

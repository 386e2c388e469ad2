"""NL2Bash (Lin et al., 2018): one English line to one Bash command.

The data are GPL-3 and not part of this project. The release has no split file, so the split made
here stands in for the paper's; `Task.note` says so to whoever reads a score.
"""

from __future__ import annotations

import random
from pathlib import Path

from pintern.errors import UserError
from pintern.prompts.task import Example, PromptFormat, Task, read_template
from pintern.prompts.text import decode_text
from pintern.tasks.sources import Row, take
from pintern.tasks.splits import load_splits

TEMPLATE = Path(__file__).parents[1] / "assets" / "nl2bash" / "template.txt"
# Pairs of the paper's filtered train, dev and test sets; ours are cut in the same proportion.
PAPER_SPLIT = (8090, 609, 606)
PUBLISHED = dict(zip(("train", "dev", "test"), PAPER_SPLIT, strict=True))
# Characters. Longer lines are few, and with the template and two shots would fill a small context.
MAX_QUERY, MAX_COMMAND = 200, 100


def nl2bash_task(data: str, seed: int) -> Task:
    """Pairs judged by BLEU; beside it the F1 of Bash tokens and NLC2CMD's accuracy.

    Args:
      data: the release's folder of `all.nl` and `all.cm`, see `release_pairs`; or any source of
        `sources.open_source` whose rows have `nl` and `bash`, with its own splits.
      seed: of a split that the source doesn't have.

    Raises:
      UserError: see `release_pairs` and `splits.load_splits`.
    """
    if not data or any((Path(data) / name).exists() for name in ("all.nl", "all.cm")):
        train, test, note = release_pairs(data, seed)
    else:
        train, test, note = load_splits(
            "NL2Bash", data, seed, test="test", learn=_rows, judge=_rows, sizes=PUBLISHED
        )
    return Task(
        name="nl2bash",
        template=read_template(TEMPLATE),
        format=PromptFormat(
            query="Task: {query}\nBash:", completion=" {completion}", example_end="\n"
        ),
        train=train,
        test=test,
        metric="bleu",
        further_metrics=("bash_tokens", "nlc2cmd"),
        note=note,
    )


def release_pairs(folder: str, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...], str]:
    """Reads `all.nl` and `all.cm`, whose lines belong together, and splits them by the seed.

    A pair is dropped if it is there already or is longer than `MAX_QUERY` or `MAX_COMMAND`; the
    note counts both. Pairs that ask the same, but for case and spaces, stay on one side, and each
    side is shuffled, so that its head is a fair sample. The dev share is set aside and not used.

    Args:
      folder: holds the two files.
      seed: of the split.

    Returns:
      train, test, and what was read and dropped.

    Raises:
      UserError: no folder given, a missing file, text that isn't UTF-8, an empty line,
        files of different lengths, or too few pairs to split.
    """
    pairs = _read_pairs(folder)
    distinct = dict.fromkeys(pairs)
    kept = [(q, c) for q, c in distinct if len(q) <= MAX_QUERY and len(c) <= MAX_COMMAND]
    train, dev, test = _split(kept, seed, folder)
    note = (
        f"NL2Bash: {len(pairs)} pairs read, {len(pairs) - len(distinct)} duplicates and "
        f"{len(distinct) - len(kept)} pairs with a task above {MAX_QUERY} or a command above "
        f"{MAX_COMMAND} characters dropped. Our own split in the paper's proportions, not the "
        f"paper's (no official split file): train {len(train)}, dev {len(dev)} (not used), "
        f"test {len(test)}, seed {seed}. BLEU is not comparable with published figures."
    )
    return _examples(train, "train"), _examples(test, "test"), note


def _rows(row: Row, where: str) -> list[Example]:
    return [Example(take(row, "nl", str, where).strip(), take(row, "bash", str, where).strip())]


def _read_pairs(folder: str) -> list[tuple[str, str]]:
    if not folder:
        raise UserError(
            "config.task.data is empty; NL2Bash is not part of this project.",
            "Pass --config.task.data=FOLDER, the folder that holds all.nl and all.cm.",
        )
    directory = Path(folder)
    tasks, commands = (_read_lines(directory / name) for name in ("all.nl", "all.cm"))
    if len(tasks) != len(commands):
        raise UserError(
            f"{directory / 'all.nl'} has {len(tasks)} lines and all.cm has {len(commands)}.",
            "Line n of one belongs to line n of the other: get both files from one release.",
        )
    return list(zip(tasks, commands, strict=True))


def _read_lines(path: Path) -> list[str]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} can't be read: {error.strerror or error}.",
            "The folder should hold NL2Bash's all.nl and all.cm.",
        ) from error
    text = decode_text(raw, path)
    # Not `splitlines`, which takes characters inside a command for line ends.
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    for number, line in enumerate(lines, start=1):
        if not line:
            raise UserError(
                f"{path}, line {number} is empty.", "Each line holds one task or one command."
            )
    return lines


def _split(
    pairs: list[tuple[str, str]], seed: int, folder: str
) -> tuple[list[tuple[str, str]], ...]:
    """Train, dev and test, by distinct tasks; which go where depends on seed and tasks alone."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for query, command in sorted(pairs):
        groups.setdefault(" ".join(query.casefold().split()), []).append((query, command))
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    _, dev_share, test_share = (count / sum(PAPER_SPLIT) for count in PAPER_SPLIT)
    tests, devs = round(test_share * len(order)), round(dev_share * len(order))
    if not (tests and devs):
        raise UserError(
            f"{folder} holds {len(order)} distinct tasks, too few to set {test_share:.1%} aside.",
            "Give the whole of NL2Bash, or a task of kind 'files' with its own test file.",
        )
    sides = order[tests + devs :], order[tests : tests + devs], order[:tests]
    return tuple([pair for key in side for pair in groups[key]] for side in sides)


def _examples(pairs: list[tuple[str, str]], side: str) -> tuple[Example, ...]:
    return tuple(
        Example(query=query, completion=command, id=f"{side}-{number}")
        for number, (query, command) in enumerate(pairs, start=1)
    )

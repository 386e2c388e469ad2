"""Parts that the report's pages are put together from; everything is escaped here."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from pintern.errors import UserError
from pintern.files import write_atomically
from pintern.report.page import SCRIPT, STYLE

MAX_EXAMPLES = 500
MAX_ANSWERS = 20_000  # on one page: about 5 MB
RIGHT_SCORE = 100
# The browser itself then refuses to load anything that isn't in the file.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_page(path: Path | str, title: str, sections: Iterable[str], *, script: bool) -> None:
    """Writes one file that needs no network, no server and no other file.

    Args:
      path: `index.html`.
      title: of the page.
      sections: HTML.
      script: add the filters' script.
    """
    body = "\n".join([f"<h1>{escape(title)}</h1>", *filter(None, sections)])
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"{f'<script>{SCRIPT}</script>' if script else ''}\n</body>\n</html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Text that a model or a database made may hold halves of characters.
    write_atomically(path, page.encode(errors="replace"))


def section(title: str, content: str) -> str:
    """A part of the page under its heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>"


def table(
    headings: Iterable[object], rows: Iterable[Sequence[object]], best: frozenset[int] = frozenset()
) -> str:
    """A table in a box that scrolls sideways."""
    head = "".join(f"<th>{escape(str(heading))}</th>" for heading in headings)
    lines = [
        f"<tr{' class=best' if index in best else ''}>"
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in row)
        + "</tr>"
        for index, row in enumerate(rows)
    ]
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def plots(pictures: Mapping[str, Path | str]) -> str:
    """Pictures by caption, as data inside the page.

    Raises:
      UserError: one that isn't there.
    """
    figures = []
    for caption, file in pictures.items():
        if not Path(file).is_file():
            raise UserError(f"Plot {caption!r} isn't at {file}.", "Draw it before the page.")
        data = base64.b64encode(Path(file).read_bytes()).decode("ascii")
        figures.append(
            f'<figure><div class="picture"><img alt="{escape(caption)}" '
            f'src="data:image/png;base64,{data}"></div><figcaption>{escape(caption)}</figcaption></figure>'
        )
    return f'<div class="plots">{"".join(figures)}</div>'


def ladder(rungs: Sequence[Mapping]) -> str:
    """The template at each level (`asked`, `got`, `tokens`, `text`), side by side."""
    boxes = [
        f'<div class="rung"><h3>τ {rung["got"]:.2f} <small>(asked {rung["asked"]:.2f}, '
        f"{rung['tokens']:,} tokens)</small></h3>"
        f"<pre>{escape(rung['text']) or '(empty)'}</pre></div>"
        for rung in rungs
    ]
    return f'<div class="ladder">{"".join(boxes)}</div>'


def examples(predictions: Mapping[str, Sequence[Mapping]]) -> str:
    """Filters, and one unfolding entry per example with every arm's answer.

    Args:
      predictions: arm to its answers, all over the same examples in the same order: `query`,
        `gold`, `prediction`, `score`, `slice`.

    Raises:
      UserError: arms that answered different examples.
    """
    first_arm, first = next(iter(predictions.items()))
    for arm, answers in predictions.items():
        asked = [answer["query"] for answer in answers]
        if asked != [answer["query"] for answer in first]:
            raise UserError(
                f"Arms {first_arm!r} and {arm!r} answered different examples.",
                "Evaluate every arm on the same examples in the same order.",
            )
    slices = dict.fromkeys(answer["slice"] for answer in first)
    buttons = "".join(
        f'<button data-show="{kind}" aria-pressed="{str(kind == "all").lower()}">{label}</button>'
        for kind, label in (
            ("all", "all"),
            ("disagree", "arms disagree"),
            ("wrong", "wrong"),
            ("right", "right"),
        )
    )
    arms = "".join(
        f'<option value="{index}">{escape(arm)}</option>' for index, arm in enumerate(predictions)
    )
    parts = "".join(f"<option>{escape(str(name))}</option>" for name in slices)
    count = min(len(first), MAX_EXAMPLES, max(MAX_ANSWERS // len(predictions), 1))
    entries = [
        _example(index, {arm: answers[index] for arm, answers in predictions.items()})
        for index in range(count)
    ]
    return (
        f'<div class="drill"><div class="filters">{buttons}'
        f'<select class="arm" aria-label="arm"><option value="">any arm</option>{arms}</select>'
        '<select class="slice" aria-label="slice"><option value="">every slice</option>'
        f'{parts}</select><small class="count"></small></div>'
        f"<p>{count} of {len(first)} examples.</p>\n" + "\n".join(entries) + "</div>"
    )


def _example(index: int, answers: Mapping[str, Mapping]) -> str:
    right = [answer["score"] >= RIGHT_SCORE for answer in answers.values()]
    example = next(iter(answers.values()))
    rows = "".join(
        f"<tr><td>{escape(arm)}</td><td>{_verdict(answer['score'])}</td>"
        f"<td><pre>{escape(answer['prediction'])}</pre></td></tr>"
        for arm, answer in answers.items()
    )
    return (
        f'<details class="example" data-right="{"".join("01"[r] for r in right)}" '
        f'data-slice="{escape(str(example["slice"]))}">'
        f"<summary>{index + 1}. {escape(example['query'])} "
        f"<small>{escape(str(example['slice']))}, {sum(right)} of {len(right)} right</small>"
        f'</summary><div class="scroll"><table><tr><th>Arm</th><th>Score</th><th>Answer</th></tr>'
        f"<tr><td>gold</td><td></td><td><pre>{escape(example['gold'])}</pre></td></tr>"
        f"{rows}</table></div></details>"
    )


def _verdict(score: float) -> str:
    if score >= RIGHT_SCORE:
        return '<span class="right">✓ right</span>'
    return f'<span class="wrong">✗ {f"{score:.1f}" if score else "wrong"}</span>'


def provenance(config: Mapping, command: str, versions: Mapping[str, str]) -> str:
    """Command, configuration (JSON-ready) and versions."""
    text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    return (
        f'<div class="card"><pre>{escape(command)}</pre></div>'
        f"<details><summary>Configuration</summary><pre>{escape(text)}</pre></details>"
        f"<details><summary>Versions</summary>{table(['Library', 'Version'], versions.items())}"
        "</details>"
    )

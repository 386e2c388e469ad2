"""README.md of an export: what it is, what it replaces, what it scores, and how to load it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pintern.interop.manifest import Base


@dataclasses.dataclass(frozen=True)
class Score:
    """One evaluation of the run.

    Attributes:
      what: model and prompt, in words.
      metric: name of the score.
      value: 0 to 100.
      interval: 95% bounds, or None.
      tokens: mean prompt tokens of a request.
    """

    what: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    tokens: float


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a card tells.

    Attributes:
      name: of the run.
      task: of the task.
      base: what the export sits on.
      parts: as in the manifest.
      trained: rank, α, modules and virtual tokens, in words.
      step: optimizer steps behind the export.
      template: the recurring prompt, whole.
      prompt: what is left of it at inference; mostly empty.
      shots: retrieved examples that a request still holds.
      query_format: how a query is written down.
      example: a query.
      bos: ids at the head of every request.
      max_new_tokens: of an answer.
      tokens_before: mean prompt tokens of a request with the whole prompt.
      tokens_after: likewise at inference, virtual tokens included.
      scores: of the run's evaluations.
      measured: the run's entry in a study's summary.json, or None.
      chat_ends: ids that end an answer where queries are written by the checkpoint's chat template;
        empty where `query_format` writes them.
    """

    name: str
    task: str
    base: Base
    parts: Mapping[str, str]
    trained: str
    step: int
    template: str
    prompt: str
    shots: int
    query_format: str
    example: str
    bos: Sequence[int]
    max_new_tokens: int
    tokens_before: float
    tokens_after: float
    scores: Sequence[Score]
    measured: Mapping[str, Any] | None
    chat_ends: Sequence[int] = ()


def render_card(facts: Facts) -> str:
    """The card as Markdown, with the header that the hub reads."""
    peft = "model" not in facts.parts
    revision = f", revision `{facts.base.revision}`" if facts.base.revision else ""
    head = [
        "---",
        f"library_name: {'peft' if peft else 'transformers'}",
        f"base_model: {json.dumps(facts.base.name)}",
        "pipeline_tag: text-generation",
        f"tags: [pintern, {', '.join(facts.parts)}]",
        "---",
        "",
        f"# {facts.name}: the prompt of “{facts.task}”, internalised",
        "",
        _opening(facts),
        "",
        "| | |",
        "| :--- | :--- |",
        f"| Base | `{facts.base.name}` ({facts.base.family}{revision}) |",
        f"| Fingerprint of the base | `{facts.base.fingerprint}` |",
        f"| Trained | {facts.trained}; {facts.step} steps |",
        *(f"| Part `{kind}` | `{folder}/` |" for kind, folder in facts.parts.items()),
    ]
    sections = [
        _section("Tokens saved", _tokens(facts)),
        _section("Scores", _scores(facts.scores)),
        _section("How to load it", _loading(facts)),
        _section("The prompt that was internalised", _prompt(facts)),
    ]
    return "\n".join(head) + "\n\n" + "\n".join(sections)


def _opening(facts: Facts) -> str:
    rest = "the query alone is sent"
    if facts.prompt or facts.shots:
        rest = "what is sent is the query behind "
        left = ["a shortened prompt"] * bool(facts.prompt)
        left += [f"{facts.shots} retrieved examples"] * bool(facts.shots)
        rest += " and ".join(left)
    return (
        "A recurring prompt that stood in front of every request was moved into this "
        f"{' and this '.join(_WHAT[kind] for kind in facts.parts)}: {rest}."
    )


_WHAT = {"lora": "LoRA adapter", "soft_prompt": "soft prompt", "model": "model's weights"}


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}\n"


def _tokens(facts: Facts) -> str:
    saved = 1 - facts.tokens_after / facts.tokens_before
    text = (
        f"A request took {facts.tokens_before:.1f} prompt tokens on average with the whole prompt, "
        f"and takes {facts.tokens_after:.1f}: {saved:.1%} fewer."
    )
    if facts.measured is None:
        return text
    m = facts.measured
    return (
        f"{text}\n\nMeasured with it: {m['speedup_vs_full']:.2f}× as fast as the full prompt "
        f"({m['speedup_vs_cached']:.2f}× with its prefix cached), {m['cost_saving']:.1%} less cost "
        "at the study's price list."
    )


def _scores(scores: Sequence[Score]) -> str:
    if not scores:
        return "Not scored: `python -m pintern.evaluate --workdir=RUN` before an export fills this."
    lines = [
        "| What | Metric | Score | 95% | Prompt tokens |",
        "| :--- | :--- | ---: | ---: | ---: |",
    ]
    for s in scores:
        bounds = "" if s.interval is None else f"{s.interval[0]:.1f}–{s.interval[1]:.1f}"
        lines.append(f"| {s.what} | {s.metric} | {s.value:.1f} | {bounds} | {s.tokens:.1f} |")
    return "\n".join(lines)


def _loading(facts: Facts) -> str:
    folder = {kind: json.dumps(name) for kind, name in facts.parts.items()}
    base = folder.get("model")
    if base is None:
        base = json.dumps(facts.base.name)
        if facts.base.revision:
            base += f", revision={json.dumps(facts.base.revision)}"
    lines = ["import torch"]
    if facts.parts.keys() & {"lora", "soft_prompt"}:
        lines.append("from peft import PeftModel")
    lines += [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({base})",
        f"model = AutoModelForCausalLM.from_pretrained({base})",
    ]
    if "lora" in facts.parts:
        lines.append(f"model = PeftModel.from_pretrained(model, {folder['lora']})")
        if "soft_prompt" in facts.parts:
            lines.append("model = model.merge_and_unload()  # the soft prompt was trained with it")
    if "soft_prompt" in facts.parts:
        lines.append(f"model = PeftModel.from_pretrained(model, {folder['soft_prompt']})")
    if facts.prompt:
        # The text itself stands in pintern.json, which is read so that no quoting can spoil it.
        lines[0:0] = ["import json", ""]
        lines.append('prompt = json.load(open("pintern.json"))["details"]["prompt"]["text"]')
    end = f"eos_token_id={list(facts.chat_ends)}, " if facts.chat_ends else ""
    lines += [
        "",
        *_asking(facts),
        f"made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), "
        f"max_new_tokens={facts.max_new_tokens}, {end}do_sample=False)",
        "print(tokenizer.decode(made[0, ids.shape[1]:], skip_special_tokens=True))",
    ]
    code = "\n".join(lines)
    text = (
        f"Run in this folder, with `pip install torch transformers peft`:\n\n```python\n{code}\n```"
    )
    if facts.shots:
        text += (
            f"\n\nThe run was made for {facts.shots} retrieved examples in front of the query, "
            "which this snippet leaves out."
        )
    if "model" not in facts.parts:
        text += (
            "\n\nHere: `python -m pintern.evaluate --workdir=RUN --adapter=THIS_FOLDER` scores it, "
            "and `--config.adapter.init_from=THIS_FOLDER` goes on training from it."
        )
    return text


def _asking(facts: Facts) -> list[str]:
    """Lines that make `ids` of the example, as in training."""
    if facts.chat_ends:
        system = '{"role": "system", "content": prompt}, ' if facts.prompt else ""
        return [
            f"query = {facts.example!r}",
            f'messages = [{system}{{"role": "user", "content": query}}]',
            "ids = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ')["input_ids"]',
        ]
    pieces = [f"{list(facts.bos)!r}"] if facts.bos else []
    names = ["prompt"] * bool(facts.prompt) + ["query"]
    pieces += [f'tokenizer({name}, add_special_tokens=False)["input_ids"]' for name in names]
    return [
        f"query = {facts.query_format!r}.replace('{{query}}', {facts.example!r})",
        "# Piece by piece, as in training.",
        f"ids = torch.tensor([{' + '.join(pieces)}])",
    ]


def _prompt(facts: Facts) -> str:
    parts = ["It is no longer sent:", _fence(facts.template)]
    if facts.prompt:
        parts += [
            "What is left of it, and has to be sent in front of the query:",
            _fence(facts.prompt),
        ]
    return "\n\n".join(parts)


def _fence(text: str) -> str:
    ticks = "`" * 3
    while ticks in text:
        ticks += "`"
    end = "" if text.endswith("\n") else "\n"
    return f"{ticks}text\n{text}{end}{ticks}"

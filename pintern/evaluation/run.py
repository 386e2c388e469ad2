"""One point of the ledger evaluated: an adapter (or none) behind a prompt, on the test set."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from pintern.adapters.adapter import Adapter
from pintern.assemble import Parts, check_context, split_decoder
from pintern.evaluation.decode import Generator, Sampling
from pintern.evaluation.metrics import Scores, score_interval, score_predictions, score_slices
from pintern.evaluation.metrics.programs import problem_of
from pintern.evaluation.samples import merge_samples, pass_table
from pintern.evaluation.sandbox.runner import protections
from pintern.files import write_atomically, writing
from pintern.models.merge import merge_lora
from pintern.models.quantize import is_quantized
from pintern.prompts.rows import Row


@dataclasses.dataclass(frozen=True)
class InferencePrompt:
    """What stands in front of the query when serving.

    Attributes:
      keep_rate: τ of the template.
      shots: retrieved examples.
      cached: the template is prefilled once and kept, or read again by every request.
    """

    keep_rate: float
    shots: int
    cached: bool = True

    @classmethod
    def of(cls, config: ConfigDict) -> InferencePrompt:
        """What a config serves behind."""
        return cls(config.eval.keep_rate, config.eval.shots, config.eval.cached)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured on the test set.

    Attributes:
      scores: over all examples.
      slices: over each slice.
      interval: 95% bootstrap bounds of the score over the test examples; None where the score can't
        be resampled.
      further: the task's further metrics, over all examples.
      pass_at: k to pass@k, where several answers were drawn and are right or wrong.
      decoding: how the answers were made.
      template: mean prompt tokens per request of BOS, soft prompt and template.
      examples: of retrieved examples.
      query: of the query.
      output: generated, EOS included where an answer ended with it.
      predictions: one object per test example.
    """

    scores: Scores
    slices: dict[str, Scores]
    interval: tuple[float, float] | None
    further: dict[str, Scores]
    pass_at: dict[int, float]
    decoding: dict[str, Any]
    template: float
    examples: float
    query: float
    output: float
    predictions: list[dict[str, Any]]


def serving_model(parts: Parts, adapter: Adapter | None) -> tuple[tuple, Adapter | None]:
    """The base with LoRA merged, split for pure functions, and what is left of the adapter.

    Beside a quantised base LoRA stays as it is: merged, all kernels would be floats again.
    """
    decoder = parts.checkpoint.decoder
    if adapter is None or is_quantized(decoder):
        return nnx.split(decoder), adapter
    soft = adapter.replace(lora={}) if adapter.soft_prompt is not None else None
    return nnx.split(merge_lora(decoder, adapter) if adapter.lora else decoder), soft


def sampling_of(parts: Parts, temperature: float = 0.0) -> Sampling:
    """How the run's model is decoded: greedily unless a temperature is given."""
    return Sampling(
        parts.config.eval.max_new_tokens,
        parts.tokenizer.eos,
        temperature,
        also_end=parts.tokenizer.also_end,
    )


def make_generator(
    parts: Parts,
    adapter: Adapter | None,
    prompt: InferencePrompt,
    *,
    draft_tokens: int | None = None,
) -> Generator:
    """A generator that serves as the arm would.

    Args:
      parts: of the run.
      adapter: that is on.
      prompt: that rows stand behind.
      draft_tokens: in place of the config's, see `Sampling`.
    """
    (graph, base), soft = serving_model(parts, adapter)
    fields = parts.config.eval
    drafted = fields.draft_tokens if draft_tokens is None else draft_tokens
    return Generator(
        graph,
        base,
        soft,
        parts.prompts.prefix(prompt.keep_rate),
        sampling_of(parts, fields.temperature)._replace(draft_tokens=drafted),
        cached=prompt.cached,
        answers=known_answers(parts) if drafted else (),
    )


def known_answers(parts: Parts) -> list[list[int]]:
    """Token ids of the labelled pairs' completions."""
    return [pieces.completion for pieces in parts.prompts.pool]


def test_rows(parts: Parts, prompt: InferencePrompt) -> list[Row]:
    """The test set's requests, checked against the model's context."""
    test = parts.prompts.task.test
    rows = parts.prompts.request_rows(test, prompt.shots)
    longest = int(np.argmax([len(row.tokens) for row in rows]))
    check_context(
        parts,
        len(parts.prompts.prefix(prompt.keep_rate)) + parts.config.adapter.soft_prompt,
        len(rows[longest].tokens),
        f"Test example {test[longest].id} at τ={prompt.keep_rate:g} with {prompt.shots} shots",
        new=parts.config.eval.max_new_tokens,
    )
    return rows


def scoring_options(parts: Parts) -> dict[str, Any]:
    """Settings of the task's metrics.

    Raises:
      UserError: programs are to be run, and can't be confined on this machine.
    """
    task, unconfined = parts.prompts.task, parts.config.eval.unconfined
    if "pass" in (task.metric, *task.further_metrics) and not unconfined:
        protections()
    return {"database": task.database, "unconfined": unconfined, **task.metric_options}


def check_scoring(parts: Parts) -> None:
    """Tells of what can't be judged by, before anything is generated.

    Raises:
      UserError: see `scoring_options`; a setting, a gold answer or the facts of a test example.
    """
    task, options = parts.prompts.task, scoring_options(parts)
    for metric in (task.metric, *task.further_metrics):
        if metric == "pass":  # without the sandbox, which takes its time
            list(map(problem_of, task.test))
        else:
            score_predictions(metric, [""] * len(task.test), task.test, **options)


def evaluate(
    parts: Parts,
    adapter: Adapter | None,
    prompt: InferencePrompt,
    *,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Generates for the whole test set and scores it.

    Of `eval.samples` answers to each example the scores are means; the first answers are those that
    one sample alone would give.
    """
    config = parts.config
    check_scoring(parts)
    rows = test_rows(parts, prompt)
    made = make_generator(parts, adapter, prompt)(
        [row.tokens for row in rows] * config.eval.samples,
        batch_rows=config.eval.batch_rows,
        seed=config.seed,
        progress=progress,
    )
    return judge(parts, adapter, prompt, rows, made)


def evaluate_together(
    members: Sequence[tuple[Parts, Adapter | None]],
    prompt: InferencePrompt,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Evaluation]:
    """`evaluate` of several adapters on one base, in one batch: greedy, one answer each.

    LoRA stays beside the weights, which all of them share; so a near tie may fall otherwise than
    with merged weights.
    """
    parts = members[0][0]
    check_scoring(parts)
    rows = [test_rows(each, prompt) for each, _ in members]
    generator = Generator.together(
        *split_decoder(parts.checkpoint),
        [(adapter, each.prompts.prefix(prompt.keep_rate)) for each, adapter in members],
        sampling_of(parts),
    )
    made = generator(
        [row.tokens for own in rows for row in own],
        members=[number for number, own in enumerate(rows) for _ in own],
        batch_rows=parts.config.eval.batch_rows,
        progress=progress,
    )
    starts = np.cumsum([0, *(len(own) for own in rows)])
    return [
        judge(each, adapter, prompt, own, made[first : first + len(own)])
        for (each, adapter), own, first in zip(members, rows, starts, strict=False)
    ]


def judge(
    parts: Parts,
    adapter: Adapter | None,
    prompt: InferencePrompt,
    rows: Sequence[Row],
    made: Sequence[Sequence[int]],
) -> Evaluation:
    """Scores what was generated for the test set.

    Args:
      parts: of the run.
      adapter: that was on.
      prompt: that the rows stood behind.
      rows: of the test set.
      made: tokens of the first answer to each row, then of the second, up to `eval.samples`.
    """
    config, task = parts.config, parts.prompts.task
    samples, count = config.eval.samples, len(task.test)
    options = scoring_options(parts)
    answers = [parts.tokenizer.decode(ids).strip() for ids in made]
    tests = task.test * samples
    drawn, slices = score_slices(task.metric, answers, tests, [e.slice for e in tests], **options)
    scores = merge_samples(drawn, samples)
    further = {
        name: merge_samples(score_predictions(name, answers, tests, **options), samples)
        for name in task.further_metrics
    }
    pieces = parts.prompts.renderer.pieces(task.test)
    query = float(np.mean([len(piece.query) for piece in pieces]))
    virtual = 0 if adapter is None else adapter.num_virtual_tokens
    return Evaluation(
        scores=scores,
        slices={name: found for name, found in slices.items() if name},
        interval=score_interval(scores, config.seed),
        further=further,
        pass_at=pass_table(drawn, samples) if samples > 1 else {},
        decoding={
            "max_new_tokens": config.eval.max_new_tokens,
            "temperature": config.eval.temperature,
            "samples": samples,
            "seed": config.seed,
        },
        template=float(len(parts.prompts.prefix(prompt.keep_rate)) + virtual),
        examples=float(np.mean([len(row.tokens) for row in rows])) - query,
        query=query,
        # An answer of full length ended without EOS.
        output=float(np.mean([min(len(ids) + 1, config.eval.max_new_tokens) for ids in made])),
        predictions=[
            {
                "id": example.id,
                "slice": example.slice,
                "query": example.query,
                "gold": example.completion,
                "prediction": answer,
                "score": scores.per_example[place],
                **{name: found.per_example[place] for name, found in further.items()},
                **({"samples": answers[place::count]} if samples > 1 else {}),
            }
            for place, (example, answer) in enumerate(zip(task.test, answers, strict=False))
        ],
    )


def write_evaluation(directory: Path, evaluation: Evaluation, prompt: InferencePrompt) -> None:
    """Writes predictions.jsonl and scores.json."""
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    write_lines(directory / "predictions.jsonl", evaluation.predictions)
    scores = {
        "metric": evaluation.scores.name,
        "score": evaluation.scores.value,
        "interval": evaluation.interval,
        "slices": {name: scores.value for name, scores in evaluation.slices.items()},
        "signature": evaluation.scores.signature,
        "reasons": evaluation.scores.reasons,
        "further": {
            name: {"score": scores.value, "signature": scores.signature, "reasons": scores.reasons}
            for name, scores in evaluation.further.items()
        },
        "pass_at": evaluation.pass_at,
        "decoding": evaluation.decoding,
        "prompt": dataclasses.asdict(prompt),
        "tokens": {
            "template": evaluation.template,
            "examples": evaluation.examples,
            "query": evaluation.query,
            "output": evaluation.output,
        },
    }
    write_atomically(directory / "scores.json", json.dumps(scores, indent=2) + "\n")


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object a line."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(path, text)

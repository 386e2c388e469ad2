"""All prompts of a run: the template at every level, the retrieved examples, the token rows."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from pintern.curriculum import AdaptiveState, Curriculum
from pintern.distributed import from_first
from pintern.files import bring_up_to_date
from pintern.paths import user_cache
from pintern.prompts.compressors.make import make_compressor
from pintern.prompts.compressors.self_information import Surprisal
from pintern.prompts.kept import LARGE, kept_lists
from pintern.prompts.ladder import Rung, build_ladder, read_ladder, write_ladder
from pintern.prompts.retrievers.make import make_retriever
from pintern.prompts.retrievers.pool import Retriever
from pintern.prompts.retrievers.vectors import Encoder, digest
from pintern.prompts.rows import Pieces, Renderer, Row
from pintern.prompts.task import Example, Task
from pintern.prompts.tokens import PieceTokenizer
from pintern.schedules import curriculum_of


class StageTokens(NamedTuple):
    """One stage's prompt in tokens of the model's own tokenizer; means over the labelled pairs.

    Attributes:
      step: at which the stage begins.
      asked: keep rate τ of the template.
      got: tokens of its text over tokens of the full template.
      shots: examples in front of the query.
      template: tokens of the template's text.
      examples: tokens of the examples.
      query: tokens of the query.
      prompt: all of them.
      of_whole_prompt: over the prompt of full template and the first level's examples. It isn't τ:
        examples and query count too.
    """

    step: int
    asked: float
    got: float
    shots: int
    template: int
    examples: float
    query: float
    prompt: float
    of_whole_prompt: float


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of a run.

    Attributes:
      task: what is asked.
      renderer: pieces to rows.
      curriculum: levels over steps.
      ladder: template text by keep rate.
      pool: pieces of the labelled pairs: training rows, and what retrieval draws from.
      retriever: finds examples in the pool by their queries.
    """

    task: Task
    renderer: Renderer
    curriculum: Curriculum
    ladder: dict[float, Rung]
    pool: list[Pieces]
    retriever: Retriever

    def rung(self, keep_rate: float) -> Rung:
        """The template at a rate of the ladder, or at what tables and file names show of it."""
        found = self.ladder.get(keep_rate)
        return found or next(r for rate, r in self.ladder.items() if round(rate, 2) == keep_rate)

    def prefix(self, keep_rate: float) -> list[int]:
        """Ids of BOS and the template at a keep rate of the ladder."""
        return self.renderer.prefix(self.rung(keep_rate).text)

    @functools.cache  # noqa: B019  one object a run
    def shots_for_pool(self, shots: int) -> list[list[Pieces]]:
        """Examples for each labelled pair, never itself (leave-one-out)."""
        queries = [example.query for example in self.task.train]
        return self._shots(queries, shots, list(range(len(queries))))

    def shots_for(self, queries: Sequence[str], shots: int) -> list[list[Pieces]]:
        """Examples for queries from outside the pool."""
        return self._shots(queries, shots, None)

    def shots_for_log(self, queries: Sequence[str], shots: int) -> list[list[Pieces]]:
        """Examples for queries that are trained on beside the labelled pairs.

        A log may ask what a labelled pair asks; that pair isn't shown, as it holds the answer.
        """
        place_of = {example.query: place for place, example in enumerate(self.task.train)}
        return self._shots(queries, shots, [place_of.get(query) for query in queries])

    def _shots(
        self, queries: Sequence[str], shots: int, exclude: list[int | None] | None
    ) -> list[list[Pieces]]:
        if shots == 0:
            return [[] for _ in queries]
        found = self.retriever.neighbours(queries, shots, exclude=exclude)
        return [[self.pool[i] for i in indices] for indices in found]

    def request_rows(self, examples: Sequence[Example], shots: int) -> list[Row]:
        """Rows to be completed: shots and query, no completion."""
        found = self.shots_for([example.query for example in examples], shots)
        return self._open_rows(examples, found)

    def log_rows(self, examples: Sequence[Example], shots: int) -> list[Row]:
        """Rows that the teacher completes, behind the examples that training shows them with."""
        found = self.shots_for_log([example.query for example in examples], shots)
        return self._open_rows(examples, found)

    def _open_rows(
        self, examples: Sequence[Example], shots: Sequence[Sequence[Pieces]]
    ) -> list[Row]:
        return [
            self.renderer.row(piece, shot, complete=False)
            for piece, shot in zip(self.renderer.pieces(examples), shots, strict=True)
        ]

    def levels(self) -> list[StageTokens]:
        """What each stage's prompt was to hold and what it holds, in tokens."""
        shot = np.mean([len(p.query) + len(p.completion) for p in self.pool])
        shot += len(self.renderer.example_end)
        query = float(np.mean([len(p.query) for p in self.pool]))
        whole = self.ladder[1.0].tokens + self.curriculum.levels[0].shots * shot + query
        found = []
        for stage in self.curriculum.stages:
            rung, shots = self.ladder[stage.level.keep_rate], stage.level.shots
            examples = float(shots * shot)
            prompt = rung.tokens + examples + query
            found.append(
                StageTokens(
                    step=stage.start,
                    asked=rung.asked,
                    got=rung.got,
                    shots=shots,
                    template=rung.tokens,
                    examples=examples,
                    query=query,
                    prompt=prompt,
                    of_whole_prompt=float(prompt / whole),
                )
            )
        return found

    def schedule_table(self) -> str:
        """The schedule as text: one line a stage, the rate asked for beside the one got."""
        head = (
            f"{'step':>6}  {'asked τ':>7}  {'got τ':>6}  {'shots':>5}  {'template':>8}  "
            f"{'examples':>8}  {'query':>5}  {'prompt tokens':>13}  {'of whole prompt':>15}"
        )
        lines = [head, "-" * len(head)]
        for stage in self.levels():
            lines.append(
                f"{stage.step:>6}  {stage.asked:>7.2f}  {stage.got:>6.3f}  {stage.shots:>5}  "
                f"{stage.template:>8}  {stage.examples:>8.0f}  {stage.query:>5.0f}  "
                f"{stage.prompt:>13.0f}  {stage.of_whole_prompt:>14.1%}"
            )
        if self.curriculum.adaptive:
            lines.append("adaptive: a stage ends earlier when the next level scores within ε.")
        lines += self._smoothing_lines()
        return "\n".join(lines)

    def write(self, directory: Path) -> None:
        """Writes every level's text, and `levels.json` with the rates asked for and got.

        Raises:
          UserError: see `write_ladder`.
        """
        write_ladder(directory, self.ladder)
        record = [stage._asdict() for stage in self.levels()]
        bring_up_to_date(directory / "levels.json", json.dumps(record, indent=2) + "\n")

    def _smoothing_lines(self) -> list[str]:
        curriculum = self.curriculum
        if not curriculum.smoothing:
            return []
        lines = [
            f"smoothing λ={curriculum.smoothing:g}: a step is further along with probability "
            f"{math.exp(-curriculum.smoothing):.1%}; drawn for seed {curriculum.seed}:"
        ]
        for number, stage in enumerate(curriculum.stages[:-1]):
            # As scheduled: an adaptive run that leaves a stage early has fewer of these.
            state = AdaptiveState(number, stage.start)
            found = [curriculum.level_at(s, state) for s in range(stage.start, stage.stop)]
            ahead = {level: found.count(level) for level in dict.fromkeys(found)}
            ahead.pop(stage.level, None)
            shown = ", ".join(
                f"{count} at τ={level.keep_rate:.2f} with {level.shots} shots"
                for level, count in sorted(ahead.items(), reverse=True)
            )
            lines.append(f"  steps {stage.start}–{stage.stop - 1}: {shown or 'none ahead'}")
        return lines


def pool_pieces(renderer: Renderer, examples: Sequence[Example], cache: Path) -> list[Pieces]:
    """Token ids of the labelled pairs; those of many are kept in the folder `cache`."""
    if len(examples) < LARGE or renderer.chat is not None:
        return renderer.pieces(examples)
    texts = [text for e in examples for text in (e.query, e.completion)]
    name = digest([renderer.tokenizer.identity, repr(renderer.task.format), *texts])

    def make() -> list[list[int]]:
        return [ids for p in renderer.pieces(examples) for ids in (p.query, p.completion)]

    ids = kept_lists(cache / f"{name}.npz", make)
    return [Pieces(*pair) for pair in zip(ids[::2], ids[1::2], strict=True)]


def prepare_prompts(
    config: ConfigDict,
    task: Task,
    tokenizer: PieceTokenizer,
    surprisal: Surprisal,
    encoder: Encoder,
    *,
    directory: Path | None = None,
) -> Prompts:
    """Builds every level's text and the index that examples are retrieved from.

    Args:
      config: checked config.
      task: template and examples.
      tokenizer: the checkpoint's.
      surprisal: bits of each token under the base model, for the self-information compressor.
      encoder: vectors of texts under the base model, for dense retrieval.
      directory: where the texts are written as readable files (`prompts/` of the run). Texts that
        lie there already, perhaps edited by hand, are used as they are.
    """
    curriculum = curriculum_of(config)
    rates = {1.0, 0.0, *(level.keep_rate for level in curriculum.levels)}
    if config.eval.keep_rate not in {round(rate, 2) for rate in rates}:  # see `Prompts.rung`
        rates.add(config.eval.keep_rate)
    rates = sorted(rates)
    given = Path(config.prompt.ladder) if config.prompt.ladder else None
    if directory and (directory / "ladder.json").exists() and not (given and given.is_dir()):
        given = directory  # a run outlives the folder that its texts came from
    if given is not None:
        ladder = read_ladder(given, rates, tokenizer, task.template)
    else:
        compressor = make_compressor(
            config.prompt.compressor,
            tokenizer,
            surprisal=surprisal,
            llmlingua_model=config.prompt.llmlingua_model,
        )
        ladder = build_ladder(task.template, rates, compressor, tokenizer)
    renderer = Renderer.create(tokenizer, task)
    prompts = Prompts(
        task=task,
        renderer=renderer,
        curriculum=curriculum,
        ladder=ladder,
        pool=pool_pieces(renderer, task.train, user_cache() / "tokens"),
        retriever=make_retriever(
            config.prompt.retriever,
            [example.query for example in task.train],
            seed=config.seed,
            encoder=encoder,
            sentence_model=config.prompt.sentence_model,
            similarity=config.prompt.similarity,
            quantile=config.prompt.similarity_quantile,
            fixed_shots=config.prompt.fixed_shots,
            cache=user_cache() / "vectors",
        ),
    )
    if directory is not None:
        from_first(lambda: prompts.write(directory))
    return prompts

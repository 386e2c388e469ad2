"""Scores of the adaptive curriculum: would the next level do as well as this one?"""

from __future__ import annotations

import numpy as np

from pintern.adapters.adapter import Adapter
from pintern.assemble import Parts, split_decoder
from pintern.curriculum import Level
from pintern.distributed import from_first
from pintern.evaluation.decode import Generator
from pintern.evaluation.metrics import score_predictions
from pintern.evaluation.run import sampling_of, scoring_options


def probe_score(parts: Parts, adapter: Adapter, level: Level) -> float:
    """The task's score, 0 to 100, on a fixed draw of labelled pairs at a level's prompt.

    Of several processes all generate, and the first one's score is that of all: programs that are
    run may end in time on one host and not on another, and the stage follows from it.
    """
    config, prompts = parts.config, parts.prompts
    train = prompts.task.train
    drawn = np.random.default_rng([config.seed, 4]).permutation(len(train))
    drawn = sorted(drawn[: config.curriculum.probe].tolist())
    shots = prompts.shots_for_pool(level.shots)
    rows = [prompts.renderer.row(prompts.pool[i], shots[i], complete=False) for i in drawn]
    generator = Generator(
        *split_decoder(parts.checkpoint),
        adapter,
        prompts.prefix(level.keep_rate),
        sampling_of(parts),
    )
    made = generator([row.tokens for row in rows], batch_rows=config.eval.batch_rows)
    predictions = [parts.tokenizer.decode(ids).strip() for ids in made]
    task = prompts.task
    golds = [train[i] for i in drawn]
    return from_first(
        lambda: score_predictions(task.metric, predictions, golds, **scoring_options(parts)).value
    )

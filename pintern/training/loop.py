"""A whole training run, readable from top to bottom."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from pintern.assemble import Parts, assemble, new_adapter, split_decoder
from pintern.config import trains
from pintern.curriculum import AdaptiveState, Level
from pintern.distributed import agree, any_of, first_before_others, from_first, is_first
from pintern.errors import UserError
from pintern.models.sharding import mesh_of, rows_over, traced_on
from pintern.progress import Progress
from pintern.training.batches import Shape, widths_of_level
from pintern.training.checkpoint import Checkpoints
from pintern.training.data import TrainingData
from pintern.training.examples import check_examples
from pintern.training.lengths import check_lengths
from pintern.training.metrics import is_finite, not_finite, step_row
from pintern.training.placement import abstract_batch, place, place_batch, state_shardings
from pintern.training.probe import probe_score
from pintern.training.programs import AHEAD, Programs, abstract
from pintern.training.record import Recorder
from pintern.training.signals import asked_to_stop, sigterm
from pintern.training.stages import forget_later, keep_stage
from pintern.training.step import (
    Teacher,
    TrainState,
    learning_rate,
    loss_options,
    make_optimizer,
    make_step,
    reset_moments,
)
from pintern.training.teacher import (
    answer_log,
    base_teacher,
    check_distillation,
    first_stage_teacher,
)
from pintern.training.workdir import check_base, claim, only_training, record_changes


def train(config: ConfigDict, workdir: Path, *, allow_changed: Collection[str] = ()) -> bool:
    """Trains, or resumes, the run of a config in its folder.

    A run is resumed by these steps, in this order:
      1. the folder's config, base and digest of examples are compared with what is given;
      2. templates, retrieved examples and the teacher's answers are read back or made again alike;
      3. adapter, optimizer and curriculum state come from the latest checkpoint;
      4. metrics.jsonl is cut back to that step;
      5. data order and random keys are pure functions of the step, so nothing else is needed.

    Args:
      config: the run's.
      workdir: its folder.
      allow_changed: "config", "base" or both: resume though they differ from those of the run that
        is there, and note it in changes.jsonl.

    Returns:
      True when the run is complete, False when SIGTERM stopped it: after a checkpoint, or before
      there was anything to save.

    Raises:
      UserError: see the callees; also a config that trains nothing, or a loss that is not finite.
    """
    check_trains(config)
    if any_of(asked_to_stop()):
        return False
    with only_training(workdir):
        return _train(config, workdir, allow_changed)


def _train(config: ConfigDict, workdir: Path, allow_changed: Collection[str]) -> bool:
    # ── the run and its parts ──
    on_request = "config" in allow_changed
    resumed = agree(
        first_before_others(
            lambda: claim(workdir, config, free=True, on_request=on_request, alone=True)
        )
    )
    parts = assemble(config, prompts_directory=workdir / "prompts" if resumed else None)
    if any_of(asked_to_stop()):
        return False
    check_lengths(parts)  # before the folder is this run's for good
    check_distillation(parts)
    check_rows(parts)
    adapter = new_adapter(parts)
    may_change = "base" in allow_changed
    first_before_others(lambda: check_base(workdir, parts.checkpoint, may_change=may_change))
    first_before_others(lambda: check_examples(workdir, parts))
    from_first(lambda: parts.prompts.write(workdir / "prompts"))
    if not resumed and is_first():
        print(parts.prompts.schedule_table())
    if parts.prompts.task.note and is_first():
        print(parts.prompts.task.note)
    graph, base = split_decoder(parts.checkpoint)
    curriculum = parts.prompts.curriculum

    # ── data, and the teacher; one that is the student itself comes after the first stage ──
    began = time.perf_counter()
    awaited = config.distill.weight > 0 and config.distill.teacher == "first_stage"
    teacher = base_teacher(parts) if config.distill.weight > 0 and not awaited else None
    data = load_data(parts, workdir, teacher)
    if data.unpacked and not resumed and is_first():
        print("Devices have too few rows at a time to pack: config.train.pack=False pads less.")

    # ── state ──
    optimizer = make_optimizer(config.train)
    state = TrainState(adapter, optimizer.init(adapter))
    mesh = mesh_of(parts.checkpoint.decoder.embedding[...])
    laid = state_shardings(mesh, optimizer, state)
    state = place(state, laid)
    stage = AdaptiveState()
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    step = 0
    if resumed and checkpoints.latest is not None:
        step, state, stage = checkpoints.restore(state)
    changes = from_first(lambda: record_changes(workdir, config, parts.checkpoint, step=step))
    for change in changes if is_first() else ():
        print(f"From step {step} on, {change}.")
    if resumed:
        forget_later(workdir, step, changed=bool(changes))

    # ── programs: this level's and the next ones', in the background ──
    programs = Programs(
        traced_on(mesh, make_step(graph, optimizer, **loss_options(config))),
        donate=(0,),
        out_shardings=(laid, None),
    )
    root = jax.random.key(config.seed)

    def prepare(level: Level, step: int | None) -> list[tuple[bool, Shape]]:
        program_keys = []
        for shape, batch in data.programs(level, step, stage):
            program_keys.append((teacher is not None, shape))
            state_, base_, teacher_, key = abstract((state, base, teacher, root))
            programs.prepare(
                program_keys[-1], state_, base_, abstract_batch(mesh, batch), teacher_, key
            )
        return program_keys

    # ── the loop ──
    rates = learning_rate(config.train)
    recorder = Recorder(workdir, first_step=step, since=began)
    pending: list[dict[str, Any]] = []
    prepared: int | None = None
    with (
        closing(programs),
        sigterm() as stop,
        checkpoints,
        Progress(config.name, config.train.steps, done=step) as bar,
    ):
        ended = any_of(bool(stop))
        while step < config.train.steps and not ended:
            if curriculum.must_look(step, stage):
                _flush(pending, recorder, programs, data, checkpoints, stage)
                here, following = curriculum.levels[stage.stage : stage.stage + 2]
                scores = [probe_score(parts, state.adapter, level) for level in (here, following)]
                stage = curriculum.advance(step, stage, *scores)
            number = curriculum.stage_at(step, stage)
            if curriculum.begins_stage(step, stage):
                if config.checkpoint.stages:
                    _flush(pending, recorder, programs, data, checkpoints, stage)
                    keep_stage(workdir, step, state, stage)
                if config.train.reset_optimizer:
                    state = place(state._replace(optimizer=reset_moments(state.optimizer)), laid)
            if awaited and curriculum.stages[number].level != curriculum.levels[0]:
                _flush(pending, recorder, programs, data, checkpoints, stage)
                with bar.paused():
                    teacher = first_stage_teacher(parts, workdir, step, state)
                    data = load_data(parts, workdir, teacher)
                awaited, prepared = False, None
            if number != prepared:
                # What follows the teacher has other data, and shapes not known yet.
                ahead = 0 if awaited else AHEAD
                wanted = curriculum.levels_of_stage(step, stage, ahead=ahead)
                now = curriculum.level_at(step, stage)
                program_keys = [prepare(level, step if level == now else None) for level in wanted]
                programs.keep(itertools.chain(*program_keys))
                prepared = number
            level = curriculum.level_at(step, stage)
            shape, batch, padding = data.batch(step, level, stage)
            program = programs.get((teacher is not None, shape))
            key = jax.random.fold_in(root, step)
            state, metrics = program(state, base, place_batch(mesh, batch), teacher, key)
            row = step_row(step, level, batch, padding, float(rates(step)))
            pending.append(row | metrics)
            step += 1
            save = step % config.checkpoint.every == 0
            meeting = save or step % config.train.log_every == 0
            save = save or (meeting and checkpoints.due(config.checkpoint.minutes))
            if meeting:
                _flush(pending, recorder, programs, data, checkpoints, stage)
            if save:
                checkpoints.save(step, state, stage)
            # Several processes can only stop at the same step, which they agree on where they meet.
            ended = any_of(bool(stop)) if meeting or jax.process_count() == 1 else False
            bar.advance(note=f"τ={level.keep_rate:.2f} shots={level.shots} {recorder.told}")
        # Here and not in the loop: a signal may come between its last line and its condition.
        _flush(pending, recorder, programs, data, checkpoints, stage)
        checkpoints.save(step, state, stage)
    recorder.close(programs)
    return step >= config.train.steps


def check_trains(config: ConfigDict) -> None:
    """Refuses a config with neither LoRA nor a soft prompt."""
    if not trains(config):
        raise UserError(
            "config.adapter has neither LoRA targets nor a soft prompt: nothing would be trained.",
            "Set config.adapter.targets (e.g. ('all',)) or config.adapter.soft_prompt; or score "
            "the base as it is: python -m pintern.evaluate with the same --config.",
        )


def check_rows(parts: Parts) -> None:
    """Refuses a micro-batch whose rows can't be split evenly over the devices."""
    fields, mesh = parts.config.train, mesh_of(parts.checkpoint.decoder.embedding[...])
    rows, devices = fields.batch_rows // fields.accumulate, rows_over(mesh)
    if rows % devices:
        raise UserError(
            f"A micro-batch has {rows} rows (config.train.batch_rows={fields.batch_rows}, "
            f"config.train.accumulate={fields.accumulate}); they are split over {devices} devices "
            f"(config.mesh.data × config.mesh.fsdp).",
            f"Give a multiple of {devices}, or more to config.mesh.tensor.",
        )


def load_data(parts: Parts, workdir: Path, teacher: Teacher | None) -> TrainingData:
    """The labelled pairs, and with a teacher the queries of the log that it answers.

    Raises:
      UserError: nothing is left to learn from, or a row is longer than the context.
    """
    config, mesh = parts.config, mesh_of(parts.checkpoint.decoder.embedding[...])
    answered = []
    if teacher and config.distill.unlabelled:
        with Progress("teacher answers", config.distill.unlabelled, units="queries") as bar:
            answered = answer_log(parts, workdir, teacher.adapter, progress=bar.advance)
        check_lengths(parts, answered)
    labelled = config.train.ce_weight > 0 or config.distill.labelled
    if not answered and not labelled:
        raise UserError(
            f"The teacher answered none of its {config.distill.unlabelled} queries, and labelled "
            "pairs aren't trained on: there is nothing to learn from.",
            "See what it answers (python -m pintern.evaluate --base), or set "
            "config.distill.labelled=True.",
        )
    return TrainingData(
        parts.prompts,
        answered,
        batch_rows=config.train.batch_rows,
        accumulate=config.train.accumulate,
        seed=config.seed,
        teacher_shots=config.distill.shots if teacher else None,
        labelled=labelled,
        pack=config.train.pack,
        widths=widths_of_level(config.train.steps // len(parts.prompts.curriculum.stages)),
        devices=rows_over(mesh),
    )


def _flush(
    pending: list[dict[str, Any]],
    recorder: Recorder,
    programs: Programs,
    data: TrainingData,
    checkpoints: Checkpoints,
    stage: AdaptiveState,
) -> None:
    """Fetches the metrics of the steps since the last call, all of one stage, and writes them.

    Raises:
      UserError: a loss or gradient that is not finite; later steps are not written, no checkpoint
        is made of them, and one made of the very weights that gave this loss is removed.
    """
    for row in pending:
        row.update({k: float(v) for k, v in row.items() if isinstance(v, jax.Array)})
        if not is_finite(row):
            checkpoints.discard(row["step"])
            raise UserError(*not_finite(row, data, stage))
        recorder.write(row)
    recorder.timing(programs)
    pending.clear()

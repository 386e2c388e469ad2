"""Trains N adapters at once over one frozen base: seeds × learning rates × initialisations.

Each member has a run folder of its own, which reads like that of a run that trained alone: the same
config, data order, random keys, metrics and checkpoints, equal up to rounding. What differs is
that one program makes the step of all members (`stacking`), and that a member whose loss is no
longer finite ends without the others: no member's numbers depend on another's. One thing can: where
a random retriever gives members rows of other lengths, packs hold what suits all of them, and
dropout, which is drawn by place, falls otherwise than in a run alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from pintern.assemble import Parts, new_adapter, split_decoder
from pintern.config import validate
from pintern.curriculum import AdaptiveState, Level
from pintern.errors import UserError
from pintern.models.sharding import mesh_of, traced_on
from pintern.progress import Progress
from pintern.training.batches import padding_share
from pintern.training.checkpoint import Checkpoints
from pintern.training.data import TrainingData
from pintern.training.joint_parts import assemble_members
from pintern.training.loop import check_rows, check_trains, load_data
from pintern.training.members import (
    Outcome,
    check_members,
    claim_group,
    common_step,
    outcome_of,
    read_diverged,
    select_group,
    write_diverged,
)
from pintern.training.metrics import is_finite, not_finite, step_row
from pintern.training.placement import (
    abstract_batch,
    of_members,
    place,
    place_batch,
    state_shardings,
)
from pintern.training.programs import AHEAD, Programs, abstract
from pintern.training.record import Recorder
from pintern.training.signals import asked_to_stop, sigterm
from pintern.training.stacking import (
    PopulationData,
    make_population_step,
    rates_of,
    stack,
    unstack,
)
from pintern.training.stages import forget_later, keep_stage
from pintern.training.step import Teacher, TrainState, learning_rate, make_optimizer, reset_moments
from pintern.training.teacher import base_teacher, first_stage_teacher
from pintern.training.workdir import claim, only_training


def train_population(configs: Sequence[ConfigDict], workdirs: Sequence[Path]) -> list[Outcome]:
    """Trains, or resumes, a population; finished members are left as they are.

    At least the last two checkpoints of each member are kept, so that after a kill there is a step
    at which all have one; from there it goes on, and ends with the same adapters, bit for bit.

    Args:
      configs: of the members; see `members.VARIED` for what may differ.
      workdirs: the run folder of each.

    Returns:
      what became of each member, in the given order.

    Raises:
      UserError: configs that can't train together, and whatever `loop.train` refuses.
    """
    check_members(configs, workdirs)
    if jax.process_count() > 1:
        raise UserError(
            f"A population trains in one process; there are {jax.process_count()}.",
            "Start it as one, with all devices of its machine; or train the members one by one.",
        )
    for config in configs:
        check_trains(validate(config))
    with only_training(*workdirs):
        resumed = [claim(*each, alone=True) for each in zip(workdirs, configs, strict=True)]
        group = select_group(configs, workdirs)
        if group and not asked_to_stop():
            _train(*([each[i] for i in group] for each in (configs, workdirs, resumed)))
    return [outcome_of(*each) for each in zip(configs, workdirs, strict=True)]


class _Member:
    """One member's files: what is written of it, and whether it still goes on."""

    def __init__(
        self,
        parts: Parts,
        workdir: Path,
        data: TrainingData,
        step: int,
        since: float,
        sharing: int,
    ):
        self.parts, self.workdir, self.data = parts, workdir, data
        self.rates = learning_rate(parts.config.train)
        self.key = jax.random.key(parts.config.seed)
        self.goes_on = read_diverged(workdir) is None
        if self.goes_on:  # a diverged one's files are as they shall be
            keep = max(parts.config.checkpoint.keep, 2)
            self.checkpoints = Checkpoints(workdir / "checkpoints", keep=keep)
            self.recorder = Recorder(workdir, first_step=step, since=since, sharing=sharing)

    def write(self, row: dict[str, Any]) -> None:
        """A step's metrics; the first that aren't finite end the member."""
        if not self.goes_on:
            return
        if is_finite(row):
            self.recorder.write(row)
            return
        self.checkpoints.discard(row["step"])
        message = " ".join(not_finite(row, self.data))
        write_diverged(self.workdir, row["step"], message)
        print(f"{self.workdir.name} diverged: {message}", file=sys.stderr, flush=True)
        self.goes_on = False
        self.checkpoints.close()

    def close(self, programs: Programs) -> None:
        """Closes the files."""
        if hasattr(self, "recorder"):
            self.recorder.close(programs)
        if self.goes_on:
            self.checkpoints.close()


def _train(configs: Sequence[ConfigDict], workdirs: Sequence[Path], resumed: list[bool]) -> None:
    # ── the members and their parts: one base for all ──
    config = configs[0]
    parts = assemble_members(configs, workdirs, resumed)
    if asked_to_stop():
        return
    check_rows(parts[0])
    graph, base = split_decoder(parts[0].checkpoint)
    curriculum = parts[0].prompts.curriculum

    # ── the teacher: the base is everyone's, a first stage each member's own ──
    began = time.perf_counter()
    awaited = config.distill.weight > 0 and config.distill.teacher == "first_stage"
    teacher = base_teacher(parts[0]) if config.distill.weight > 0 and not awaited else None
    datas = [load_data(p, path, teacher) for p, path in zip(parts, workdirs, strict=True)]

    # ── state: from the last step that all members saved ──
    claim_group(configs, workdirs)
    step = common_step(workdirs)
    members = [
        _Member(p, path, data, step, began, len(parts))
        for p, path, data in zip(parts, workdirs, datas, strict=True)
    ]
    mesh = mesh_of(parts[0].checkpoint.decoder.embedding[...])
    for member in members:
        forget_later(member.workdir, step)
    states = [_restore(member, step) for member in members]
    laid = of_members(state_shardings(mesh, make_optimizer(config.train), states[0]))
    state = place(stack(states), laid)
    keys = jnp.stack([member.key for member in members])
    rates = rates_of(configs)
    data = PopulationData(datas)

    # ── programs: one a level, this level's and the next ones' in the background ──
    programs = Programs(
        traced_on(mesh, make_population_step(graph, config, own_teachers=awaited)),
        donate=(0,),
        out_shardings=(laid, None),
    )

    def prepare(level: Level) -> tuple[bool, Level]:
        program_key = (teacher is not None, level)
        given = abstract((state, base)), abstract((teacher, keys, rates))
        shapes = abstract_batch(mesh, data.abstract(level), members=True)
        programs.prepare(program_key, *given[0], shapes, *given[1])
        return program_key

    # ── the loop ──
    pending: list[tuple[list[dict[str, Any]], dict[str, jax.Array]]] = []
    prepared: int | None = None
    with (
        closing(programs),
        sigterm() as stop,
        ExitStack() as held,
        Progress(f"{config.name} × {len(parts)}", config.train.steps, done=step) as bar,
    ):
        for member in members:
            if member.goes_on:
                held.enter_context(member.checkpoints)
        while step < config.train.steps and not stop and any(member.goes_on for member in members):
            number = curriculum.stage_at(step)
            if curriculum.begins_stage(step):
                if config.checkpoint.stages:
                    _flush(pending, members, programs)
                    _keep_stages(members, step, state)
                if config.train.reset_optimizer:
                    state = place(state._replace(optimizer=reset_moments(state.optimizer)), laid)
            if awaited and curriculum.stages[number].level != curriculum.levels[0]:
                _flush(pending, members, programs)
                if not any(member.goes_on for member in members):
                    break
                with bar.paused():
                    teacher = _own_teachers(members, step, state)
                data = PopulationData([member.data for member in members])
                awaited, prepared = False, None
            if number != prepared:
                # What follows the teacher has other data, and shapes not known yet.
                ahead = 0 if awaited else AHEAD
                wanted = curriculum.levels_of_stage(step, ahead=ahead)
                programs.keep([prepare(level) for level in wanted])
                prepared = number
            level = curriculum.level_at(step)
            batches, each = data.batch(step, level)
            program = programs.get((teacher is not None, level))
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
            placed = place_batch(mesh, batches, members=True)
            state, metrics = program(state, base, placed, teacher, step_keys, rates)
            rows = [
                step_row(
                    step, level, batch, padding_share(batch.student), float(member.rates(step))
                )
                for member, batch in zip(members, each, strict=True)
            ]
            pending.append((rows, metrics))
            step += 1
            log = step % config.train.log_every == 0
            save = step % config.checkpoint.every == 0
            save = save or (log and _due(members, config.checkpoint.minutes))
            if save or log:
                _flush(pending, members, programs)
            if save:
                _save(members, step, state)
            bar.advance(note=_note(level, members))
        # Here and not in the loop: a signal may come between its last line and its condition.
        _flush(pending, members, programs)
        _save(members, step, state)
    for member in members:
        member.close(programs)


def _restore(member: _Member, step: int) -> TrainState:
    """The member's state at a step; a diverged one's is a new one, which nobody looks at."""
    adapter = new_adapter(member.parts)
    state = TrainState(adapter, make_optimizer(member.parts.config.train).init(adapter))
    if step and member.goes_on:
        _, state, _ = member.checkpoints.restore(state, step)
    return state


def _own_teachers(members: Sequence[_Member], step: int, state: TrainState) -> Teacher:
    """Each member as its first stage left it; also loads what they are taught.

    A diverged member is given the teacher and the data of one that goes on.
    """
    teachers: dict[int, Teacher] = {}
    for i, (member, own) in enumerate(zip(members, unstack(state, len(members)), strict=True)):
        if member.goes_on:
            teachers[i] = first_stage_teacher(member.parts, member.workdir, step, own)
            member.data = load_data(member.parts, member.workdir, teachers[i])
    stand_in = next(iter(teachers))
    for i, member in enumerate(members):
        if i not in teachers:
            member.data = members[stand_in].data
    return stack([teachers.get(i, teachers[stand_in]) for i in range(len(members))])


def _flush(
    pending: list[tuple[list[dict[str, Any]], dict[str, jax.Array]]],
    members: Sequence[_Member],
    programs: Programs,
) -> None:
    """Fetches the metrics of the steps since the last call and writes each member's."""
    for rows, metrics in pending:
        values = jax.device_get(metrics)
        for i, (member, row) in enumerate(zip(members, rows, strict=True)):
            member.write(row | {name: float(value[i]) for name, value in values.items()})
    for member in members:
        if member.goes_on:
            member.recorder.timing(programs)
    pending.clear()


def _due(members: Sequence[_Member], minutes: float) -> bool:
    return any(member.checkpoints.due(minutes) for member in members if member.goes_on)


def _save(members: Sequence[_Member], step: int, state: TrainState) -> None:
    # Nobody begins another before all have finished the last: they go back to a common step.
    for member in members:
        if member.goes_on:
            member.checkpoints.wait()
    for member, own in zip(members, unstack(state, len(members)), strict=True):
        if member.goes_on:
            member.checkpoints.save(step, own, AdaptiveState())


def _keep_stages(members: Sequence[_Member], step: int, state: TrainState) -> None:
    for member, own in zip(members, unstack(state, len(members)), strict=True):
        if member.goes_on:
            keep_stage(member.workdir, step, own, AdaptiveState())


def _note(level: Level, members: Sequence[_Member]) -> str:
    losses = [m.recorder.last_loss for m in members if m.goes_on]
    losses = [loss for loss in losses if loss is not None]
    shown = f"{min(losses):.3f}–{max(losses):.3f}" if losses else "–"
    gone = sum(not m.goes_on for m in members)
    tail = f" diverged={gone}" if gone else ""
    return f"τ={level.keep_rate:.2f} shots={level.shots} loss={shown}{tail}"

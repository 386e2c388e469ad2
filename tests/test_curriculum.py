"""Schedules: their levels, their stretches of steps, and when an adaptive one goes on."""

import itertools
import math

import pytest
import tiny

from pintern.curriculum import AdaptiveState, Level
from pintern.errors import UserError
from pintern.schedules import SHAPES, make_curriculum

shape = pytest.mark.parametrize("schedule", list(SHAPES))


def make(**changes):
    return make_curriculum(
        **{"schedule": "linear", "steps": 120, "stages": 4, "max_shots": 2} | changes
    )


def levels_by_step(curriculum, steps):
    return [curriculum.level_at(step) for step in range(steps)]


@pytest.mark.parametrize(
    ("schedule", "middle"),
    [
        ("linear", 0.5),
        ("exponential", (math.exp(-1.5) - math.exp(-3)) / (1 - math.exp(-3))),
        ("inverse_exponential", 1 - (math.exp(-1.5) - math.exp(-3)) / (1 - math.exp(-3))),
        ("cosine", 0.5),
    ],
)
def test_shapes_are_as_documented(schedule, middle):
    rates = [level.keep_rate for level in make(schedule=schedule, stages=3).levels]
    assert rates == pytest.approx([1, middle, 0], abs=1e-6)


def test_cosine_is_flat_at_both_ends():
    rates = [level.keep_rate for level in make(schedule="cosine", stages=5).levels]
    assert rates == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)


@shape
@pytest.mark.parametrize("stages", range(1, 9))
def test_rates_fall_from_the_whole_prompt_to_the_query_alone(schedule, stages):
    rates = [level.keep_rate for level in make(schedule=schedule, stages=stages).levels]
    assert rates[0] == (1 if stages > 1 else 0)
    assert rates[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(rates))


@pytest.mark.parametrize("max_shots", range(0, 13))
@pytest.mark.parametrize("stages", range(2, 9))
def test_shots_are_the_floor_of_the_exact_share(stages, max_shots):
    # In whole numbers: ⌊K·(T−1−s)/(T−1)⌋, where rounding S first would lose an example.
    expected = [max_shots * (stages - 1 - s) // (stages - 1) for s in range(stages)]
    assert [lv.shots for lv in make(stages=stages, max_shots=max_shots).levels] == expected


@shape
@pytest.mark.parametrize("unit", ["stages", "steps"])
@pytest.mark.parametrize(("steps", "stages"), [(4, 4), (5, 4), (97, 4), (120, 1), (120, 7)])
@pytest.mark.parametrize("final_share", [0.0, 0.1, 0.5, 0.99])
def test_stages_cover_every_step_once_and_in_order(schedule, unit, steps, stages, final_share):
    curriculum = make(
        schedule=schedule, unit=unit, steps=steps, stages=stages, final_share=final_share
    )
    found = curriculum.stages
    assert found[0].start == 0
    assert found[-1].stop == steps
    assert all(a.stop == b.start for a, b in itertools.pairwise(found))
    assert all(stage.start < stage.stop for stage in found)
    order = [curriculum.levels.index(stage.level) for stage in found]
    assert order == sorted(set(order))
    for stage in found:
        assert {curriculum.level_at(step) for step in range(stage.start, stage.stop)} == {
            stage.level
        }


def test_equal_shares_without_a_final_share():
    assert [s.stop - s.start for s in make().stages] == [30, 30, 30, 30]


@pytest.mark.parametrize("final_share", [0.25, 0.4, 0.75])
def test_final_share_is_spent_on_the_query_alone(final_share):
    found = [s.stop - s.start for s in make(final_share=final_share).stages]
    assert found[-1] == round(120 * final_share)
    assert max(found[:-1]) - min(found[:-1]) <= 1


@shape
def test_over_steps_every_step_takes_the_nearest_level(schedule):
    steps, stages = 101, 5
    curriculum = make(schedule=schedule, unit="steps", steps=steps, stages=stages)
    rates = [level.keep_rate for level in curriculum.levels]
    for step, level in enumerate(levels_by_step(curriculum, steps)):
        share = SHAPES[schedule](step / (steps - 1))
        nearest = min(abs(rate - share) for rate in rates)
        assert abs(level.keep_rate - share) == pytest.approx(nearest, abs=1e-9)
    assert {level for level in levels_by_step(curriculum, steps)} == set(curriculum.levels)


@shape
@pytest.mark.parametrize("stages", [2, 4, 7])
@pytest.mark.parametrize("final_share", [0.25, 0.4, 0.75])
def test_over_steps_the_final_share_is_spent_on_the_query_alone(schedule, stages, final_share):
    curriculum = make(
        schedule=schedule, unit="steps", steps=200, stages=stages, final_share=final_share
    )
    last = curriculum.stages[-1]
    assert last.level.keep_rate == 0
    assert abs(last.stop - last.start - 200 * final_share) <= 1


@shape
@pytest.mark.parametrize("unit", ["stages", "steps"])
@pytest.mark.parametrize(("steps", "stages", "final_share"), [(10, 2, 0.1), (40, 4, 0.01)])
def test_however_small_its_share_the_last_level_has_a_step(
    schedule, unit, steps, stages, final_share
):
    curriculum = make(
        schedule=schedule, unit=unit, steps=steps, stages=stages, final_share=final_share
    )
    assert curriculum.level_at(steps - 1) == Level(0.0, 0)


def test_after_the_last_step_the_last_level_stays():
    assert make().level_at(10_000) == Level(0.0, 0)


def test_explicit_levels_are_as_listed():
    listed = make(schedule="explicit", keep_rates=(1.0, 0.3, 0.3), shots=(2, 5, 0))
    assert listed.levels == (Level(1.0, 2), Level(0.3, 5), Level(0.3, 0))
    derived = make(schedule="explicit", keep_rates=(0.9, 0.29, 0.0), max_shots=100)
    assert [level.shots for level in derived.levels] == [90, 29, 0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": "sudden"}, "curriculum.schedule is 'sudden'"),
        ({"unit": "epochs"}, "curriculum.unit is 'epochs'"),
        ({"stages": 0}, "curriculum.stages is 0"),
        ({"final_share": 1.0}, "final_share is 1.0"),
        ({"steps": 3}, "config.train.steps is 3, too few for the 4 levels"),
        ({"schedule": "explicit"}, "keep_rates is empty"),
        ({"schedule": "explicit", "keep_rates": (1.0, 1.2)}, "1.2"),
        ({"schedule": "explicit", "keep_rates": (0.5, 0.9)}, "must not rise"),
        ({"schedule": "explicit", "keep_rates": (1.0, 0.0), "shots": (1,)}, "lists 1 levels"),
        ({"schedule": "explicit", "keep_rates": (1.0, 0.0), "shots": (1, -1)}, "-1"),
        ({"schedule": "explicit", "keep_rates": (1.0, 0.0), "unit": "steps"}, "'explicit'"),
        ({"schedule": "adaptive", "unit": "steps"}, "'adaptive'"),
    ],
)
def test_mistakes_are_named(changes, said):
    with pytest.raises(UserError, match=said):
        make(**changes)


def test_the_command_refuses_prompts_that_training_would_refuse(tmp_path):
    file = tiny.config_file(tmp_path, tiny.config(prompt__max_shots=24))
    code, out, err = tiny.run("-m", "pintern.curriculum", f"--config={file}")
    assert (code, out) == (2, "")
    assert "config.prompt.max_shots asks for 24" in err


def test_only_an_adaptive_run_looks():
    assert not any(make().must_look(step, AdaptiveState()) for step in range(120))


def test_looks_come_every_patience_steps_and_never_on_the_last_level():
    curriculum = make(schedule="adaptive", patience=7)
    looks = [step for step in range(28) if curriculum.must_look(step, AdaptiveState(0, 0))]
    assert looks == [7, 14, 21]
    assert curriculum.must_look(17, AdaptiveState(1, 10))
    assert not curriculum.must_look(10, AdaptiveState(1, 10))
    assert not any(curriculum.must_look(step, AdaptiveState(3, 0)) for step in range(120))


def test_a_stage_ends_when_the_next_level_is_good_enough():
    curriculum = make(schedule="adaptive", epsilon=2.0)
    state = AdaptiveState(0, 0)
    assert curriculum.advance(7, state, 80.0, 77.9) == state
    assert curriculum.advance(7, state, 80.0, 78.0) == AdaptiveState(1, 7)
    assert curriculum.level_at(7, AdaptiveState(1, 7)) == curriculum.levels[1]


@pytest.mark.parametrize("patience", [1, 7, 50, 1000])
def test_a_stage_never_outlasts_its_stretch(patience):
    """Scores that never suffice, and looks that don't fall on a stage's end."""
    curriculum = make(schedule="adaptive", patience=patience)
    state, seen = AdaptiveState(), []
    for step in range(120):
        if curriculum.must_look(step, state):
            state = curriculum.advance(step, state, 100.0, 0.0)
        seen.append(curriculum.level_at(step, state))
    assert seen == levels_by_step(make(), 120)


def smooth(rate, **changes):
    return make(steps=4000, smoothing=rate, seed=3, **changes)


@pytest.mark.parametrize("rate", [0.5, 1.0, 4.0])
def test_steps_ahead_are_drawn_from_an_exponential_tail(rate):
    drawn = [smooth(rate).steps_ahead(step) for step in range(4000)]
    for least in (1, 2, 3):
        share = sum(o >= least for o in drawn) / len(drawn)
        expected = math.exp(-rate * least)
        assert abs(share - expected) < 4 * math.sqrt(expected / len(drawn)) + 1e-9
    assert drawn == [smooth(rate).steps_ahead(step) for step in range(4000)]
    other = make(steps=4000, smoothing=rate, seed=4)
    assert drawn != [other.steps_ahead(step) for step in range(4000)]


@pytest.mark.parametrize("changes", [{}, {"unit": "steps", "schedule": "cosine"}])
def test_a_smoothed_step_is_so_many_stages_further_along(changes):
    curriculum, plain = smooth(1.0, **changes), make(steps=4000, **changes)
    last = len(plain.stages) - 1
    for step in range(4000):
        number = next(i for i, stage in enumerate(plain.stages) if step < stage.stop)
        assert curriculum.stage_at(step) == number
        further = plain.stages[min(number + curriculum.steps_ahead(step), last)]
        assert curriculum.level_at(step) == further.level
    assert curriculum.stages == plain.stages


def test_an_adaptive_run_is_smoothed_from_where_it_is():
    curriculum = smooth(1.0, schedule="adaptive")
    ahead = next(step for step in range(9, 4000) if curriculum.steps_ahead(step) == 1)
    assert curriculum.level_at(ahead, AdaptiveState(1, 9)) == curriculum.levels[2]
    assert curriculum.stage_at(ahead, AdaptiveState(1, 9)) == 1
    assert curriculum.level_at(ahead, AdaptiveState(3, 9)) == curriculum.levels[3]


def test_the_levels_of_a_stage_are_those_that_its_steps_take():
    plain = make()
    assert plain.levels_of_stage(31) == [plain.levels[1]]
    assert plain.levels_of_stage(31, ahead=2) == list(plain.levels[1:4])
    assert plain.levels_of_stage(95, ahead=2) == [plain.levels[3]]
    curriculum = make(smoothing=0.7, seed=1)
    for start, stop in ((0, 30), (12, 30), (95, 120)):
        taken = {curriculum.level_at(step) for step in range(start, stop)}
        assert set(curriculum.levels_of_stage(start)) == taken
    assert curriculum.levels_of_stage(0)[0] == curriculum.level_at(0)
    assert len(curriculum.levels_of_stage(0)) > 2


def test_a_stage_begins_once_and_the_first_not_at_all():
    curriculum = make(smoothing=1.0)
    assert [step for step in range(120) if curriculum.begins_stage(step)] == [30, 60, 90]
    adaptive = make(schedule="adaptive")
    state = AdaptiveState(1, 17)
    assert [step for step in range(120) if adaptive.begins_stage(step, state)] == [17]
    assert not adaptive.begins_stage(0, AdaptiveState())


def test_the_stretch_of_a_step_is_its_stage():
    curriculum = make()
    for stage in curriculum.stages:
        for step in (stage.start, stage.stop - 1):
            assert curriculum.stretch(step) == range(stage.start, stage.stop)
    assert 130 in curriculum.stretch(130)


@pytest.mark.parametrize("patience", [7, 10, 50])
def test_no_look_comes_within_a_stretch_of_an_adaptive_run(patience):
    curriculum = make(schedule="adaptive", patience=patience)
    state, step = AdaptiveState(), 0
    while step < 120:
        if curriculum.must_look(step, state):
            state = curriculum.advance(step, state, 0.0, 99.0 if step % 3 else -99.0)
        stretch = curriculum.stretch(step, state)
        assert stretch.start == step
        assert all(curriculum.stretch(each, state) == stretch for each in stretch)
        assert not any(curriculum.must_look(each, state) for each in stretch[1:])
        step = stretch.stop

"""What the benchmarks share: sides in processes of their own, timings, results kept by name."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

from benchmarks import measure, results
from benchmarks.results import Record, Result, UnequalError, as_usual, save
from benchmarks.training_sides import difference

ROOT = Path(measure.__file__).parent.parent
ANSWERS = """
import sys
from benchmarks.measure import serve

asked = []

def count():
    print("what is printed is no answer")
    asked.append(1)
    return {"asked": len(asked), "arguments": sys.argv[1:]}

def fails():
    raise ValueError("no such batch")

serve({"count": count, "fails": fails})
"""


@pytest.fixture
def side(tmp_path, monkeypatch):
    (tmp_path / "answers.py").write_text(ANSWERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with measure.Side("answers", "--rows=8") as side:
        yield side


def test_a_side_is_one_process_that_answers_as_often_as_it_is_asked(side):
    assert side.ask("count") == {"asked": 1, "arguments": ["--rows=8"]}
    assert side.ask("count")["asked"] == 2


def test_a_side_that_fails_says_which_and_why(side):
    with pytest.raises(RuntimeError, match="no such batch") as told:
        side.ask("fails")
    assert str(told.value).startswith("answers --rows=8 ended:")


def test_compiled_programs_are_counted():
    twice = jax.jit(lambda x: 2 * x + 0.1234)
    before = measure.compilations()
    twice(1.0)
    once = measure.compilations()
    twice(2.0)
    assert before < once == measure.compilations()


def test_timings_are_medians_by_turns():
    order = []
    measure.paired(lambda: order.append("o"), lambda: order.append("p"), repeats=3)
    assert order == ["o", "p"] * 4  # the first of each warms up
    assert measure.timing([(1.0, 2.0), (5.0, 5.0), (2.0, 1.0)]) == (2.0, 1.0, 5.0, 1.0)
    ours = measure.Timing(2.0, 1.0, 5.0, 1.5)
    assert ours.scaled(3) == (6.0, 3.0, 15.0, 1.5)
    found = Result.of("x", ours, ours.scaled(3), 0.5)
    assert found == Result("x", 3.0, 2.0, 6.0, 0.5, "s")


def test_results_are_merged_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "OUT", tmp_path / "out")
    first, second = (Result(name, 2.0, 1.0, 2.0, None, "s") for name in ("a", "b"))
    save([first, second], "cpu")
    path = save([dataclasses.replace(first, ratio=3.0)], "cpu")
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    assert rows["a"] == {**dataclasses.asdict(first), "ratio": 3.0}
    assert rows["b"] == dataclasses.asdict(second)


def test_a_case_that_fails_loses_itself_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "OUT", tmp_path)
    path = tmp_path / "cpu.json"

    def result(name):
        return Result(name, 2.0, 1.0, 2.0, None, "s")

    def names():
        return [row["name"] for row in json.loads(path.read_text())]

    save(map(result, ("slow", "slow_memory", "slower", "crash_8")), "cpu")
    record = Record("cpu")
    with record.case("good") as found:
        found.append(result("good"))
    assert names() == ["slow", "slow_memory", "slower", "crash_8", "good"]  # at once
    with record.case("slow") as found:
        found.append(result("slow"))
        raise UnequalError("tokens are not the peer's")
    with record.case("crash") as found:
        raise MemoryError("no room for 12 GB")
    assert names() == ["slower", "good"]
    with pytest.raises(SystemExit) as left:
        record.finish({"good": 3.0, "slow": 1.0})
    out, err = capsys.readouterr()
    assert left.value.code == 1 and "failed: slow; crash" in out and "≥ 3× NO" in out
    assert "no room for 12 GB" in out and "Traceback" in err and "UnequalError" not in err


def test_results_of_other_sizes_are_not_kept(capsys):
    values = flags.FlagValues()
    flags.DEFINE_integer("rows", 4, "Rows.", flag_values=values)
    flags.DEFINE_integer("steps", 8, "Steps.", flag_values=values)
    values(["it", "--rows=5"])
    assert as_usual("steps", among=values)
    assert not as_usual("steps", "rows", among=values)
    assert "--rows" in capsys.readouterr().out


def test_without_a_failure_a_record_ends_quietly(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "OUT", tmp_path)
    record = Record(None)
    with record.case("good") as found:
        found.append(Result("good", 2.0, 1.0, 2.0, None, "s"))
    record.finish()
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_is_nan_is_no_small_difference():
    good, bad = np.ones(3), np.full(3, np.nan)
    assert difference([good, good], [good, 2 * good]) == pytest.approx(0.5)
    for ours in ([good, bad], [bad, good]):
        assert not difference(ours, [good, good]) <= 1.0

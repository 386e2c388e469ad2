"""What the lines of a long work say of its rate and of the time that is left."""

import pytest

from pintern import progress
from pintern.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test moves on by hand."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(clock, capsys, *seconds):
    """What is told of steps that take so long."""
    with Progress("run", 4000) as bar:
        for took in seconds:
            clock[0] += took
            bar.advance()
    return capsys.readouterr().err.splitlines()


def test_the_first_step_compiles_and_is_no_measure(clock, capsys):
    first, second, *_ = lines(clock, capsys, 20, *[0.1] * 200)
    assert first == "run: 1/4000 steps"
    assert second.startswith("run: 101/4000 steps, 10.0/s, 390 s left")


def test_a_wait_in_between_is_forgotten(clock, capsys):
    told = lines(clock, capsys, *[0.1] * 200, 60, *[0.1] * 500)
    assert told[-1] == "run: 701/4000 steps, 10.0/s, 330 s left"


def test_a_pause_is_no_step(clock, capsys):
    with Progress("run", 4000) as bar:
        for _ in range(50):
            clock[0] += 0.1
            bar.advance()
        with bar.paused():
            clock[0] += 60
        for _ in range(21):
            clock[0] += 0.5
            bar.advance()
    told = capsys.readouterr().err.splitlines()
    assert told == ["run: 51/4000 steps", "run: 71/4000 steps, 2.0/s, 1964 s left"]


def test_slow_steps_are_measured_too(clock, capsys):
    assert lines(clock, capsys, 300, 50, 50)[-1] == "run: 3/4000 steps, 0.02/s, 199850 s left"


def test_the_last_step_is_told_once(clock, capsys):
    assert lines(clock, capsys, 1, 20) == ["run: 2/4000 steps, 0.05/s, 79960 s left"]


def test_what_ends_all_at_once_has_no_rate(clock, capsys):
    assert lines(clock, capsys, 0, 0, 0) == ["run: 3/4000 steps"]

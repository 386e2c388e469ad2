"""A signal ends training whenever it comes, and is never lost."""

import signal

import pytest
import tiny

from pintern.training.signals import asked_to_stop, sigterm


def test_what_an_outer_listener_heard_counts_within_and_no_longer_after():
    before = signal.getsignal(signal.SIGTERM)
    with sigterm() as outer:
        assert not asked_to_stop()
        signal.raise_signal(signal.SIGTERM)
        with sigterm() as stop:
            assert stop and asked_to_stop()
            signal.raise_signal(signal.SIGINT)
        assert outer == [signal.SIGTERM, signal.SIGINT]
    assert not asked_to_stop()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["train", "population"])
def test_a_signal_in_the_first_seconds_ends_training(command, number, tmp_path, monkeypatch):
    monkeypatch.setenv("PINTERN_STOPPED_STATUS", "75")
    file = tiny.config_file(tmp_path, tiny.config())
    with file.open("a") as text:
        text.write(f"\n\nimport signal\n\nsignal.raise_signal({number.value})\n")
        text.write("VARY = {'seed': (0, 1)}\n")
    workdir = tmp_path / "run"
    code, out, err = tiny.run(
        "-m", f"pintern.{command}", f"--config={file}", f"--workdir={workdir}"
    )
    assert code == 75, (out, err)
    assert "Stopped by a signal" in out
    assert not list(workdir.rglob("metrics.jsonl"))

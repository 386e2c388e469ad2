"""Commands that don't come to their end, by Ctrl-C or for want of a reader, end quietly."""

import os
import subprocess
import sys

import pytest
import tiny


@pytest.mark.parametrize(
    "main",
    [
        "signal.raise_signal(signal.SIGINT)",
        # Amid an import, whose library makes an error of its own of it.
        "sys.path.insert(0, FOLDER); import interrupted",
        # Where Python can't raise anything.
        "gc.callbacks.append(callback); gc.collect(); time.sleep(60)",
    ],
)
def test_ctrl_c_is_one_line_wherever_it_comes(main, tmp_path):
    (tmp_path / "interrupted.py").write_text(
        "import signal\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    raise ImportError('failed to import')\n"
    )
    code = (
        "import gc, signal, sys, time\n"
        # A suite that a shell runs in the background was started with Ctrl-C ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pintern import cli\n"
        "def callback(*_):\n"
        "    gc.callbacks.remove(callback)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "def main(_):\n"
        f"    {main.replace('FOLDER', repr(str(tmp_path)))}\n"
        "cli.run(main)\n"
    )
    assert tiny.run("-c", code) == (130, "", "Interrupted.\n")


@pytest.mark.parametrize("arguments", [["-m", "pintern.train", "--help"], ["-m", "pintern.config"]])
def test_a_reader_that_has_gone_ends_a_command_quietly(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=tiny.REPOSITORY,
        env=tiny.environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_behind_the_output_is_one_message():
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "pintern.config"],
            cwd=tiny.REPOSITORY,
            env=tiny.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert process.returncode == 2
    assert process.stderr == "error: The output can't be written: No space left on device.\n"


def test_another_broken_pipe_is_not_passed_over():
    code = (
        "from pintern import cli\n"
        "def main(_):\n"
        "    raise BrokenPipeError('of a sandbox')\n"
        "cli.run(main)\n"
    )
    status, _, err = tiny.run("-c", code)
    assert status == 1 and "of a sandbox" in err

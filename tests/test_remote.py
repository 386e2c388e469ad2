"""Run folders in an object store: what counts there, and in which order it comes there.

On fsspec's stand-ins, and on a real S3 server (moto) with the driver that a run would use.
"""

import importlib
import importlib.util
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import fsspec
import pytest
import tiny

from pintern.errors import UserError
from pintern.folders import LOCK
from pintern.remote import Mirror, local_workdir


@pytest.fixture(scope="module")
def s3_server():
    """Address of an S3 server on this machine, in a process of its own."""
    for module in ("moto", "flask_cors", "s3fs"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (pip install '.[test]')")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "--host=127.0.0.1", f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < until
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(params=["memory", "file", "s3"])
def url(request, tmp_path, monkeypatch):
    if request.param == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_server"))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, "us-east-1")
        bucket = f"bucket-{uuid.uuid4().hex}"
        fsspec.filesystem("s3").mkdir(bucket)
        return f"s3://{bucket}/run"
    return {
        "memory": f"memory://bucket-{uuid.uuid4().hex}/run",
        "file": f"file://{tmp_path}/bucket/run",
    }[request.param]


def names(url: str) -> set[str]:
    store, root = fsspec.core.url_to_fs(url)
    root = root.rstrip("/")
    return {path[len(root) + 1 :] for path in store.find(root)} if store.exists(root) else set()


def checkpoint(run: Path, step: int, kind: str = "checkpoints") -> None:
    folder = run / kind / str(step) / "state"
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(b"weights " * step)


def test_what_one_process_leaves_the_next_one_finds(url):
    with local_workdir(url, trains=True) as run:
        assert not run.exists()  # as a local run's folder that isn't there yet
        checkpoint(run, 3)
        checkpoint(run, 2, "teacher")
        (run / "config.json").write_text("{}")
        (run / "metrics.jsonl").write_text("one\n")
        (run / "metrics.jsonl.tmp").write_text("half")
        (run / LOCK).write_text("1 on here")
        (run / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir()
        (run / "checkpoints" / "6.orbax-checkpoint-tmp" / "data").write_text("half")
    assert names(url) == {
        "config.json",
        "metrics.jsonl",
        "checkpoints/3.whole",
        "checkpoints/3/state/data",
        "teacher/2.whole",
        "teacher/2/state/data",
    }
    with local_workdir(url, trains=True) as run:
        assert (run / "checkpoints/3/state/data").read_bytes() == b"weights " * 3
        assert (run / "metrics.jsonl").read_text() == "one\n"
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"3"}
        (run / "metrics.jsonl").write_text("one\ntwo\n")
        checkpoint(run, 6)
        (run / "checkpoints/3").rename(run / "checkpoints/3.removed")
    assert {name for name in names(url) if name.startswith("checkpoints/")} == {
        "checkpoints/6.whole",
        "checkpoints/6/state/data",
    }
    with local_workdir(url) as run:  # a reader, which adds what it made and removes nothing
        assert (run / "metrics.jsonl").read_text() == "one\ntwo\n"
        (run / "eval/6").mkdir(parents=True)
        (run / "eval/6/scores.json").write_text("{}")
        (run / "checkpoints/6").rename(run / "checkpoints/6.gone")
    assert {"eval/6/scores.json", "checkpoints/6.whole"} < names(url)
    assert not run.exists()


def test_what_a_run_set_aside_is_gone_from_the_store_too(url):
    with local_workdir(url, trains=True) as run:
        checkpoint(run, 0)
        (run / "teacher.jsonl").write_text("answers")
    with local_workdir(url) as run:  # a reader removes nothing
        (run / "teacher.jsonl").unlink()
    with local_workdir(url, trains=True) as run:
        (run / "replaced" / "1").mkdir(parents=True)
        for name in ("teacher.jsonl", "checkpoints"):
            (run / name).rename(run / "replaced" / "1" / name)
    assert names(url) == {
        "replaced/1/teacher.jsonl",
        "replaced/1/checkpoints/0/state/data",
    }


@pytest.mark.parametrize("kind", ["teacher", "stages", "checkpoints"])
def test_what_a_run_made_anew_takes_the_place_of_what_had_its_name(kind, tmp_path):
    """A run that goes on with another config comes by its teacher again, which is another one."""
    url = f"file://{tmp_path}/bucket/run"
    with local_workdir(url, trains=True) as run:
        checkpoint(run, 3)
        checkpoint(run, 5, kind)
    with local_workdir(url, trains=True) as run:
        shutil.rmtree(run / kind / "5")
        checkpoint(run, 5, kind)
        (run / kind / "5" / "state" / "data").write_bytes(b"of another config")
    with local_workdir(url) as run:
        assert (run / kind / "5" / "state" / "data").read_bytes() == b"of another config"


def test_an_upload_that_was_cut_short_counts_for_nothing(url, tmp_path):
    store, root = fsspec.core.url_to_fs(url)
    with local_workdir(url, trains=True) as run:
        checkpoint(run, 3)
    store.makedirs(f"{root}/checkpoints/6", exist_ok=True)
    store.pipe_file(f"{root}/checkpoints/6/data", b"half")
    mirror = Mirror(url, tmp_path / "copy")
    mirror.pull()
    assert {path.name for path in (tmp_path / "copy/checkpoints").iterdir()} == {"3"}


def test_the_mark_comes_last_and_goes_first(tmp_path, monkeypatch):
    mirror = Mirror(f"file://{tmp_path}/bucket", tmp_path / "run")
    order = []
    for verb in ("put_file", "pipe_file", "rm"):
        real = getattr(mirror._store, verb)

        def noted(*args, _real=real, _verb=verb, **kwargs):
            order.append((_verb, str(args[_verb == "put_file"]).partition("/bucket/")[2]))
            return _real(*args, **kwargs)

        monkeypatch.setattr(mirror._store, verb, noted)
    checkpoint(tmp_path / "run", 3)
    (tmp_path / "run/metrics.jsonl").write_text("one\n")
    mirror.push(removes=True)
    (tmp_path / "run/checkpoints/3").rename(tmp_path / "run/gone")
    mirror.push(removes=True)
    assert order[:3] == [
        ("put_file", "metrics.jsonl"),
        ("put_file", "checkpoints/3/state/data"),
        ("pipe_file", "checkpoints/3.whole"),
    ]
    removed = [name for verb, name in order if verb == "rm"]
    assert removed == ["checkpoints/3.whole", "checkpoints/3"]


def test_checkpoints_are_pushed_while_training_goes_on(url, monkeypatch):
    monkeypatch.setattr("pintern.remote._POLL_SECONDS", 0.01)
    with local_workdir(url, trains=True) as run:
        checkpoint(run, 3)
        for _ in range(1000):
            if "checkpoints/3.whole" in names(url):
                break
            time.sleep(0.01)
        assert "checkpoints/3.whole" in names(url)


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_driver_that_is_not_installed_is_named(scheme, monkeypatch):
    driver = {"gs": "gcsfs", "s3": "s3fs"}[scheme]
    monkeypatch.setitem(sys.modules, driver, None)
    # What another test has loaded is found without an import.
    loaded = importlib.import_module("fsspec.registry")._registry
    monkeypatch.delitem(loaded, scheme, raising=False)
    with pytest.raises(UserError, match=f"{scheme}://.*isn't installed: {driver}"):
        Mirror(f"{scheme}://bucket/run", Path("unused"))
    with pytest.raises(UserError, match="no file system that fsspec knows"):
        Mirror("gopher://bucket/run", Path("unused"))


def test_a_local_folder_is_worked_on_itself(tmp_path):
    with local_workdir(str(tmp_path)) as run:
        assert run == tmp_path


def test_of_several_processes_the_first_alone_has_checkpoints_and_pushes(url, monkeypatch):
    with local_workdir(url, trains=True) as run:
        checkpoint(run, 3)
        (run / "config.json").write_text("{}")
    monkeypatch.setattr("pintern.remote.is_first", lambda: False)
    monkeypatch.setattr("pintern.remote.from_first", lambda push: None)
    before = names(url)
    with local_workdir(url, trains=True) as run:
        assert {path.name for path in run.rglob("*")} == {"config.json"}
        checkpoint(run, 6)
    with pytest.raises(ZeroDivisionError), local_workdir(url, trains=True) as run:
        checkpoint(run, 6)
        _ = 1 / 0
    assert names(url) == before


def test_an_error_is_told_though_the_store_refuses_what_there_is(tmp_path, capsys):
    (tmp_path / "bucket").mkdir()
    with (
        pytest.raises(UserError, match="the loss is nan"),
        local_workdir(f"file://{tmp_path}/bucket/run", trains=True) as run,
    ):
        run.mkdir()
        (run / "config.json").write_text("{}")
        (tmp_path / "bucket" / "run").touch()  # a file where the folder would be
        raise UserError("the loss is nan")
    assert "can't be written" in capsys.readouterr().err


# Commands whose folder several processes or runs share, and the flags they can't do without.
SHARED = {
    "pintern.population": (),
    "pintern.study": ("--study=experiments/studies/diagnostics.py", "--list"),
    "experiments.company.quickstart": (),
}


@pytest.mark.parametrize("module", SHARED)
def test_what_needs_locks_takes_no_store(module):
    code, _, err = tiny.run("-m", module, "--workdir=memory://bucket/x", *SHARED[module])
    assert code == 2, err
    assert "object store, which has no locks" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("module", SHARED)
def test_a_folder_of_somebody_elses_is_left_alone(module, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    code, _, err = tiny.run("-m", module, f"--workdir={tmp_path}", *SHARED[module])
    assert code == 2, err
    assert "not empty and holds no" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("url", ["file", "s3"], indirect=True)
def test_a_run_in_a_store_is_resumed_scored_and_exported(url, tmp_path):
    run = tiny.copy_of(tiny.trained_run(), tmp_path / "begun")
    shutil.rmtree(run / "checkpoints" / "8")
    with local_workdir(url, trains=True) as here:
        shutil.copytree(run, here)
    file = tiny.config_file(tmp_path, tiny.config())
    for command in (
        ("-m", "pintern.train", f"--config={file}"),
        ("-m", "pintern.evaluate"),
        ("-m", "pintern.export", "--format=peft", f"--out={tmp_path / 'out'}"),
    ):
        code, _, err = tiny.run(*command, f"--workdir={url}")
        assert code == 0, (command, err)
    whole, there = tiny.trained_run(), names(url)
    with local_workdir(url) as here:
        assert (here / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert {name for name in there if name.endswith(".whole")} == {
        "checkpoints/6.whole",
        "checkpoints/8.whole",
    }
    assert "eval/8/scores.json" in there
    assert any((tmp_path / "out").iterdir())

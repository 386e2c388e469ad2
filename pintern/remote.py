"""Run folders in an object store: a local copy is worked on, and the store is brought up to date.

An object store has no rename, no append and no lock, on which a run folder's files rest. So a run
whose `--workdir` is `gs://…` or `s3://…` (any file system of fsspec) is pulled into a temporary
folder, and pushed whenever it has a new checkpoint and at the end. What is in the store is what
counts when the next process begins.

Of several processes each has a copy of its own; the first one alone pushes, and alone has the
checkpoints, which it reads for the others (`training.checkpoint`). In a folder that isn't a URL
they look for what the first one wrote there: it has to be the same for all.

A checkpoint counts there once `<step>.whole` lies beside its folder: that object is written after
all of its files, and removed before any. Files that grow (metrics.jsonl) are pushed before the
checkpoints that follow on them, so that they hold every step up to the latest one.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pintern.distributed import any_of, from_first, is_first
from pintern.errors import UserError
from pintern.folders import CHECKPOINTS, PASSING, check_folder
from pintern.shared_folder import check_shared

_WHOLE = ".whole"
_POLL_SECONDS = 1.0
_DRIVERS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}


def is_remote(name: str) -> bool:
    """Whether a folder's name is a URL."""
    return "://" in name


def local_folder(name: str, mark: str, what: str) -> Path:
    """A folder that has to be on a file system, since several processes or runs share it.

    Args:
      name: by `--workdir`.
      mark: what lies in it, once it is the command's own.
      what: it is then.

    Raises:
      UserError: it is a URL, or holds something else.
    """
    if is_remote(name):
        raise UserError(
            f"--workdir={name} is in an object store, which has no locks; this command needs them.",
            "Give a local or shared folder; `gs://` and `s3://` are for single runs.",
        )
    check_folder(Path(name), mark, what)
    return Path(name)


@contextmanager
def local_workdir(name: str, *, trains: bool = False) -> Iterator[Path]:
    """The folder to work in: itself where it is local, a copy of it where it isn't.

    Several processes enter together.

    Args:
      name: a path or a URL.
      trains: push checkpoints as they come, and remove those that training removes; else only
        what is new (evaluations, say) is pushed, at the end.

    Raises:
      UserError: no driver for the URL, no access; or a local folder that the processes don't share.
    """
    if not is_remote(name):
        check_shared(Path(name), made=trains)
        yield Path(name)
        return
    with tempfile.TemporaryDirectory(prefix="pintern-workdir-", ignore_cleanup_errors=True) as copy:
        # All have pulled before the first one pushes anything: they begin with the same.
        mirror = _pull_together(name, Path(copy) / "run")
        ended, follows = threading.Event(), trains and is_first()
        follower = threading.Thread(target=mirror.follow, args=(ended,), daemon=True)
        if follows:
            follower.start()
        try:
            yield mirror.local
        except BaseException:
            ended.set()
            if follows:
                follower.join()
            if is_first():  # the others may go on and aren't waited for
                mirror.push_if_possible(removes=trains)
            raise
        ended.set()
        if follows:
            follower.join()
        # The others wait for it: when one process of several is gone, so are all.
        from_first(lambda: mirror.push(removes=trains))


def _pull_together(name: str, local: Path) -> Mirror:
    refused: UserError | None = None
    try:
        mirror = Mirror(name, local)
        mirror.pull(checkpoints=is_first())
    except UserError as error:
        refused = error
    if any_of(refused is not None):
        raise refused or UserError(
            f"--workdir={name} can't be read by another process of this run.",
            "Its own message says why.",
        )
    return mirror


class Mirror:
    """A folder in a store and its local copy.

    Args:
      name: URL of the folder.
      local: the copy's folder; made by `pull` if there is anything in the store.
    """

    def __init__(self, name: str, local: Path):
        import fsspec

        self.name, self.local = name, local
        scheme = name.partition("://")[0]
        try:
            self._store, self._root = fsspec.core.url_to_fs(name)
        except ImportError as error:
            driver = _DRIVERS.get(scheme, "its fsspec driver")
            raise UserError(
                f"--workdir={name} needs a driver for {scheme}:// that isn't installed: {driver}.",
                f"Install it (pip install {driver}), or give a local folder.",
            ) from error
        except ValueError as error:
            raise UserError(
                f"--workdir={name}: {scheme}:// is no file system that fsspec knows.",
                "Give gs://BUCKET/FOLDER, s3://BUCKET/FOLDER, or a local folder.",
            ) from error
        self._root = self._root.rstrip("/")
        self._pushed: dict[Path, tuple[int, int]] = {}

    def pull(self, *, checkpoints: bool = True) -> None:
        """Copies what is in the store, of its checkpoints those that are whole, or none."""
        with self._told("read"):
            self._store.invalidate_cache()
            found = self._store.find(self._root) if self._store.exists(self._root) else []
            names = sorted(path[len(self._root) + 1 :] for path in map(str, found))
            marks = [name for name in names if name.endswith(_WHOLE) and checkpoints]
            whole = {name.removesuffix(_WHOLE) for name in marks}
            for name in names:
                folder = _checkpoint_of(Path(name))
                if name.endswith(_WHOLE) or (folder is not None and str(folder) not in whole):
                    continue
                path = self.local / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self._store.get_file(f"{self._root}/{name}", str(path))
                if folder is None:
                    self._pushed[Path(name)] = _version(path)
            for name in map(Path, whole):
                here = self.local / name
                self._pushed[name] = _version(here) if here.exists() else (0, 0)

    def push(self, *, removes: bool) -> None:
        """Copies to the store what it lacks; see the module for the order.

        Args:
          removes: also remove there what is not here any more: what is of a run that was set
            aside, or of another teacher, before anything else is written.
        """
        checkpoints = self._checkpoints()  # first: the files below then hold all of their steps
        with self._told("written"):
            for name in self._stale(checkpoints) if removes else ():
                self._remove(name)
            for path in sorted(self.local.rglob("*")):
                name = path.relative_to(self.local)
                passing = path.suffix == ".tmp" or path.name.startswith(PASSING)
                if path.is_file() and name.parts[0] not in CHECKPOINTS and not passing:
                    self._push_file(path, name)
            for name, version in checkpoints.items():
                if name not in self._pushed:
                    self._push_checkpoint(name, version)
            for name in [n for n in self._pushed if _checkpoint_of(n) and n not in checkpoints]:
                if removes:
                    self._remove(name)

    def push_if_possible(self, *, removes: bool) -> None:
        """The same; a failure is told, and no error."""
        try:
            self.push(removes=removes)
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)

    def follow(self, ended: threading.Event) -> None:
        """Pushes at every new checkpoint until told to end; a failure is told, and tried again."""
        while not ended.wait(_POLL_SECONDS):
            if self._checkpoints().items() - self._pushed.items():
                self.push_if_possible(removes=True)

    def _checkpoints(self) -> dict[Path, tuple[int, int]]:
        found = {}
        for kind in CHECKPOINTS:
            for path in sorted((self.local / kind).glob("*")):
                if path.name.isdigit():
                    with suppress(FileNotFoundError):  # training removed it
                        found[path.relative_to(self.local)] = _version(path)
        return found

    def _stale(self, checkpoints: dict[Path, tuple[int, int]]) -> list[Path]:
        """What the store must not have beside what is here. A teacher or a stage that a resumed
        run made anew has the name of the one before.
        """

        def stale(name: Path) -> bool:
            if _checkpoint_of(name) is None:
                return not (self.local / name).exists()
            if name in checkpoints:
                return checkpoints[name] != self._pushed[name]
            return name.parts[0] != "checkpoints"  # those go when later ones are there

        return [name for name in self._pushed if stale(name)]

    def _push_file(self, path: Path, name: Path) -> None:
        try:
            version = _version(path)
            if self._pushed.get(name) == version:
                return
            self._put(path, name)
        except FileNotFoundError:  # replaced or removed since it was listed
            return
        self._pushed[name] = version

    def _push_checkpoint(self, name: Path, version: tuple[int, int]) -> None:
        try:
            for path in sorted((self.local / name).rglob("*")):
                if path.is_file():
                    self._put(path, path.relative_to(self.local))
        except FileNotFoundError:  # training removed it: it counts for nothing there
            return
        if (self.local / name).is_dir():
            self._store.pipe_file(f"{self._root}/{name}{_WHOLE}", b"")
            self._pushed[name] = version

    def _remove(self, name: Path) -> None:
        for path, recursive in ((f"{name}{_WHOLE}", False), (str(name), True)):
            if self._store.exists(f"{self._root}/{path}"):
                self._store.rm(f"{self._root}/{path}", recursive=recursive)
        del self._pushed[name]

    def _put(self, path: Path, name: Path) -> None:
        target = f"{self._root}/{name}"
        # Stores have no folders; file systems that stand in for them do.
        self._store.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._store.put_file(str(path), target)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # drivers have exceptions of their own
            raise UserError(
                f"--workdir={self.name} can't be {what}: {error}.",
                "Check its name, the network and your credentials, and run the same command again.",
            ) from error


def _checkpoint_of(name: Path) -> Path | None:
    """The checkpoint's folder that a file of a run belongs to, if it does."""
    parts = name.parts
    if len(parts) >= 2 and parts[0] in CHECKPOINTS and parts[1].isdigit():
        return Path(*parts[:2])
    return None


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns

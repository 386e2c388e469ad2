"""Takes from the calling process, for good, whatever a program under test has no need of.

- resource limits: CPU seconds, address space, size of a file, open files, no core dump;
- namespaces (where the kernel permits): no user, network or IPC of the machine's;
- Landlock: reads the standard library and shared libraries, writes plain files in one folder;
- seccomp: no processes, threads, sockets, signals (see `seccomp`).

None of them can be undone from inside, by root neither.
"""

import ctypes
import os
import resource
import struct
import sys
import sysconfig
from collections.abc import Iterable

from pintern.evaluation.sandbox import seccomp

# Without these two a program isn't confined.
REQUIRED = ("landlock", "seccomp")

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _SIGKILL = 1, 38, 9
_NEW_NAMESPACES = 0x10000000 | 0x40000000 | 0x08000000  # user, network, IPC
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8
_TRUNCATE = 1 << 14
# Rights that each version of Landlock knows (bits from 0), of files.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")


def confine(
    folder: str | None, *, cpu_seconds: int, memory_bytes: int, file_bytes: int
) -> tuple[str, ...]:
    """Confines this process, which must have one thread.

    Args:
      folder: the one that may be written to; None for none.
      cpu_seconds: after so many the process is killed.
      memory_bytes: of address space.
      file_bytes: of any one file.

    Returns:
      The protections now in force: some of rlimits, namespaces, landlock, seccomp.
    """
    for limit, value in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    found = ["rlimits"]
    if sys.platform != "linux":
        return tuple(found)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NAMESPACES) == 0:
        found.append("namespaces")
    # After the namespaces, which clear it. The runner's death is the program's.
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for name, install in (
        ("landlock", lambda: _landlock(libc, folder)),
        ("seccomp", lambda: seccomp.install(libc)),
    ):
        if name != "seccomp" or seccomp.supported():
            try:
                install()
            except OSError:
                continue
            found.append(name)
    return tuple(found)


def _landlock(libc: ctypes.CDLL, folder: str | None) -> None:
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        raise OSError(ctypes.get_errno(), "no Landlock")
    files = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    # TCP (from version 4), abstract sockets and signals (from 6): none is granted to anybody.
    attributes = struct.pack("QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _checked(
        libc.syscall(_CREATE_RULESET, ctypes.c_char_p(attributes), ctypes.c_size_t(size), 0)
    )
    for path in _readable():
        _grant(libc, rules, path, _READ_FILE | _READ_DIR)
    _grant(libc, rules, "/dev/null", _READ_FILE | _WRITE_FILE)
    if folder is not None:
        wanted = _READ_FILE | _READ_DIR | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE
        _grant(libc, rules, folder, wanted & files)
    _checked(libc.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def _readable() -> Iterable[str]:
    """Folders and files of the standard library and of shared libraries."""
    stdlib = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    found = {os.path.realpath(path) for path in (*stdlib, *_LIBRARIES, "/dev/urandom")}
    return sorted(path for path in found if os.path.exists(path))


def _grant(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    if not os.path.isdir(path):
        rights &= _READ_FILE | _WRITE_FILE
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", rights, opened)
    _checked(libc.syscall(_ADD_RULE, rules, 1, ctypes.c_char_p(rule), 0))
    os.close(opened)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "Landlock refused")
    return result

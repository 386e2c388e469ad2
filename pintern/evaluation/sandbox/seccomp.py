"""The system calls that a confined process may make; every other one fails with EPERM.

A list of what is allowed, since what is forbidden can't be listed: the kernel gains calls. Absent
on purpose are all that start processes or threads (fork, clone, execve), sockets, signals to others
(kill), changes to limits, owners, modes and times (Landlock doesn't govern those), mounts, keys,
ptrace and io_uring. The filter is classic BPF, seccomp(2).
"""

import ctypes
import os
import platform
import struct

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | 1  # 1 is EPERM
_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}
# Name, then its number on x86_64 and on aarch64 (None: not there).
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "close": (3, 57),
    "lseek": (8, 62),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "stat": (4, None),
    "lstat": (6, None),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "ftruncate": (77, 46),
    "fsync": (74, 82),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "sigaltstack": (131, 132),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getitimer": (36, 102),
    "pause": (34, None),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "restart_syscall": (219, 128),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "arch_prctl": (158, None),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "uname": (63, 160),
    "umask": (95, 166),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "times": (100, 153),
    "time": (201, None),
    "gettimeofday": (96, 169),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "getrandom": (318, 278),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# Calls of which an argument decides: its place, and the values that are allowed. Others of fcntl
# and ioctl can have the kernel send a signal to any process of the same user.
_BY_ARGUMENT: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {
    (72, 25): (1, (0, 1, 2, 3, 1030)),  # fcntl: DUPFD, GETFD, SETFD, GETFL, DUPFD_CLOEXEC
    (16, 29): (1, (0x5401, 0x5450, 0x5451)),  # ioctl: TCGETS, FIONCLEX, FIOCLEX
}
_OPENAT = (257, 56)


def supported() -> bool:
    """Whether the numbers of this machine's system calls are known here."""
    return platform.system() == "Linux" and platform.machine() in _AUDIT


def install(libc: ctypes.CDLL) -> None:
    """Confines this thread, and whatever it would start, for good.

    Raises:
      OSError: the kernel has no seccomp filters, or no_new_privs isn't set.
    """
    program = b"".join(struct.pack("HBBI", *line) for line in _program(platform.machine()))
    lines = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(lines))
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(header), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp filter refused")


def _program(machine: str) -> list[tuple[int, int, int, int]]:
    """Lines of (code, steps to jump if true, if false, constant)."""
    column = _COLUMN[machine]
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _AUDIT[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for numbers in _ALLOWED.values():
        if numbers[column] is not None:
            lines += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ALLOW)]
    for numbers, (place, values) in _BY_ARGUMENT.items():
        lines += [
            (_EQUAL, 0, 2 + 2 * len(values), numbers[column]),
            (_LOAD, 0, 0, _ARGUMENTS + 8 * place),
        ]
        for value in values:
            lines += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
        lines.append((_RETURN, 0, 0, _REFUSE))
    # Older Landlock lets a file that may only be read be emptied by opening it.
    lines += [
        (_EQUAL, 0, 5, _OPENAT[column]),
        (_LOAD, 0, 0, _ARGUMENTS + 8 * 2),
        (_AND, 0, 0, os.O_TRUNC | os.O_ACCMODE),
        (_EQUAL, 0, 1, os.O_TRUNC | os.O_RDONLY),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return lines

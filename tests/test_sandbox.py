"""Programs under test do no harm, forge no verdict, and are scored wrong for trying."""

import contextlib
import os
import platform
import resource
import socket
import subprocess
import sys
import time

import pytest

from pintern.errors import UserError
from pintern.evaluation.sandbox import runner, seccomp, wire
from pintern.evaluation.sandbox.runner import Limits, Problem, protections, run_program

pytestmark = pytest.mark.skipif(
    not seccomp.supported(), reason=f"programs aren't confined on {platform.platform()}"
)

# No program can know this number: it stands in the tests alone.
SECRET = 748_159_263_184
PROBLEM = Problem((f"assert answer(3) == {SECRET}",), ("answer",))
SMALL = Limits(cpu_seconds=1, wall_seconds=3.0, memory_bytes=1 << 28)

HOSTILE = {
    "fork bomb": ("import os\nwhile True: os.fork()", "error"),
    "patient fork bomb": (
        "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
        "timeout",
    ),
    "fork by system call": (
        """
import ctypes
call = ctypes.CDLL(None).syscall
made = [call(number, 17, 0, 0, 0, 0) for number in (56, 57, 58, 435, 220)]
def answer(x):
    assert all(pid == -1 for pid in made), "forked"
    return 0""",
        "mismatch",
    ),
    "thread bomb": (
        """
import threading, time
while True: threading.Thread(target=time.sleep, args=(100,)).start()""",
        "error",
    ),
    "another program": ("import subprocess\nsubprocess.run(['/bin/true'])", "error"),
    "replaced program": ("import os\nos.execv('/bin/true', ['true'])", "error"),
    "endless loop": ("while True: pass", "timeout"),
    "endless loop, deaf to signals": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "timeout",
    ),
    "endless sleep": ("import time\ntime.sleep(1000)", "timeout"),
    "endless call": ("def answer(x):\n while True: pass", "timeout"),
    "endless generator": ("import itertools\ndef answer(x): return itertools.count()", "mismatch"),
    "memory bomb": ("x = [0]\nwhile True: x += x", "error"),
    "endless recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef answer(x): return answer([x])\nanswer(1)",
        "stopped|timeout",
    ),
    "crash": ("import ctypes\nctypes.string_at(0)", "stopped"),
    "1 GB of output": (
        """
import os, sys
for _ in range(1024):
    sys.stdout.write('x' * 2**20); os.write(2, b'x' * 2**20)
def answer(x): print('x' * 2**20); return 0""",
        "mismatch|timeout",
    ),
    "1 GB of answers": (
        """
import contextlib
import os
def answer(x):
    for descriptor in range(3, 32):
        try:
            for _ in range(1024): os.write(descriptor, b'x' * 2**20)
        except OSError: pass""",
        "stopped",
    ),
    "1 GB of answer": ("def answer(x): return '\\x00' * 2**26", "stopped"),
    "bottomless answer": (
        """
def answer(x):
    found = []
    for _ in range(100_000): found = [found]
    return found""",
        "error",
    ),
    "1 GB in a file": (
        "with open('big', 'wb') as file:\n for _ in range(1024): file.write(bytes(2**20))",
        "error",
    ),
    "many files": (
        """
import time
for number in range(10**5):
    with open(f'file{number}', 'wb') as file: file.write(bytes(2**18))""",
        "stopped",
    ),
    "many folders": ("import os\nwhile True: os.mkdir('a'); os.chdir('a')", "error"),
    "deletion": ("import os\nos.remove(CANARY)", "error"),
    "deletion of the folder": ("import shutil\nshutil.rmtree(CANARY_FOLDER)", "error"),
    "overwriting": ("open(CANARY, 'w')", "error"),
    "emptying by a reader": ("import os\nos.open(CANARY, os.O_RDONLY | os.O_TRUNC)", "error"),
    "truncation": ("import os\nos.truncate(CANARY, 0)", "error"),
    "renaming": ("import os\nos.rename(CANARY, 'mine')", "error"),
    "linking": ("import os\nos.link(CANARY, 'mine')", "error"),
    "mode": ("import os\nos.chmod(CANARY, 0)", "error"),
    "times": ("import os\nos.utime(CANARY, (0, 0))", "error"),
    "network": (
        "import socket\nsocket.create_connection(('127.0.0.1', PORT), timeout=1)",
        "error",
    ),
    "network by the event loop": (
        """
import asyncio
asyncio.run(asyncio.open_connection('127.0.0.1', PORT))""",
        "error",
    ),
    "exit": ("import os\nos._exit(0)", "stopped"),
    "exit in a call": ("import os\ndef answer(x): os._exit(0)", "stopped"),
    "sys.exit": ("import sys\nsys.exit(0)", "error"),
    "exit that leaves a success": (
        """
import atexit, os, sys
atexit.register(lambda: os.write(1, b'{"reason": "right", "detail": "", "protections": []}'))
def answer(x): sys.exit(0)""",
        "error",
    ),
    "success token": (
        """
import contextlib
import os
for descriptor in range(32):
    try: os.write(descriptor, b'{"reason": "right", "detail": "", "protections": []}')
    except OSError: pass
os._exit(0)""",
        "stopped",
    ),
    "patched asserts": (
        """
import builtins, sys
class Quiet(type):
    def __instancecheck__(cls, instance): return False
class AssertionError(Exception, metaclass=Quiet): pass
builtins.AssertionError = AssertionError
builtins.exec = builtins.compile = builtins.eval = lambda *_, **__: None
sys.exit = lambda *_: None
sys.excepthook = lambda *_: None
for module in list(sys.modules.values()):
    for name in ('_judge', 'main', 'encode', 'decode'):
        if hasattr(module, name): setattr(module, name, lambda *_, **__: 'right')
def answer(x): return 0""",
        "error",
    ),
    "equal to everything": (
        """
class Any(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def answer(x): return Any(0)""",
        "mismatch",
    ),
    "an object equal to everything": (
        "class Any:\n def __eq__(self, other): return True\ndef answer(x): return Any()",
        "mismatch",
    ),
    "reader of the test file": (
        f"""
import contextlib
import os
def answer(x):
    for folder in ('.', '..', '/', '/tmp', CANARY_FOLDER, os.path.dirname(os.__file__)):
        try: names = os.listdir(folder)
        except OSError: continue
        for name in names:
            try: text = open(os.path.join(folder, name), 'rb').read()
            except OSError: continue
            if b'7481' b'59263184' in text: return {SECRET // 1000} * 1000 + {SECRET % 1000}
    return open(CANARY).read()""",
        "error",
    ),
    "reader of environments": (
        """
import contextlib
import os
def answer(x):
    others = {os.getppid(), os.getppid() + 1, os.getpid() + 1, os.getpid() - 1} - {os.getpid()}
    for pid in others:
        for name in ('environ', 'cmdline', 'mem', 'maps', 'fd/0'):
            try: open(f'/proc/{pid}/{name}', 'rb').read(10)
            except OSError: continue
            raise SystemError('read')
    return dict(os.environ)""",
        "mismatch",
    ),
    "reader of its own memory": (
        """
import gc, sys
def answer(x):
    seen, frame = [], sys._getframe()
    while frame:
        seen += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    seen += gc.get_objects()
    def numbers(value, depth=0):
        if isinstance(value, int): yield value
        elif isinstance(value, (list, tuple, set)) and depth < 3:
            for item in value: yield from numbers(item, depth + 1)
        elif isinstance(value, dict) and depth < 3:
            for item in value.values(): yield from numbers(item, depth + 1)
    found = {n for value in seen for n in numbers(value) if 7 * 10**11 < n < 8 * 10**11}
    for n in found:
        if n // 10**6 == 748_159: return n
    return 0""",
        "mismatch",
    ),
    "killer": (
        """
import os, signal
for pid in (os.getppid(), -1, 0, os.getpid() + 1, os.getpid() - 1):
    try: os.kill(pid, signal.SIGKILL)
    except PermissionError: continue
    raise SystemError('killed')
import fcntl
for descriptor in range(3, 8):
    for command, value in ((8, os.getppid()), (4, 0o20000)):
        try: fcntl.fcntl(descriptor, command, value)
        except OSError: continue
        raise SystemError('signals')
def answer(x): return 0""",
        "mismatch",
    ),
    "debugger": (
        """
import ctypes, os
libc = ctypes.CDLL(None)
def answer(x):
    for pid in (os.getppid(), os.getpid() + 1, os.getpid() - 1):
        if libc.ptrace(16, pid, 0, 0) == 0: raise SystemError('attached')
    return 0""",
        "mismatch",
    ),
    "its own limits": (
        """
import resource
for name in ('RLIMIT_CPU', 'RLIMIT_AS', 'RLIMIT_FSIZE'):
    resource.setrlimit(getattr(resource, name), (-1, -1))""",
        "error",
    ),
    "shadowed builtins": (
        "def set(*_): return 1\ndef all(*_): return True\ndef answer(x): return 0",
        "mismatch",
    ),
    "not Python": ("def answer(x) return", "error"),
    "null bytes": ("def answer(x): return 0 \0", "error"),
    "lone surrogate": ("def answer(x): return chr(0xD800)", "mismatch"),
    "nothing": ("", "error"),
}


@pytest.fixture
def canary(tmp_path):
    """A file outside the program's folder that must stay as it is."""
    path = tmp_path / "canary"
    path.write_text(str(SECRET))
    before = os.stat(path)
    yield path
    after = os.stat(path)
    assert path.read_text() == str(SECRET)
    assert [path] == list(tmp_path.iterdir())
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_are_contained_and_scored_wrong(name, canary):
    source, reason = HOSTILE[name]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.01)
        given = f"PORT = {server.getsockname()[1]}\nCANARY = {str(canary)!r}\n"
        given += f"CANARY_FOLDER = {str(canary.parent)!r}\n"
        started = time.monotonic()
        verdict = run_program(given + source, PROBLEM, limits=SMALL)
        assert time.monotonic() - started < SMALL.wall_seconds + 20
        with pytest.raises(TimeoutError):
            server.accept()
    assert verdict.reason in reason.split("|"), verdict
    # The runner is as it was.
    good = run_program(f"def answer(x): return {SECRET} + x - 3", PROBLEM)
    assert good.reason == "right"


def right(program, *tests, names=("answer",), **fields):
    return run_program(program, Problem(tests, names, **fields))


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "-(10**5000)",
        "1.5",
        "float('inf')",
        "True",
        "None",
        "'é\\n\\x00'",
        "b'\\xff'",
        "2 + 3j",
        "[1, (2, 'a'), [None]]",
        "{1, 2}",
        "frozenset({3})",
        "{(1, 2): [3], 'a': {4: 5}}",
        "str",
    ],
)
def test_plain_values_cross_both_ways_with_their_types(value):
    verdict = right(
        "def answer(x): return x",
        f"assert answer({value}) == {value}",
        f"assert type(answer({value})) is type({value})",
        f"assert answer(x={value}) == {value}",
    )
    assert verdict.reason == "right", verdict


def test_what_is_not_plain_stays_with_the_program_and_can_be_used():
    program = """
import collections
class Node:
    def __init__(self, value): self.value, self.left = value, None
def depth(node): return 0 if node is None else 1 + depth(node.left)
def lazy(n): return (i * i for i in range(n))
def counted(text): return collections.Counter(text)
def same(x): return collections.namedtuple('Pair', 'a b')(x, x)
"""
    verdict = right(
        program,
        "assert depth(root) == 2",
        "assert list(lazy(3)) == [0, 1, 4]",
        "assert counted('aab') == {'a': 2, 'b': 1}",
        "assert same(1) == (1, 1)",
        "root = Node(7); root.left = Node(8); assert depth(root) == 2 and root.left.value == 8",
        names=("Node", "depth", "lazy", "counted", "same"),
    )
    # Tests run in order; the first uses what only the last one makes.
    assert (verdict.reason, verdict.detail[:9]) == ("error", "NameError")
    verdict = right(
        program,
        "root = Node(7); root.left = Node(8); assert depth(root) == 2 and root.left.value == 8",
        "assert list(lazy(3)) == [0, 1, 4]",
        "assert counted('aab') == {'a': 2, 'b': 1}",
        "assert same(1) == (1, 1)",
        names=("Node", "depth", "lazy", "counted", "same"),
    )
    assert verdict.reason == "right", verdict


def test_a_subclass_arrives_as_what_it_equals_not_as_what_it_prints():
    program = """
import enum
class Colour(str, enum.Enum): RED = 'red'
class Odd(int):
    def __int__(self): return 7
class Half(float):
    def __float__(self): return 7.0
def answer(x): return [Colour.RED, Odd(3), Half(0.5)]
"""
    assert right(program, "assert answer(1) == ['red', 3, 0.5]").reason == "right"


def test_setup_runs_before_the_program_and_imports_are_the_tests_own():
    assert right("def f(): 0", "f()", names=("f",), setup="f()").detail.startswith("NameError")
    program = "import math\nmath.isclose = lambda *_: True\ndef answer(x): return x"
    close = right(program, "assert math.isclose(answer(1), 2)", imports="import math")
    assert close.reason == "mismatch"
    assert right(program, "assert math.isclose(answer(2), 2)", imports="import math").reason == (
        "right"
    )


def test_a_program_may_use_its_own_folder_and_finds_it_empty():
    program = """
import contextlib
import os
def answer(x):
    before = os.listdir()
    with open('mine', 'w') as file: file.write(x)
    text = open('mine').read()
    os.remove('mine')
    return before, text, os.listdir()
"""
    for _ in range(2):
        assert right(program, "assert answer('a') == ([], 'a', [])").reason == "right"


def test_hashing_is_the_same_in_every_run():
    done = subprocess.run(
        [sys.executable, "-c", "print(hash('a'))"],
        env={"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    verdict = right("def answer(x): return hash(x)", f"assert answer('a') == {done.stdout}")
    assert verdict.reason == "right"


def test_protections_are_found_by_trying():
    assert {"rlimits", "landlock", "seccomp"} <= set(protections())


def test_an_unprotected_program_is_refused_unless_asked_for(monkeypatch):
    """As on a kernel without them: what is required there has a name that is never in force."""
    monkeypatch.setattr(runner, "REQUIRED", ("landlock", "seccomp", "moat"))
    with pytest.raises(UserError, match=r"no moat.*config\.eval\.unconfined=True"):
        right("def answer(x): return 1", "assert answer(0) == 1")
    problem = Problem(("assert answer(0) == 1",), ("answer",))
    assert run_program("def answer(x): return 1", problem, unconfined=True).reason == "right"


def test_many_open_files_of_the_runners_do_not_matter():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("a process may not open so many files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    with contextlib.ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            held.enter_context(open(os.devnull))
        problem = Problem(tests=("assert f() == 1",), names=("f",))
        assert run_program("def f(): return 1", problem).reason == "right"


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(os.listdir("/proc/self/fd"))
    run_program(HOSTILE["many files"][0], PROBLEM, limits=SMALL)
    run_program(HOSTILE["endless sleep"][0], PROBLEM, limits=Limits(wall_seconds=0.3))
    assert not list(tmp_path.iterdir())
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize(
    "message",
    [[], {}, {"int": "x"}, {"list": 3}, {"dict": [1]}, {"set": [{"list": []}]}, {"eval": "1"}],
)
def test_a_message_that_is_no_value_is_refused(message):
    with pytest.raises(wire.Closed):
        wire.decode(message, lambda number: number)

"""Bash commands compared by their parts: utilities, flags and arguments.

`nlc2cmd` is the accuracy of the NLC2CMD competition (Agarwal et al., 2021, arXiv 2103.02523), which
looks at utilities and flags; `bash_tokens` is an F1 over all parts. The competition parsed by
bashlint, whose parser is GPL; here the words are found by a regular expression and unquoted by
shlex, so figures can differ where a command is nested.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pintern.evaluation.metrics.scores import Grade, grade_shares
from pintern.evaluation.metrics.text import references_of
from pintern.prompts.task import Example

_TOKEN = re.compile(
    r"""(?P<space>[^\S\n]+|\\\r?\n|(?<![^\s|&;()])\#[^\n]*)
    |(?P<open>\$\((?!\([^()]*\)\))|<\(|>\(|\()
    |(?P<close>\))
    |(?P<tick>`)
    |(?P<redirect>(?:\d+|&)?(?:>>|>\||>|<<<|<<-?|<)&?)
    |(?P<separator>\|\||&&|;;|\|&|[|&;\n])
    |(?P<word>(?:\\.|'[^']*'|"(?:\\.|[^"\\])*"|\$\{[^}]*\}|\$\(\([^()]*\)\)|\$(?!\()
    |[^\s|&;()<>`\\'"$])+)""",
    re.VERBOSE | re.DOTALL,
)
# Words that stand where a utility would, and have one after them.
_RESERVED = frozenset("! { } if then else elif fi while until do done case esac in".split())
# Utilities whose first argument is a utility with arguments of its own.
_WRAPPERS = frozenset("sudo xargs time env nohup nice command exec builtin watch".split())
# Flags of wrappers that take a value, which is then no utility.
_VALUED = {
    "xargs": frozenset("-I -J -n -P -d -L -s -a -E --max-args --max-procs --delimiter".split()),
    "sudo": frozenset("-u -g -U -C -p --user --group".split()),
    "nice": frozenset({"-n"}),
    "watch": frozenset({"-n", "--interval"}),
    "time": frozenset({"-f", "-o"}),
    "env": frozenset({"-u"}),
}
# find's expressions are words behind one dash, with a command of their own inside.
_EXEC = frozenset("-exec -execdir -ok -okdir".split())
_FIND = _EXEC | frozenset(
    """-a -amin -and -anewer -atime -cmin -cnewer -ctime -daystart -delete -depth -empty
    -executable -false -fls -follow -fprint -fprint0 -fprintf -fstype -gid -group -ilname -iname
    -inum -ipath -iregex -iwholename -links -lname -ls -maxdepth -mindepth -mmin -mount -mtime
    -name -newer -nogroup -noleaf -not -nouser -o -or -path -perm -print -print0 -printf -prune
    -quit -readable -regex -regextype -samefile -size -true -type -uid -used -user -wholename
    -writable -xautofs -xdev -xtype""".split()
)
_FLAG = re.compile(r"--?[A-Za-z?]")
# xargs has a flag that is a digit: `-0r`, `-r0`, `-0n1`.
_ZERO = re.compile(r"-([rtx]*0[A-Za-z]*)")
# A command in double quotes is run; the first quote of its own ends this expression's reach.
_QUOTED_COMMAND = re.compile(r"\$\(([^()]*)\)|`([^`]*)`")


@dataclasses.dataclass
class Utility:
    """One call of a utility.

    Attributes:
      name: of the utility.
      flags: `-l`, `--all`, `-name`: without values; `-la` is two flags.
      arguments: all other words, unquoted.
    """

    name: str
    flags: list[str] = dataclasses.field(default_factory=list)
    arguments: list[str] = dataclasses.field(default_factory=list)


def parse_command(command: str) -> list[Utility] | None:
    """The utilities that a command line calls, in the order of their names; None if it's no Bash.

    Pipes, lists, lines, substitutions, `sudo`, `xargs` and find's `-exec` all give utilities of
    their own. Redirections are arguments, as written: `>out`. Assignments alone and comments call
    nothing.
    """
    utilities: list[Utility] = []
    # What is being filled: a utility, or None where the next word is one. Outer ones are stacked.
    current: Utility | None = None
    stack: list[tuple[str, Utility | None]] = []
    redirect = ""
    place = 0
    while place < len(command):
        token = _TOKEN.match(command, place)
        if token is None:
            return None
        place = token.end()
        kind, text = token.lastgroup, token.group()
        inside = stack[-1][0] if stack else ""
        if kind == "open" or (kind == "tick" and inside != "`"):
            stack.append((text[-1], current))
            current, redirect = None, ""  # what is within names what a redirection leads to
        elif kind in ("close", "tick"):
            if inside != ("(" if kind == "close" else "`"):
                return None
            current = stack.pop()[1]
        elif kind == "separator":
            current = None
        elif kind == "redirect":
            redirect = text
        elif kind == "word":
            try:
                word = "".join(shlex.split(text))
            except ValueError:
                return None
            if redirect:
                if current is not None:
                    current.arguments.append(redirect + word)
                redirect = ""
            elif current is not None and inside == "exec" and word in (";", "+"):
                current = stack.pop()[1]
            elif current is None:
                current = _begin(word, utilities)
            elif current.name == "find" and word in _EXEC:
                current.flags.append(word)
                stack.append(("exec", current))
                current = None
            else:
                current = _continue(current, word, utilities)
            if '"' in text:
                for inner in _QUOTED_COMMAND.finditer(text):
                    utilities += parse_command(inner[1] or inner[2] or "") or []
    return utilities if not any(kind in ("(", "`") for kind, _ in stack) else None


def _begin(word: str, utilities: list[Utility]) -> Utility | None:
    """A word where a utility is due."""
    if word in _RESERVED or re.match(r"[A-Za-z_]\w*=", word):
        return None
    if word == "for":
        return Utility(word)  # holds the variable and its values, and is no call
    utilities.append(Utility(word))
    return utilities[-1]


def _continue(current: Utility, word: str, utilities: list[Utility]) -> Utility:
    """A word after a utility; returns the utility that the next word belongs to."""
    wraps = current.name in _WRAPPERS
    if _FLAG.match(word) or (wraps and re.match(r"-\w", word)):
        current.flags += _flags(current.name, word)
        # `-I{}` and `--user=me` hold their value; after `-I {}` or `-0I {}` it is the next word.
        last = f"-{word[-1]}" if _ZERO.fullmatch(word) else word
        if last in _VALUED.get(current.name, ()):
            current.arguments.append("")
        return current
    if wraps and current.arguments and current.arguments[-1] == "":
        current.arguments[-1] = word
        return current
    if wraps and not re.match(r"[A-Za-z_]\w*=", word):
        utilities.append(Utility(word))
        return utilities[-1]
    current.arguments.append(word)
    return current


def _flags(utility: str, word: str) -> list[str]:
    if word.startswith("--"):
        return [word.partition("=")[0]]
    if utility == "find" and word in _FIND:
        return [word]
    zero = _ZERO.match(word) if utility == "xargs" else None
    letters = zero or re.match(r"-(\d|[A-Za-z?]+)", word)
    return [f"-{letter}" for letter in letters[1]] if letters else [word]


def nlc2cmd_score(predicted: str, gold: str) -> float:
    """Accuracy of NLC2CMD at full confidence, −1 to 1 (Agarwal et al., 2021, section 3.2).

    The n-th utilities are compared: a wrong one is −1, a right one from 0 to 1 by its flags, by
    (1 + (2·|both| − |either|) / max(|predicted|, |gold|)) / 2 over the sets of flags. The score is
    the mean over the longer of the two. Arguments don't count. What is no Bash has no utilities,
    but for the gold command itself, which is right even then.
    """
    if predicted.strip() == gold.strip():
        return 1.0
    ours, theirs = parse_command(predicted) or [], _gold(gold)
    total = 0.0
    for place in range(max(len(ours), len(theirs))):
        if place >= len(ours) or place >= len(theirs) or ours[place].name != theirs[place].name:
            total -= 1
            continue
        one, other = set(ours[place].flags), set(theirs[place].flags)
        flags = 1.0
        if one or other:
            flags = (2 * len(one & other) - len(one | other)) / max(len(one), len(other))
        total += (1 + flags) / 2
    return total / max(len(ours), len(theirs)) if ours or theirs else -1.0


def token_f1(predicted: str, gold: str) -> float:
    """F1, 0 to 1, of the multisets of parts; a flag or argument counts with its utility."""
    if predicted.strip() == gold.strip():
        return 1.0
    ours, theirs = _parts(parse_command(predicted) or []), _parts(_gold(gold))
    if not (ours or theirs):
        return 0.0
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def _parts(utilities: Sequence[Utility]) -> Counter[tuple[str, ...]]:
    return Counter(
        [("utility", u.name) for u in utilities]
        + [("flag", u.name, flag) for u in utilities for flag in u.flags]
        + [("argument", u.name, word) for u in utilities for word in u.arguments]
    )


def _gold(command: str) -> list[Utility]:
    """A gold command; one with quotes that don't match falls back to its words."""
    parsed = parse_command(command)
    if parsed is not None:
        return parsed
    name, *words = command.split()
    return [Utility(name, arguments=words)]


def grade_nlc2cmd(
    predictions: Sequence[str], examples: Sequence[Example], options: Mapping[str, Any]
) -> Grade:
    """`nlc2cmd_score` against the best reference, whose −1 to 1 become 0 to 100."""
    shares = [
        (1 + max(nlc2cmd_score(prediction, text) for text in references_of(example))) / 2
        for prediction, example in zip(predictions, examples, strict=True)
    ]
    signature = "nlc2cmd|utilities,flags|confidence:1|scale:50*(1+s)|lexer:shlex-2"
    return grade_shares("nlc2cmd", shares, signature, _unparsed(predictions))


def grade_bash_tokens(
    predictions: Sequence[str], examples: Sequence[Example], options: Mapping[str, Any]
) -> Grade:
    """`token_f1` against the best reference, from 0 to 100."""
    shares = [
        max(token_f1(prediction, text) for text in references_of(example))
        for prediction, example in zip(predictions, examples, strict=True)
    ]
    signature = "bash_tokens|f1:utilities,flags,arguments|lexer:shlex-2"
    return grade_shares("bash_tokens", shares, signature, _unparsed(predictions))


def _unparsed(predictions: Sequence[str]) -> list[str]:
    return ["not Bash" if parse_command(text) is None else "" for text in predictions]

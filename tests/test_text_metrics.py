"""Text metrics: Bash by parts, BLEC, formulas, chrF, corpus intervals."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pintern.errors import UserError
from pintern.evaluation.metrics import METRICS, score_interval, score_predictions
from pintern.evaluation.metrics.bash import nlc2cmd_score, parse_command, token_f1
from pintern.evaluation.metrics.blec import WORDS, blec_errors
from pintern.evaluation.metrics.text import normalise_brackets, normalise_formula
from pintern.prompts.task import Example

NL2BASH = Path(__file__).parents[1] / ".." / "shared" / "data" / "nl2bash"


def parts(command):
    return [(u.name, u.flags, u.arguments) for u in parse_command(command)]


# The examples that the competition's organisers published with the metric.
@pytest.mark.parametrize(
    ("gold", "predicted", "score"),
    [
        ("find . -type f -ctime -3 | tail -n 5", "find . -type f | tail -n 5", 0.75),
        ("df | grep /dev/disk0s2", "df | grep diskpath", 1.0),
        (
            "find . -regextype posix-egrep -regex '^.*/[a-z][^/]*$' -type f",
            "find . -type f -regextype posix-egrep -regex '^.*/[a-z][^/]*$' ",
            1.0,
        ),
        ("mkdir directory", "touch directory", -1.0),
        ("df --total | tail -n 1", "tail -n 1 | df --total", -1.0),
        ("find / -name linux", "find / -EXdsx -name linux", 1 / 6),
        ('find . -name "*.txt" -print | less', 'find . -name "*.txt" -print', 0.0),
    ],
)
def test_nlc2cmd_is_the_published_accuracy(gold, predicted, score):
    assert nlc2cmd_score(predicted, gold) == pytest.approx(score)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("ls -la --color=auto d", [("ls", ["-l", "-a", "--color"], ["d"])]),
        ("cut -d '|' -f1 'a b'", [("cut", ["-d", "-f"], ["|", "a b"])]),
        (
            r"find . -name '*.c' -exec grep -l foo {} \; -print",
            [("find", ["-name", "-exec", "-print"], [".", "*.c"]), ("grep", ["-l"], ["foo", "{}"])],
        ),
        (
            "find . | xargs -0 -I {} cp {} /tmp",
            [("find", [], ["."]), ("xargs", ["-0", "-I"], ["{}"]), ("cp", [], ["{}", "/tmp"])],
        ),
        ("xargs -r0 rm", [("xargs", ["-r", "-0"], []), ("rm", [], [])]),
        ("xargs -0n10 rm -f", [("xargs", ["-0", "-n"], []), ("rm", ["-f"], [])]),
        ("xargs -0I % cp % d", [("xargs", ["-0", "-I"], ["%"]), ("cp", [], ["%", "d"])]),
        ("time -f %E ls -l", [("time", ["-f"], ["%E"]), ("ls", ["-l"], [])]),
        ("watch --interval 5 ls", [("watch", ["--interval"], ["5"]), ("ls", [], [])]),
        ("xargs -J % mv % d", [("xargs", ["-J"], ["%"]), ("mv", [], ["%", "d"])]),
        ("sudo -u me rm x", [("sudo", ["-u"], ["me"]), ("rm", [], ["x"])]),
        ("kill $(pgrep -f x) y", [("kill", [], ["y"]), ("pgrep", ["-f"], ["x"])]),
        ("cd `which ls`", [("cd", [], []), ("which", [], ["ls"])]),
        ('echo "$(date +%F) now"', [("echo", [], ["$(date +%F) now"]), ("date", [], ["+%F"])]),
        ("A=1 B=2 sort > out 2>&1", [("sort", [], [">out", "2>&1"])]),
        ("tac < <(ls -a)", [("tac", [], []), ("ls", ["-a"], [])]),
        ("ls > $(mktemp -d)/x", [("ls", [], ["/x"]), ("mktemp", ["-d"], [])]),
        ("ls >`date -u` >y", [("ls", [], [">y"]), ("date", ["-u"], [])]),
        ('grep "" f', [("grep", [], ["", "f"])]),
        ("while read x; do echo $x; done", [("read", [], ["x"]), ("echo", [], ["$x"])]),
        ("(cd a && ls) || true", [("cd", [], ["a"]), ("ls", [], []), ("true", [], [])]),
        ("cd a\nls -l\r\nwc", [("cd", [], ["a"]), ("ls", ["-l"], []), ("wc", [], [])]),
        ("ls \\\n  -l d", [("ls", ["-l"], ["d"])]),
        (
            "for f in $(ls -a) b; do rm $f; done",
            [("ls", ["-a"], []), ("rm", [], ["$f"])],
        ),
        ("echo $((1 + 2))x $( (ls) )", [("echo", [], ["$((1+2))x"]), ("ls", [], [])]),
        ("A=1", []),
        ("", []),
    ],
)
def test_commands_fall_into_utilities(command, expected):
    assert parts(command) == expected


def test_comments_count_for_nothing():
    assert parts("ls -l # all of it, or ls -a") == [("ls", ["-l"], [])]
    assert parts("ls;#now\nwc a#b '#c' $#") == [("ls", [], []), ("wc", [], ["a#b", "#c", "$#"])]
    assert parts("# nothing") == []
    assert token_f1("ls -l  # long", "ls -l") == nlc2cmd_score("ls -l # -a", "ls -l") == 1.0


@pytest.mark.parametrize("command", ["echo 'a", 'echo "a', "ls )", "echo $(ls", "cd `ls", "a \\"])
def test_what_is_no_bash_has_no_parts(command):
    assert parse_command(command) is None
    assert nlc2cmd_score(command, "ls -l | wc") == -1.0
    assert token_f1(command, "ls -l | wc") == 0.0
    # As a gold answer (NL2Bash has such ones) it is right all the same.
    assert nlc2cmd_score(command, command) == 1.0
    assert token_f1(command, command) == 1.0


def test_token_f1_counts_arguments_with_their_utility():
    assert token_f1("ls -l a", "ls -l b") == pytest.approx(2 * 2 / 6)
    assert token_f1("ls a", "cat a") == 0.0
    assert token_f1("ls -l -a d", "ls -al d") == 1.0
    assert token_f1("A=1", "A=1") == 1.0 and token_f1("A=2", "A=1") == 0.0


words = st.text("ab-|&;$(){}'\"`\\ <>=", max_size=24)


@given(words, words)
def test_bash_scores_stay_in_range_and_equal_commands_are_perfect(one, other):
    if not other.strip():
        return
    assert -1 <= nlc2cmd_score(one, other) <= 1
    assert 0 <= token_f1(one, other) <= 1
    assert nlc2cmd_score(other, other) == 1
    assert token_f1(other, other) == 1


def test_bash_scores_are_on_the_common_scale():
    golds = ["find . | wc -l", "mkdir d", "ls"]
    found = score_predictions("nlc2cmd", ["find . | wc", "touch d", "ls '"], golds)
    assert found.per_example == pytest.approx([100 * (1 + (1 + 0.0) / 2) / 2, 0.0, 0.0])
    assert found.reasons == {"not Bash": 1}
    assert "scale:50*(1+s)" in found.signature
    assert score_predictions("bash_tokens", golds, golds).value == 100


@pytest.mark.parametrize("metric", ["nlc2cmd", "bash_tokens"])
def test_bash_scores_are_against_the_best_reference(metric):
    example = Example("", "ls -a", references=("ls -a", "find . -maxdepth 1"))
    assert score_predictions(metric, ["find . -maxdepth 1"], [example]).value == 100
    assert score_predictions(metric, ["ls -a"], [example]).value == 100


@pytest.mark.skipif(not NL2BASH.exists(), reason="../shared/data is absent")
def test_nearly_all_gold_commands_are_read():
    commands = (NL2BASH / "all.cm").read_text().strip().split("\n")[::10]
    unread = sum(parse_command(command) is None for command in commands)
    assert unread / len(commands) < 0.01


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("=SUM(a2:A9)", "sum( A2 : A9 )", True),
        ('COUNTIF(B2:B9, "Kent")', 'countif(B2:B9,"Kent")', True),
        ('COUNTIF(B2:B9,"Kent")', 'COUNTIF(B2:B9,"kent")', False),
        ('X("a ""b"" c")', 'X("a ""b""c")', False),
        ("'My sheet'!A1", "'Mysheet'!A1", False),
        ("A2=B2", "A2B2", False),
        ('X("=a")', 'X("a")', False),
    ],
)
def test_formulas_are_equal_but_for_what_a_spreadsheet_ignores(one, other, same):
    assert (normalise_formula(one) == normalise_formula(other)) is same
    assert score_predictions("exact", [one], [other], normalise="formula").value == 100 * same


def test_brackets_separate_by_themselves():
    gold = "[IN:CALL [SL:CONTACT Ann ] ]"
    assert normalise_brackets("[IN:CALL [SL:CONTACT Ann]]") == normalise_brackets(gold)
    assert score_predictions("exact", ["[IN:CALL [SL:CONTACT Ann]]"], [gold]).value == 0
    found = score_predictions("exact", ["[IN:CALL [SL:CONTACT Ann]]"], [gold], normalise="brackets")
    assert found.value == 100 and "brackets:apart" in found.signature
    with pytest.raises(UserError, match="Known: space, brackets, formula"):
        score_predictions("exact", ["a"], ["a"], normalise="case")


COUNT = "eq { count { filter_eq { all_rows ; county ; kent } } ; 1200 } = true"


@pytest.mark.parametrize(
    ("logic", "sentence", "reference", "errors"),
    [
        (COUNT, "1200 clubs are from kent", "1,200 clubs are from kent", []),
        (COUNT, "1,200 clubs are from kent", "1200 clubs are from kent", []),
        (COUNT, "120 clubs are from kent", "1200 clubs are from kent", ["1200"]),
        (COUNT, "11200 clubs are from kent", "1200 clubs are from kent", ["1200"]),
        ("eq { count { a } ; 500 }", "1,500 are here", "500 are here", ["500"]),
        ("eq { count { a } ; 500 }", "1,500,000 are here", "500 are here", ["500"]),
        ("eq { count { a } ; 1 }", "1,500 are here", "1 is here", ["1"]),
        ("eq { count { a } ; 1500 }", "1,500,000 are here", "1,500 are here", ["1500"]),
        ("eq { count { a } ; 2 }", "a 3-0,2-1 win", "a 2-1 win", []),
        (COUNT, "1200 clubs are not from kent", "1200 clubs are from kent", ["not"]),
        (COUNT, "clubs aren't from kent", "clubs are from kent", ["not"]),
        ("hop { nth_argmax { all_rows ; pts ; 2 } ; club }", "a is second", "a is 2nd", []),
        (
            "hop { nth_argmax { all_rows ; pts ; 2 } ; club }",
            "a has points",
            "a has the second highest points",
            ["nth_argmax", "2"],
        ),
        (
            "hop { argmin { all_rows ; pts } ; club }",
            "a has points",
            "a has fewest points",
            ["argmin"],
        ),
        (
            "most_eq { all_rows ; county ; kent }",
            "clubs from kent",
            "most are from kent",
            ["most_eq"],
        ),
        ("round_eq { avg { all_rows ; pts } ; 3.5 }", "it is 3.5", "the average is 3.5", None),
        ("filter_not_eq { all_rows ; a ; b }", "a is not b", "a is other than b", []),
    ],
)
def test_blec_finds_what_a_sentence_lacks_or_denies(logic, sentence, reference, errors):
    found = blec_errors(logic, sentence, reference)
    assert found == (["round_eq", "avg"] if errors is None else errors)


def test_blec_excuses_what_the_reference_lacks_as_well():
    assert blec_errors("only { filter_eq { all_rows ; a ; b } }", "b has a", "a has b") == []


@pytest.mark.parametrize("name", sorted(WORDS))
def test_every_function_has_a_plain_sentence_that_says_it(name):
    said = {
        "only": "the only one",
        "avg": "on average",
        "sum": "in total",
        "diff": "the difference",
        "round_eq": "about that",
        "not_eq": "not so",
        "filter_not_eq": "not so",
    }
    by_stem = {"most": "most are", "all": "all are", "nth": "the second", "greater": "more than"}
    by_stem |= {"less": "less than", "max": "the highest", "min": "the lowest"}
    sentence = said.get(name) or next(
        text for stem, text in by_stem.items() if stem in name.replace("argm", "m")
    )
    logic = f"{name} {{ all_rows ; a ; b }}"
    assert name not in blec_errors(logic, sentence, sentence + " x")
    assert name in blec_errors(logic, "a b c", sentence)


def test_blec_needs_the_logical_form():
    with pytest.raises(UserError, match=r"needs the logical form of example e7\."):
        score_predictions("blec", ["a"], [Example("q", "a", id="e7")])
    found = score_predictions("blec", [" "], [Example("q", "a", facts={"logic": "eq { a ; b }"})])
    assert (found.value, found.reasons) == (0.0, {"empty": 1})


@pytest.mark.parametrize(
    ("metric", "facts"),
    [
        ("blec", {"logic": 5}),
        ("clauses", {"schema": 5}),
        ("clauses", {"schema": {"tables": {"a": ["x"]}}}),
        ("clauses", {"schema": {"tables": ["a"], "foreign_keys": []}}),
    ],
)
def test_facts_in_another_form_are_refused(metric, facts):
    example = Example("q", "SELECT x FROM a", id="e7", facts=facts)
    with pytest.raises(UserError, match="example e7"):
        score_predictions(metric, ["SELECT x FROM a"], [example])


REFERENCED = [
    Example("", "the cat sat on the mat", references=("the cat sat on the mat", "a cat sat there")),
    Example("", "it rains in the south today"),
]


def test_corpus_scores_take_as_many_references_as_there_are():
    from sacrebleu.metrics import BLEU, CHRF

    predictions = ["a cat sat there", "it rains in the north today"]
    streams = [["the cat sat on the mat", REFERENCED[1].completion], ["a cat sat there", None]]
    bleu = score_predictions("bleu", predictions, REFERENCED, tokenize="13a")
    assert bleu.value == pytest.approx(BLEU().corpus_score(predictions, streams).score)
    assert bleu.per_example[0] == pytest.approx(100)
    assert "nrefs:var" in bleu.signature
    chrf = score_predictions("chrf", predictions, REFERENCED)
    assert chrf.value == pytest.approx(CHRF().corpus_score(predictions, streams).score)
    assert chrf.per_example[0] == pytest.approx(100)
    assert "nw:0" in chrf.signature
    upper = [text.upper() for text in predictions]
    lower = score_predictions("bleu", upper, REFERENCED, tokenize="13a", lowercase=True)
    assert "case:lc" in lower.signature and "case:mixed" in bleu.signature
    assert (lower.value, lower.per_example) == (bleu.value, bleu.per_example)
    assert score_predictions("bleu", upper, REFERENCED, tokenize="13a").value < 5
    plus = score_predictions("chrf", predictions, REFERENCED, word_order=2)
    assert plus.value != pytest.approx(chrf.value) and "nw:2" in plus.signature


@pytest.mark.parametrize(
    ("metric", "option", "said"),
    [
        ("bleu", {"tokenize": "zh"}, "'zh' isn't installed: Install it by itself$"),
        ("chrf", {"word_order": "2"}, "word_order is '2'"),
        ("chrf", {"word_order": -1}, "word_order is -1"),
    ],
)
def test_settings_that_sacrebleu_can_not_take_are_told(metric, option, said, monkeypatch):
    def absent(name):  # as those are that need packages of their own
        raise RuntimeError("\nInstall it\n\n    by itself")

    monkeypatch.setattr("sacrebleu.metrics.bleu._get_tokenizer", absent)
    with pytest.raises(UserError, match=said):
        score_predictions(metric, ["a"], ["a"], **option)


def test_pooled_bleu_is_the_corpus_score_of_the_chosen():
    random = np.random.default_rng(0)
    vocabulary = "a b c d e f g".split()
    golds = [" ".join(random.choice(vocabulary, 9)) for _ in range(30)]
    made = [" ".join(random.choice([*gold.split(), "z"], 9)) for gold in golds]
    made[::3] = golds[::3]
    found = score_predictions("bleu", made, golds)
    assert found.pooled(np.arange(30)) == pytest.approx(found.value)
    for _ in range(5):
        rows = random.integers(0, 30, 30)
        alone = score_predictions("bleu", [made[i] for i in rows], [golds[i] for i in rows])
        assert found.pooled(rows) == pytest.approx(alone.value)
    low, high = score_interval(found, seed=1)
    assert low < found.value < high
    assert (low, high) == score_interval(found, seed=1)


def test_interval_of_chrf_is_not_made_up():
    found = score_predictions("chrf", ["a b", "c d"], ["a b", "c e"])
    assert score_interval(found, seed=0) is None
    exact = score_predictions("exact", ["a", "b"], ["a", "c"])
    assert score_interval(exact, seed=0) == (0.0, 100.0)


@pytest.mark.parametrize("metric", ["exact", "bleu", "chrf", "bash_tokens", "nlc2cmd", "blec"])
def test_every_metric_signs_itself_and_has_a_score_for_each_example(metric):
    assert metric in METRICS
    golds = [Example("", "ls -l now", facts={"logic": "max { a ; b }"})] * 3
    found = score_predictions(metric, ["ls -l now", "SELECT 2", ""], golds)
    assert found.name == metric and len(found.signature) > 4
    assert len(found.per_example) == 3
    assert all(0 <= score <= 100.001 for score in found.per_example)
    assert found.per_example[0] == pytest.approx(100)

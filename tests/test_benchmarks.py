"""Benchmarks say at once what is wrong with their flags, and measure nothing by a wrong one."""

import tiny

WRONG = {
    ("training", "--cases=foo"): "train_recurrent_8, train_recurrent_32",
    ("training_gpu",): "benchmarks.training_gpu needs an NVIDIA GPU",
    ("tokens_gpu",): "benchmarks.tokens_gpu needs an NVIDIA GPU",
    ("tokens_gpu", "--rows=x"): "whole numbers above 0",
    ("retrieval", "--items=10", "--queries=20"): "--items is to be at least --queries",
    ("population", "--members=x"): "whole numbers above 0",
    ("population", "--members=0"): "whole numbers above 0",
    ("curriculum", "--steps=7"): "a multiple of 5 × --stages",
    ("loading", "--dtypes=foo"): "bfloat16, float32 or both",
    ("decoding", "--tiny", "--only=foo"): "--only=foo is none of decode_b1",
    ("quantize", "--repeats=0"): "--repeats=0",
    ("drafts", "--drafts=x"): "whole numbers above 0",
    ("drafts", "--workdir=tests"): "--workdir=tests holds no quickstart",
    ("pipeline", "--sample=0"): "--sample=0",
}


def test_wrong_flags_end_in_one_message():
    started = {
        (name, *flags): tiny.start("-m", f"benchmarks.{name}", *flags) for name, *flags in WRONG
    }
    for arguments, process in started.items():
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (2, ""), (arguments, out, err)
        assert err.startswith("error:") and len(err.splitlines()) == 1, (arguments, err)
        assert WRONG[arguments] in err, (arguments, err)


def test_the_quickstart_times_at_least_one_request():
    code, _, err = tiny.run("-m", "experiments.company.quickstart", "--requests=0")
    assert code == 2 and "--requests=0" in err, err

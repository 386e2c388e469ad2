"""The command that exports a run: its folder, its check, and what it refuses."""

import dataclasses
import json
import re

import pytest
import tiny

from pintern.errors import UserError


@pytest.fixture
def scored_run(tmp_path):
    run = tiny.copy_of(tiny.trained_run(), tmp_path / "study" / "arms" / "ours")
    (run / "eval" / "8").mkdir(parents=True)
    scores = {
        "metric": "exact",
        "score": 37.5,
        "interval": [12.5, 62.5],
        "prompt": {"keep_rate": 0.0, "shots": 0, "cached": True},
        "tokens": {"template": 1.0, "examples": 0.0, "query": 9.5, "output": 3.0},
    }
    (run / "eval" / "8" / "scores.json").write_text(json.dumps(scores))
    report = tmp_path / "study" / "report"
    report.mkdir()
    entry = {"speedup_vs_full": 4.21, "speedup_vs_cached": 1.9, "cost_saving": 0.8}
    (report / "summary.json").write_text(json.dumps({"arms": {"Ours": entry}}))
    return run


@pytest.mark.slow
def test_export_from_the_command_line(tmp_path, scored_run):
    out = tmp_path / "exported"
    command = ("-m", "pintern.export", f"--workdir={scored_run}", f"--out={out}")
    code, printed, err = tiny.run(*command, "--format=peft", "--check", "--lint=vllm")
    assert code == 0, err
    assert re.search(
        r"check: largest logit difference \d\.\d\de[-+]\d+ over \d+ positions", printed
    )
    assert "vLLM loads it" in printed
    card = (out / "README.md").read_text()
    for told in (
        "LoRA on attention.key",
        "rank 2, α 4",
        "8 steps",
        "| this export, query alone | exact | 37.5 | 12.5–62.5 | 10.5 |",
        "4.21× as fast",
        "PeftModel.from_pretrained",
        "the query alone is sent",
        tiny.TEMPLATE,
        tiny.parts().checkpoint.fingerprint,
    ):
        assert told in card
    tokens = json.loads((out / "pintern.json").read_text())["details"]["prompt_tokens"]
    full = len(tiny.parts().prompts.prefix(1.0))
    assert tokens["before"] > full > tokens["after"] > 5
    assert f"takes {tokens['after']:.1f}" in card
    # The folder isn't overwritten.
    code, _, err = tiny.run(*command, "--format=peft")
    assert code == 2
    assert "is there already" in err


def test_an_earlier_step_and_another_dtype(tmp_path, monkeypatch, capsys):
    """In this process, which has the programs: merged in bfloat16 from checkpoint 6, sharded."""
    from absl import flags

    from pintern import export as entry

    values = {
        "workdir": str(tiny.trained_run()),
        "out": str(tmp_path / "merged"),
        "format": "merged",
        "step": 6,
        "dtype": "bfloat16",
        "max_shard_bytes": 20_000,
        "check": True,
    }
    parsed = [f"--{name}={value}" for name, value in values.items()]
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["export", *parsed])
    entry.main([])
    printed = capsys.readouterr().out
    assert "step 6" in printed
    assert "same next token" in printed
    assert (tmp_path / "merged" / "model.safetensors.index.json").exists()
    assert (tmp_path / "merged" / "tokenizer.json").exists()


def test_beyond_the_tolerance_the_exit_code_says_so(tmp_path, monkeypatch, capsys):
    from absl import flags

    from pintern import export as entry
    from pintern.interop import compare as comparing

    sound = comparing.compare
    monkeypatch.setattr(
        comparing, "compare", lambda *a: dataclasses.replace(sound(*a), largest=9.0)
    )
    flags.FLAGS.unparse_flags()
    given = (f"--workdir={tiny.trained_run()}", f"--out={tmp_path / 'out'}", "--format=peft")
    flags.FLAGS(["export", *given, "--check", "--dtype=auto", "--step=8"])
    with pytest.raises(SystemExit) as raised:
        entry.main([])
    assert raised.value.code == 1
    assert "BEYOND" in capsys.readouterr().out


@pytest.mark.parametrize("out", ["gs://bucket/exports", "s3://bucket/exports", ".", ""])
def test_an_out_that_is_no_folder_of_its_own_is_refused(tmp_path, monkeypatch, out):
    """Of a bucket's URL a folder `gs:` was made here, and told as written."""
    from absl import flags

    from pintern import export as entry

    monkeypatch.chdir(tmp_path)
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["export", f"--workdir={tiny.trained_run()}", f"--out={out}", "--format=peft"])
    with pytest.raises(UserError, match=f"--out={out} (is in an object store|has no name)"):
        entry.main([])
    assert not list(tmp_path.iterdir())

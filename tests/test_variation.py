"""What members of a population differ in: read from flags, and told in tables."""

import pytest
import tiny
from ml_collections import ConfigDict

from pintern.errors import UserError
from pintern.training.members import Outcome
from pintern.training.variation import (
    check_variation,
    members_of,
    parse_variation,
    spread_over_seeds,
    table,
)


def test_every_combination_is_a_member_of_its_own_name():
    config = tiny.config(adapter__soft_prompt=2, adapter__soft_prompt_init="text")
    before = config.copy_and_resolve_references()
    given = ["seed=0,1", "config.train.learning_rate=1e-3,0.5", "adapter.soft_prompt_text=a b,c d"]
    vary = parse_variation(config, given)
    assert vary["seed"] == (0, 1)
    assert vary["train.learning_rate"] == (0.001, 0.5)
    members = members_of(config, vary)
    assert len(members) == 8
    chosen: ConfigDict = members["seed-1_learning_rate-0.001_soft_prompt_text-1"]
    assert (chosen.seed, chosen.train.learning_rate) == (1, 1e-3)
    assert chosen.adapter.soft_prompt_text == "c d"
    assert config == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("adapter.soft_prompt_text=1,a b", ["0", "1"]),
        ("adapter.soft_prompt_text=one,a b", ["one", "1"]),
        ("train.learning_rate=0.01,0.010000001", ["0", "1"]),
    ],
)
def test_values_that_are_shown_alike_are_told_apart(given, words):
    config = tiny.config(adapter__soft_prompt=2, adapter__soft_prompt_init="text")
    config.adapter.soft_prompt_text = "hello"
    last = given.partition("=")[0].rpartition(".")[2]
    members = members_of(config, parse_variation(config, [given]))
    assert list(members) == [f"{last}-{word}" for word in words]


def test_soft_prompts_may_start_from_a_text_and_in_other_ways():
    config = tiny.config(adapter__soft_prompt=2, adapter__soft_prompt_init="text")
    config.adapter.soft_prompt_text = "hello"
    vary = parse_variation(config, ["adapter.soft_prompt_init=text,vocabulary"])
    members = members_of(config, vary)
    assert members["soft_prompt_init-text"].adapter.soft_prompt_text == "hello"
    assert members["soft_prompt_init-vocabulary"].adapter.soft_prompt_text == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["rank=1,2"], "--vary=rank=1,2 is not FIELD=VALUE"),
        (["adapter.rank=1,2"], "with a field that members may differ in"),
        (["seed"], "--vary=seed is not FIELD=VALUE"),
        (["seed=a"], "seed takes values like 0"),
        (["seed=0", "seed=1"], "names seed twice"),
        (["seed=0,0"], "repeats a value"),
        (["train.learning_rate=-1"], r"config.train.learning_rate is -1.0; it must be above 0"),
        ([], "neither --vary nor a VARY"),
    ],
)
def test_a_wrong_variation_is_told(given, message):
    config = tiny.config()
    with pytest.raises(UserError, match=message):
        members_of(config, parse_variation(config, given))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (5, "VARY is 5. It should be like"),
        ({"seeed": (0, 1)}, "VARY names 'seeed', which is no field.*Those are name, seed"),
        ({"seed": 5}, "VARY has 5 for seed, not values in a row"),
        ({"seed": ()}, r"VARY has \(\) for seed"),
        ({"seed": ("a",)}, "config.seed is 'a'; expected int"),
    ],
)
def test_a_wrong_variation_of_a_file_is_told(found, message):
    with pytest.raises(UserError, match=message):
        members_of(tiny.config(), check_variation(found, "VARY"))


def test_the_table_has_every_member_and_the_spread_of_its_seeds(tmp_path):
    config = tiny.config()
    vary = {"seed": (0, 1), "train.learning_rate": (1e-3, 2e-3)}
    members = members_of(config, vary)
    outcomes = [Outcome(tmp_path / name, "trained", 8, 1.5) for name in members]
    outcomes[3] = Outcome(outcomes[3].workdir, "diverged", 4, None, "The loss at step 4 is nan")
    scores = {outcome.workdir: 10.0 * i for i, outcome in enumerate(outcomes[:3])}
    text = table(outcomes, scores)
    last = text.splitlines()[-2:]
    assert last[0].split() == ["seed-1_learning_rate-0.002", "diverged", "4", "–", "–"]
    assert last[1] == "seed-1_learning_rate-0.002: The loss at step 4 is nan"
    spread = spread_over_seeds(list(members.values()), vary, outcomes, scores)
    rows = [line.split() for line in spread.splitlines()[1:]]
    assert rows[0] == "train.learning_rate=0.001 2 10.0 14.1 0.0 20.0".split()
    assert rows[1] == "train.learning_rate=0.002 1 10.0 – 10.0 10.0".split()

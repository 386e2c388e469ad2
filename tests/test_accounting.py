"""Accounts against numbers worked out by hand."""

import dataclasses
import json

import pytest

from pintern.errors import UserError
from pintern.report.accounting import (
    ArmResult,
    Latency,
    PriceList,
    TokenCount,
    break_even_requests,
    cost_per_request,
    cost_saving,
    machine_cost,
    pays_after,
    speedup,
    summarise,
    token_reduction,
    write_summary,
)

PRICES = PriceList(input=3.0, cached_input=0.3, output=15.0)
FULL = TokenCount(template=400, examples=160, query=40, output=20)
QUERY = TokenCount(template=0, examples=0, query=40, output=20)


def latency(prefill, decode):
    return Latency(
        prefill, 2 * prefill, decode, 2 * decode, prefill + decode, 2 * (prefill + decode)
    )


def arm(name, tokens, times, *, cached=False, training=0.0, score=50.0, metric="sql"):
    return ArmResult(
        arm=name,
        score=score,
        slices={"easy": score + 1},
        interval=(score - 2, score + 2),
        tokens=tokens,
        latency=times,
        cached_prefix=cached,
        training_seconds=training,
        metric=metric,
        trained="LoRA" if training else "–",
    )


ARMS = [
    arm("full", FULL, latency(0.08, 0.04)),
    arm("cached", FULL, latency(0.02, 0.04), cached=True),
    arm("ours", QUERY, latency(0.01, 0.02), training=1800.0, score=49.0),
]


def summary_of(arms=ARMS, **changes):
    arguments = {"full": "full", "cached": "cached", "prices": PRICES, "usd_per_hour": 2.0}
    return summarise(arms, **(arguments | changes))


def test_tokens_add_up():
    assert FULL.prompt == 600
    assert FULL.total == 620


def test_cost_prices_each_part():
    assert cost_per_request(FULL, PRICES, cached_prefix=False) == pytest.approx(0.0021)
    assert cost_per_request(FULL, PRICES, cached_prefix=True) == pytest.approx(0.00102)
    assert cost_per_request(QUERY, PRICES, cached_prefix=True) == pytest.approx(0.00042)


def test_a_cached_prefix_saves_on_the_template_alone():
    examples = TokenCount(template=0, examples=400, query=0, output=0)
    assert cost_per_request(examples, PRICES, cached_prefix=True) == cost_per_request(
        examples, PRICES, cached_prefix=False
    )


def test_ratios():
    assert token_reduction(FULL, QUERY) == pytest.approx(1 - 40 / 600)
    assert token_reduction(QUERY, FULL) == pytest.approx(-14)
    assert speedup(0.12, 0.03) == pytest.approx(4)
    assert cost_saving(0.0021, 0.00042) == pytest.approx(0.8)


@pytest.mark.parametrize(
    "compare",
    [
        lambda: token_reduction(TokenCount(0, 0, 0, 5), QUERY),
        lambda: speedup(1.0, 0.0),
        lambda: cost_saving(0.0, 1.0),
        lambda: speedup(1.0, float("nan")),
    ],
)
def test_a_ratio_to_nothing_is_told(compare):
    with pytest.raises(UserError, match="Cannot compare"):
        compare()


def test_break_even():
    assert break_even_requests(1.0, 0.0021, 0.00042) == pytest.approx(1 / 0.00168)
    assert break_even_requests(0.0, 2.0, 1.0) == 0
    assert break_even_requests(1.0, 1.0, 1.0) is None
    assert break_even_requests(1.0, 1.0, 2.0) is None


def test_a_training_pays_after_whole_requests():
    told = {None: "never", 0.0: "0", 0.2: "1", 3.0: "3", 1234.5: "1,235"}
    assert {requests: pays_after(requests) for requests in told} == told


def test_at_break_even_both_have_cost_the_same():
    requests = break_even_requests(7.0, 0.003, 0.001)
    assert 7.0 + requests * 0.001 == pytest.approx(requests * 0.003)


def test_machine_time_is_rented_by_the_hour():
    assert machine_cost(1800, 2.0) == pytest.approx(1.0)


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_prices_must_be_prices(price):
    with pytest.raises(UserError, match="cached_input"):
        PriceList(cached_input=price)


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_the_price_of_a_machine_must_be_one(price):
    with pytest.raises(UserError, match="usd_per_hour is"):
        summary_of(usd_per_hour=price)


def test_prices_in_another_unit_are_refused():
    with pytest.raises(UserError, match="'USD per thousand tokens'; costs are computed in USD per"):
        PriceList(unit="USD per thousand tokens")


def test_summary_holds_every_figure():
    summary = summary_of(ours="ours")
    ours = summary["arms"]["ours"]
    assert ours["score"] == 49.0
    assert ours["slices"] == {"easy": 50.0}
    assert ours["tokens"] == {
        "template": 0,
        "examples": 0,
        "query": 40,
        "output": 20,
        "prompt": 40,
        "total": 60,
    }
    assert ours["latency"] == dataclasses.asdict(latency(0.01, 0.02))
    assert ours["token_reduction"] == pytest.approx(14 / 15)
    assert ours["speedup_vs_full"] == pytest.approx(4)
    assert ours["speedup_vs_cached"] == pytest.approx(2)
    assert ours["cost_per_1000_requests"] == pytest.approx(0.42)
    assert ours["cost_saving"] == pytest.approx(0.8)
    assert ours["cost_saving_vs_cached"] == pytest.approx(1 - 0.42 / 1.02)
    assert ours["training_cost"] == pytest.approx(1.0)
    assert ours["break_even_requests"] == pytest.approx(1 / 0.00168)
    assert ours["break_even_requests_vs_cached"] == pytest.approx(1 / 0.0006)
    # 0.09 s saved per request at 2 USD an hour: half an hour of training is 20,000 requests.
    assert ours["machine"]["break_even_requests"] == pytest.approx(20_000)
    assert ours["machine"]["break_even_requests_vs_cached"] == pytest.approx(60_000)


def test_references_compare_to_themselves_as_one():
    full, cached = summary_of()["arms"]["full"], summary_of()["arms"]["cached"]
    assert full["speedup_vs_full"] == cached["speedup_vs_cached"] == 1
    assert full["cost_saving"] == cached["cost_saving_vs_cached"] == full["token_reduction"] == 0
    assert full["break_even_requests"] is None
    assert full["speedup_vs_cached"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full": "fulll"}, "'fulll'.*There are: full, cached, ours"),
        ({"cached": "none"}, "'none'"),
        ({"ours": "theirs"}, "'theirs'"),
        ({"arms": [*ARMS, ARMS[0]]}, "named twice"),
        ({"arms": [*ARMS, arm("b", QUERY, latency(1, 1), metric="bleu")]}, "bleu, sql"),
    ],
)
def test_mistakes_in_a_summary_are_told(changes, message):
    with pytest.raises(UserError, match=message):
        summary_of(**changes)


def test_summary_is_strict_json_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "report" / "summary.json"
    write_summary(path, {"old": True})
    write_summary(path, summary_of())
    assert json.loads(path.read_text(encoding="utf-8")) == summary_of()
    with pytest.raises(ValueError, match="JSON"):
        write_summary(path, {"value": float("inf")})
    assert json.loads(path.read_text(encoding="utf-8")) == summary_of()
    assert [file.name for file in path.parent.iterdir()] == ["summary.json"]

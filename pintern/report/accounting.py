"""What an arm saves and what it costs: tokens, time, money, and when the training has paid off.

The honest competitor of a prompt held in the weights is the full prompt with its prefix cached, so
everything is told against both: the full prompt, and the cached one.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from pintern.errors import UserError
from pintern.files import write_atomically

SCHEMA = 1
SECONDS_PER_HOUR = 3600
# The headline figures of PromptIntern, which ours are shown beside.
PAPER = {
    "source": "PromptIntern, arXiv 2407.02211",
    "token_reduction": 0.9,
    "speedup": 4.2,
    "cost_saving": 0.883,
}


@dataclasses.dataclass(frozen=True)
class PriceList:
    """What tokens cost; the default is an assumption, stated wherever a cost is shown.

    Attributes:
      input: price of prompt tokens.
      cached_input: price of prompt tokens whose prefix is cached already.
      output: price of generated tokens.
      unit: of the three, for captions; costs are computed and shown in this one.
      name: of the list, for captions.
      note: where the prices are from.
    """

    input: float = 3.00
    cached_input: float = 0.30
    output: float = 15.00
    unit: str = "USD per million tokens"
    name: str = "assumed list"
    note: str = "an assumption of this report, not a provider's offer"

    def __post_init__(self) -> None:
        for field in ("input", "cached_input", "output"):
            price = getattr(self, field)
            if not (math.isfinite(price) and price >= 0):
                raise UserError(f"Price {field} is {price}; it must be a number from 0 on.")
        if self.unit != PriceList.unit:
            raise UserError(
                f"Prices are in {self.unit!r}; costs are computed in {PriceList.unit}.",
                "Convert them, and leave the unit out.",
            )


@dataclasses.dataclass(frozen=True)
class TokenCount:
    """Mean tokens of a request by part, by the model's tokenizer.

    Attributes:
      template: instructions, schema, fixed examples; the vectors of a soft prompt count here.
      examples: retrieved for this query.
      query: the query and its frame.
      output: generated.
    """

    template: float
    examples: float
    query: float
    output: float

    @property
    def prompt(self) -> float:
        """Everything that goes in."""
        return self.template + self.examples + self.query

    @property
    def total(self) -> float:
        """Everything that goes in or comes out."""
        return self.prompt + self.output


@dataclasses.dataclass(frozen=True)
class Latency:
    """Seconds per request: median and ninth decile of prefill, decode and both together."""

    prefill_p50: float
    prefill_p90: float
    decode_p50: float
    decode_p90: float
    total_p50: float
    total_p90: float


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """One arm of a study, measured.

    Attributes:
      arm: display name.
      score: 0 to 100.
      slices: score of each slice, 0 to 100.
      interval: bounds of the score, or None where there is none.
      tokens: per request.
      latency: per request.
      cached_prefix: the template's keys and values were there before the request came.
      training_seconds: machine time of the training; 0 for an arm that needs none.
      metric: what the score is.
      trained: what was trained (`LoRA`, `soft prompt`, …), or `–`.
    """

    arm: str
    score: float
    slices: dict[str, float]
    interval: tuple[float, float] | None
    tokens: TokenCount
    latency: Latency
    cached_prefix: bool
    training_seconds: float
    metric: str
    trained: str


def cost_per_request(tokens: TokenCount, prices: PriceList, *, cached_prefix: bool) -> float:
    """USD for one request; the template is the only part that a cached prefix makes cheaper."""
    template_price = prices.cached_input if cached_prefix else prices.input
    millions = (
        tokens.template * template_price
        + (tokens.examples + tokens.query) * prices.input
        + tokens.output * prices.output
    )
    return millions / 1e6


def token_reduction(full: TokenCount, ours: TokenCount) -> float:
    """Fraction of the full prompt's tokens that ours does without; negative if it takes more."""
    return 1 - _ratio(ours.prompt, full.prompt, "prompt tokens")


def speedup(before_seconds: float, after_seconds: float) -> float:
    """How many times as fast as before."""
    return _ratio(before_seconds, after_seconds, "seconds per request")


def cost_saving(before: float, after: float) -> float:
    """Fraction of the former cost that is saved; negative if it costs more."""
    return 1 - _ratio(after, before, "cost per request")


def break_even_requests(
    training_cost: float, cost_before: float, cost_after: float
) -> float | None:
    """Requests after which the training has paid for itself; None if it never does."""
    if cost_after >= cost_before:
        return None
    return training_cost / (cost_before - cost_after)


def pays_after(requests: float | None) -> str:
    """Break-even requests as a reader counts them: whole ones, or `never`."""
    return "never" if requests is None else f"{math.ceil(requests):,}"


def machine_cost(seconds: float, usd_per_hour: float) -> float:
    """USD for a machine that is rented by the hour.

    Raises:
      UserError: no price.
    """
    if not (math.isfinite(usd_per_hour) and usd_per_hour >= 0):
        raise UserError(
            f"usd_per_hour is {usd_per_hour}; it must be a number from 0 on.",
            "It is what the machine that trained and served costs.",
        )
    return seconds / SECONDS_PER_HOUR * usd_per_hour


def summarise(
    arms: Sequence[ArmResult],
    *,
    full: str,
    cached: str,
    prices: PriceList,
    usd_per_hour: float,
    ours: str | None = None,
) -> dict:
    """The content of `summary.json`.

    Costs come twice: by the price list, and (under `machine`) as time on the machine that served
    the requests, one at a time: of each arm the median request's, which a busy moment doesn't move.
    Training is always paid in machine time.

    Args:
      arms: measured arms, in the order in which they are shown.
      full: the arm with the full prompt.
      cached: the arm with the full prompt behind a cached prefix.
      prices: price list.
      usd_per_hour: of the machine that trained and served.
      ours: the arm whose figures are shown beside the paper's; None shows none.

    Raises:
      UserError: no such arm, two arms of one name, different metrics, or a reference arm without
        tokens, time or cost.
    """
    by_name = {arm.arm: arm for arm in arms}
    if len(by_name) != len(arms):
        raise UserError(
            f"Arms are named twice: {', '.join(arm.arm for arm in arms)}.",
            "Give each its own name.",
        )
    for name in (full, cached, *([ours] if ours is not None else [])):
        if name not in by_name:
            raise UserError(f"No arm is named {name!r}.", f"There are: {', '.join(by_name)}.")
    metrics = sorted({arm.metric for arm in arms})
    if len(metrics) > 1:
        raise UserError(f"Arms were scored by {', '.join(metrics)}.", "Compare arms by one metric.")
    references = by_name[full], by_name[cached]
    return {
        "schema": SCHEMA,
        "metric": metrics[0],
        "full": full,
        "cached": cached,
        "ours": ours,
        "prices": dataclasses.asdict(prices),
        "usd_per_hour": usd_per_hour,
        "paper": dict(PAPER),
        "arms": {arm.arm: _account(arm, *references, prices, usd_per_hour) for arm in arms},
    }


def write_summary(path: Path | str, summary: dict) -> None:
    """Writes `summary.json`, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text)


def _account(
    arm: ArmResult, full: ArmResult, cached: ArmResult, prices: PriceList, usd_per_hour: float
) -> dict:
    """One arm's entry."""
    listed, listed_full, listed_cached = (
        cost_per_request(each.tokens, prices, cached_prefix=each.cached_prefix)
        for each in (arm, full, cached)
    )
    rented, rented_full, rented_cached = (
        machine_cost(each.latency.total_p50, usd_per_hour) for each in (arm, full, cached)
    )
    training = machine_cost(arm.training_seconds, usd_per_hour)
    return {
        "trained": arm.trained,
        "cached_prefix": arm.cached_prefix,
        "score": arm.score,
        "interval": None if arm.interval is None else list(arm.interval),
        "slices": dict(arm.slices),
        "tokens": {
            **dataclasses.asdict(arm.tokens),
            "prompt": arm.tokens.prompt,
            "total": arm.tokens.total,
        },
        "latency": dataclasses.asdict(arm.latency),
        "training_seconds": arm.training_seconds,
        "training_cost": training,
        "token_reduction": token_reduction(full.tokens, arm.tokens),
        "speedup_vs_full": speedup(full.latency.total_p50, arm.latency.total_p50),
        "speedup_vs_cached": speedup(cached.latency.total_p50, arm.latency.total_p50),
        "cost_per_1000_requests": 1000 * listed,
        "cost_saving": cost_saving(listed_full, listed),
        "cost_saving_vs_cached": cost_saving(listed_cached, listed),
        "break_even_requests": break_even_requests(training, listed_full, listed),
        "break_even_requests_vs_cached": break_even_requests(training, listed_cached, listed),
        "machine": {
            "cost_per_1000_requests": 1000 * rented,
            "break_even_requests": break_even_requests(training, rented_full, rented),
            "break_even_requests_vs_cached": break_even_requests(training, rented_cached, rented),
        },
    }


def _ratio(numerator: float, denominator: float, what: str) -> float:
    if not denominator > 0:
        raise UserError(
            f"Cannot compare with {denominator} {what}.", "Measure it first: it must be above 0."
        )
    return numerator / denominator

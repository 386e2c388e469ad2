"""Decoding beside transformers' `generate`: equal tokens first, then time.

    python -m benchmarks.decoding                    (CPU: GPT-2-124M shape, float32)
    JAX_PLATFORMS=cuda python -m benchmarks.decoding (GPU: Llama-1B shape, bfloat16)
    python -m benchmarks.decoding --only=decode_b1,requests_plain
    python -m benchmarks.decoding --tiny             (tries the script out; means nothing)

Random weights that both sides share; greedy. In float32 all tokens are to be equal. In bfloat16 the
two round otherwise: where a row differs, `generate`'s model is asked for the logits behind what
ours chose, and each of our tokens must be the likeliest there but for rounding. `decode_*` are
batches of rows of one length, and `requests_*` a queue of ragged ones in which about one token in
forty ends its row. Weights are drawn wider than usual (`WIDTH`), so that rows don't repeat a token:
few would end before they must, and equal tokens would say little.
`generate` is eager and has the cache that it has by default. It is given rows sorted by length,
left-padded, at the batch size that is best for it on a sample; ours takes the largest. Where the
whole queue would take it many minutes it serves every tenth batch, is compared on these, and its
time is scaled. The floor reads the weights once for the prompts and once for every further token of
the batch, or computes their products, whichever is longer, at the rates measured in the same run.
`headline` is the saving that this project is about, see `benchmarks.headline`.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np
from absl import flags

from benchmarks import measure, training_cases
from benchmarks.decoding_sides import Case, Ours, Peer, ending_ids, requests
from benchmarks.headline import TARGET as HEADLINE
from benchmarks.headline import headline
from benchmarks.results import Record, Result, UnequalError
from benchmarks.shared_models import (
    GPT2_124M,
    LLAMA_1B,
    TINY_GPT2,
    TINY_LLAMA,
    pintern_model,
    saved_model,
    torch_model,
)
from pintern import cli
from pintern.errors import UserError

ONLY = flags.DEFINE_list("only", [], "Names of the cases to run; all by default.")
REPEATS = flags.DEFINE_integer(
    "repeats", 3, "Timed runs of each side of the shorter cases.", lower_bound=1
)
TINY = flags.DEFINE_boolean("tiny", False, "A tiny model.")
COMPARED = 16  # rows whose tokens differ: at most so many are looked into
# Share of the likeliest token's logit by which that of a chosen one may be lower.
NEAR_TIE = {"float32": 1e-5, "bfloat16": 0.04}
# Standard deviation of random weights by which a row's tokens are mostly distinct; 0.02 is usual.
WIDTH = {"gpt2": 0.1, "llama": 0.04}


def cases(*, on_gpu: bool) -> list[Case]:
    """What is measured."""
    few = REPEATS.value
    if on_gpu:
        return [
            Case("decode_gpu_b1", 8.0, 1, 0, (48, 48), 128, (1,), few),
            Case("decode_gpu_b64", 1.5, 64, 0, (48, 48), 128, (64,), few),
            Case("decode_gpu_shared_b64", 5.0, 64, 1792, (48, 48), 64, (64,), few),
            Case("requests_gpu_shared", 6.0, 300, 1792, (8, 64), 64, (64, 128, 256), 1),
        ]
    return [
        Case("decode_b1", 1.5, 1, 0, (48, 48), 32, (1,), few + 2),
        Case("decode_b8", 1.5, 8, 0, (48, 48), 32, (8,), few),
        Case("decode_shared_b32", 5.0, 32, 448, (48, 48), 32, (32,), 1),
        Case("requests_plain", 2.0, 300, 0, (8, 64), 32, (32, 64), 1),
        Case("requests_shared", 6.0, 300, 448, (8, 64), 32, (16, 32), 1, every=10),
    ]


def chosen_cases(*, on_gpu: bool) -> list[Case]:
    """Those of `--only`; `headline` is none of them.

    Raises:
      UserError: a name that there isn't.
    """
    found = {case.name: case for case in cases(on_gpu=on_gpu)}
    for name in ONLY.value:
        if name not in (*found, "headline"):
            raise UserError(f"--only={name} is none of {', '.join(found)}, headline.")
    return [case for name, case in found.items() if not ONLY.value or name in ONLY.value]


def main(_: list[str]) -> None:
    """Prints two tables; exits with 1 where a case fails, as where the sides' tokens differ."""
    # Both libraries share a GPU: neither may take it all beforehand.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    from flax import nnx

    from pintern.evaluation.unroll import unrolled

    on_gpu = jax.default_backend() != "cpu"
    chosen = chosen_cases(on_gpu=on_gpu)
    tiny, full = (TINY_LLAMA, LLAMA_1B) if on_gpu else (TINY_GPT2, GPT2_124M)
    shape, dtype = tiny if TINY.value else full, "bfloat16" if on_gpu else "float32"
    shape = {**shape, "initializer_range": WIDTH[shape["model_type"]]}
    rate, band = measure.matrix_rate(), measure.bandwidth()
    print(measure.versions(), measure.floors_line(rate, band), sep="\n", flush=True)
    record = Record(None if TINY.value else "gpu" if on_gpu else "cpu")
    with saved_model(shape, dtype=dtype) as folder:
        checkpoint = pintern_model(folder, dtype=dtype)
        # Once, as a server does when it starts.
        split = unrolled(*nnx.split(checkpoint.decoder))
        work = Work(checkpoint.decoder, rate, band)
        peer = torch_model(folder, dtype=dtype, device="cuda" if on_gpu else "cpu").eval()
        ends = ending_ids(peer) if any(case.ragged for case in chosen) else ()
        for case in chosen:
            with record.case(case.name) as found:
                case = dataclasses.replace(case, ends=ends if case.ragged else ())
                ours, theirs = Ours(checkpoint, split, case), Peer(peer, case)
                found.append(measured(case, ours, theirs, work, NEAR_TIE[dtype]))
        ours = theirs = peer = None  # a GPU's memory is free for the headline
        targets = {case.name: case.target for case in chosen}
        if not ONLY.value or "headline" in ONLY.value:
            with record.case("headline") as found:
                found += headline(split, checkpoint.config.vocab_size, on_gpu=on_gpu)
                targets[found[0].name] = HEADLINE
        record.finish(targets)


def measured(case: Case, ours: Ours, theirs: Peer, work: Work, limit: float) -> Result:
    """Time, where tokens are equal; `limit` is that of `compare`."""
    # Our programs first; `generate` has none to compile.
    mine, other = measure.paired(ours.run, theirs.run, case.repeats, warm=ours.warm)
    other = other.scaled(case.count / len(theirs.made))
    print(
        f"{case.name}: batch {ours.batch} and {theirs.batch}; {ours.tokens / mine.median:,.0f} and "
        f"{ours.tokens / other.median:,.0f} tokens/s; {ours.compiled} programs compiled in timed "
        "runs",
        f"; rows of {np.mean([len(row) for row in ours.made]):.1f} tokens, of {case.new} at most"
        * case.ragged,
        sep="",
        flush=True,
    )
    compare(ours.made, theirs, limit)
    return Result.of(case.name, mine, other, work.floor(case, ours.made, ours.batch))


def compare(made: list[list[int]], theirs: Peer, limit: float) -> None:
    """Prints how many of the peer's rows have our tokens.

    Args:
      made: our tokens of every row.
      theirs: after its run.
      limit: share of the highest logit by which it may exceed that of a token of ours.

    Raises:
      UnequalError: it exceeds it by more, in one of the rows that are looked into.
    """
    apart = [i for i, tokens in theirs.made.items() if made[i] != tokens]
    leads = [theirs.lead(i, made[i]) for i in apart[:COMPARED]]
    furthest = float(np.max(leads, initial=0.0))  # NaN, if one is
    print(
        f"  {1 - len(apart) / len(theirs.made):.1%} of {len(theirs.made)} rows have equal tokens"
        + (f", in others a logit is {furthest:.1%} below the highest at most" * bool(leads)),
        flush=True,
    )
    if not furthest <= limit:
        raise UnequalError("tokens are not the peer's")


class Work:
    """What a case takes at least.

    Args:
      decoder: the model.
      rate: measured.
      band: measured.
    """

    def __init__(self, decoder, rate: measure.Rate, band: measure.Rate):
        import jax
        from flax import nnx

        self._needed = training_cases.Work.of(decoder, 0)
        self._vocab = decoder.config.vocab_size
        self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(decoder)))
        self._rate, self._band = rate, band

    def floor(self, case: Case, made: list[list[int]], batch: int) -> float:
        """Seconds to read all prompts and choose all tokens with `batch` rows at a time.

        Reading a prompt gives its row's first token; of the last block it takes the last slot, and
        of the other slots keys and values alone. Attention isn't counted.
        """
        _, rows = requests(case, self._vocab)
        read = case.prefix + sum(map(len, rows))
        later = sum(min(len(row) + 1, case.new) for row in made) - len(rows)
        needed, rate = self._needed, self._rate.value
        # Of a forward and a backward pass, and so twice as many operations as are needed here.
        blocks = (needed.layers - 1) * needed.token
        last = needed.token + 4 * needed.head
        prompts = read * (blocks + needed.keys) + len(rows) * (last - needed.keys)
        once = self._bytes / self._band.value
        tokens = max(later * (blocks + last) / 2 / rate, later / batch * once)
        return max(prompts / 2 / rate, once) + tokens


if __name__ == "__main__":
    cli.run(main)

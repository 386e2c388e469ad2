"""Decoding behind a prefilled prefix gives what reading everything again at each token gives."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from benchmarks.measure import compilations
from pintern.adapters.adapter import Adapter, LoraPair
from pintern.assemble import new_adapter, split_decoder
from pintern.evaluation.decode import Generator, Sampling, _is_unrolled
from pintern.evaluation.sampling import likeliest, restrict
from pintern.evaluation.turns import bucket, pad_rows
from pintern.evaluation.unroll import unrolled
from pintern.models.split import SplitDecoder

pytestmark = pytest.mark.usefixtures("full_precision")

NEW = 6
ROOM = 64  # slots of the naive sequence: one program for all of them
NEVER = 599  # an id that the greedy answers below don't hold
PREFIX = tuple(range(40, 53))


@functools.cache
def rows() -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(2, 300, length).tolist() for length in (9, 12, 3, 14, 16)]


@functools.cache
def trained_adapter() -> Adapter:
    """LoRA away from zero, and a soft prompt."""
    keys = iter(jax.random.split(jax.random.key(5), 99))
    fresh = new_adapter(tiny.parts())
    lora = jax.tree.map(lambda x: 0.2 * jax.random.normal(next(keys), x.shape), fresh.lora)
    return fresh.replace(lora=lora, soft_prompt=jax.random.normal(next(keys), (3, 32)))


def generate(adapter=None, *, batch_rows=2, eos=NEVER, temperature=0.0, seed=0, **more):
    sampling = Sampling(NEW, eos, temperature)
    graph, base = split_decoder(tiny.parts().checkpoint)
    generator = Generator(graph, base, adapter, more.pop("prefix", PREFIX), sampling, **more)
    return generator(rows(), batch_rows=batch_rows, seed=seed)


@jax.jit
def _next(adapter, sequence, length):
    decoder = tiny.parts().checkpoint.decoder
    embedded = decoder.embed(sequence)
    virtual = 0
    if adapter is not None:
        virtual = adapter.num_virtual_tokens
        embedded = jnp.concatenate([adapter.soft_prompt, embedded])[:ROOM]
    positions = jnp.where(jnp.arange(ROOM) < length + virtual, jnp.arange(ROOM), -1)
    hidden, _ = decoder(embedded[None, None], positions[None, None], adapter=adapter)
    return decoder.logits(hidden[0, 0]).argmax(-1)[length + virtual - 1]


def naive(adapter, row: list[int]) -> list[int]:
    """Greedy tokens, the whole sequence read again for each."""
    sequence = [*PREFIX, *row]
    for _ in range(NEW):
        padded = np.zeros(ROOM, np.int32)
        padded[: len(sequence)] = sequence
        sequence.append(int(_next(adapter, padded, jnp.int32(len(sequence)))))
    return sequence[-NEW:]


@pytest.mark.parametrize("kind", ["base", "LoRA and soft prompt"])
def test_greedy_equals_reading_everything_again(kind):
    adapter = None if kind == "base" else trained_adapter()
    made = generate(adapter)
    assert made == [naive(adapter, row) for row in rows()]
    assert len({tuple(row) for row in made}) > 1
    if adapter is not None:
        assert made != generate()


def test_what_a_row_is_batched_with_changes_nothing():
    """The last batch of two is filled with copies; one of five is not."""
    assert generate(batch_rows=5) == generate(batch_rows=2)


@pytest.mark.parametrize("layout", ["unrolled", "stacked"])
def test_one_row_at_a_time_gets_the_same(layout, monkeypatch):
    """Its keys and values are read and written without the axis of rows."""
    together = generate(trained_adapter())
    if layout == "stacked":
        monkeypatch.setattr("pintern.evaluation.decode._is_unrolled", lambda base: False)
    assert generate(trained_adapter(), batch_rows=1) == together


def test_how_many_rows_are_read_at_once_changes_nothing(monkeypatch):
    """An accelerator reads more: what it waits for are the weights."""
    graph, base = split_decoder(tiny.parts().checkpoint)
    many = [row for row in rows() for _ in range(5)]
    made, calls = [], []
    for tokens in (0, 32 * len(many)):
        generator = Generator(graph, base, None, PREFIX, Sampling(NEW, NEVER))
        generator.tokens_at_once = tokens
        read, counted = generator.read_padded, []
        monkeypatch.setattr(
            generator, "read_padded", lambda *x, r=read, c=counted: c.append(len(x[0])) or r(*x)
        )
        made.append(generator(many, batch_rows=len(many)))
        calls.append(counted)
    assert made[0] == made[1]
    assert max(calls[0]) == 8
    assert calls[1] == [len(many)]


@pytest.mark.parametrize(("free", "wanted"), [(3.0, True), (1.9, False)])
def test_a_gpu_has_a_block_for_every_layer_if_there_is_room_for_it(free, wanted, monkeypatch):
    _, base = split_decoder(tiny.parts().checkpoint)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    memory = {"bytes_limit": int((1 + free) * size), "bytes_in_use": size}
    gpu = types.SimpleNamespace(platform="gpu", memory_stats=lambda: memory)
    monkeypatch.setattr("pintern.evaluation.decode.only_device", lambda tree: gpu)
    assert _is_unrolled(base) is wanted


def test_a_program_is_found_again_by_a_decoder_that_was_split_anew():
    """And not for one of another structure."""
    decoder = tiny.parts().checkpoint.decoder
    one, other = (SplitDecoder.of(*nnx.split(decoder)) for _ in range(2))
    assert one.structure == other.structure and hash(one.structure) == hash(other.structure)
    assert SplitDecoder.of(*unrolled(*nnx.split(decoder))).structure != one.structure
    kept, back = nnx.state(decoder), nnx.state(other.merge())
    assert jax.tree.structure(kept) == jax.tree.structure(back)
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (kept, back)), strict=True))


def test_a_completion_ends_before_eos():
    whole = generate()
    eos = whole[0][2]
    expected = [row[: row.index(eos)] if eos in row else row for row in whole]
    assert len(expected[0]) <= 2
    assert generate(eos=eos) == expected


def test_sampling_depends_on_seed_and_row_alone():
    drawn = generate(temperature=1.0, seed=3)
    assert drawn == generate(temperature=1.0, seed=3, batch_rows=5)
    assert drawn != generate(temperature=1.0, seed=4)
    assert drawn != generate()


def many_rows(count: int, longest: int = 20) -> list[list[int]]:
    """Of such lengths that two buckets and both batch sizes of admission come up."""
    rng = np.random.default_rng(2)
    return [rng.integers(2, 300, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


def test_rows_that_take_the_places_of_ended_ones_get_their_own_tokens():
    """Sixty rows through eight places, where EOS frees them at different times, and so often that
    the ring goes around."""
    graph, base = split_decoder(tiny.parts().checkpoint)
    rows = many_rows(60)
    generator = Generator(graph, base, trained_adapter(), PREFIX, Sampling(NEW, NEVER, 1.0))
    whole = generator(rows, batch_rows=60, seed=3)
    ends = {row[len(row) // 2] for row in whole[:20]}
    sampling = Sampling(NEW, NEVER, 1.0, also_end=tuple(sorted(ends)))
    told = []
    generator = Generator(graph, base, trained_adapter(), PREFIX, sampling)
    made = generator(rows, batch_rows=8, seed=3, progress=told.append)
    cut = [next((i for i, token in enumerate(row) if token in ends), NEW) for row in whole]
    assert made == [row[:end] for row, end in zip(whole, cut, strict=True)]
    assert len(set(cut)) > 3
    assert sum(told) == 60


@pytest.mark.parametrize("prefix", [PREFIX, ()])
def test_a_queue_that_was_warmed_compiles_nothing(prefix):
    graph, base = split_decoder(tiny.parts().checkpoint)
    sampling = Sampling(NEW, NEVER, 1.0, also_end=tuple(range(0, 300, 7)))
    generator = Generator(graph, base, None, prefix, sampling)
    rows = many_rows(60)
    before = compilations()
    generator.warm(rows, batch_rows=9)
    warmed = compilations()
    made = generator(rows, batch_rows=9, seed=3)
    assert before < warmed == compilations()
    assert len({len(row) for row in made}) > 3


def test_members_with_adapters_and_prefixes_of_their_own_are_served_in_one_batch():
    graph, base = split_decoder(tiny.parts().checkpoint)
    whole = trained_adapter()
    thinner = whole.replace(
        lora={
            name: LoraPair(pair.a[..., :1], pair.b[:, :1])
            for name, pair in list(whole.lora.items())[:3]
        },
        soft_prompt=whole.soft_prompt[:1],
        scale=3.0,
    )
    members = [(whole, PREFIX), (thinner, PREFIX[:4]), (None, ())]
    rows = many_rows(15, longest=16)
    numbers = [(i * i) % 3 for i in range(15)]  # the second has most of them
    sampling = Sampling(NEW, NEVER)
    made = Generator.together(graph, base, members, sampling)(rows, batch_rows=6, members=numbers)
    for number, (adapter, prefix) in enumerate(members):
        mine = [i for i in range(15) if numbers[i] == number]
        alone = Generator(graph, base, adapter, prefix, sampling)
        assert [made[i] for i in mine] == alone([rows[i] for i in mine], batch_rows=len(mine))


def test_stacked_and_unrolled_layers_give_the_same(monkeypatch):
    unrolled = generate(trained_adapter())
    monkeypatch.setattr("pintern.evaluation.decode._is_unrolled", lambda base: False)
    assert generate(trained_adapter()) == unrolled


def test_reading_the_prefix_with_every_row_is_only_slower():
    assert generate(trained_adapter(), cached=False) == generate(trained_adapter())


def test_without_a_prefix_rows_stand_alone():
    alone = generate(prefix=())
    assert len(alone) == len(rows())
    assert alone != generate()


def test_rows_are_padded_to_a_bucket():
    tokens, valid = pad_rows([[5, 6, 7], [8]])
    assert tokens.shape == (2, 8)
    assert tokens[:, :4].tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert valid[:, :4].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    found = sorted({bucket(n) for n in range(1, 400)})
    assert found[:12] == [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128]
    assert found[12:] == [160, 192, 224, 256, 320, 384, 448]
    assert all(bucket(n) >= n for n in range(1, 400))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_streamed_row_gets_the_tokens_of_the_batch(temperature):
    graph, base = split_decoder(tiny.parts().checkpoint)
    adapter = trained_adapter()
    eos = generate(adapter, temperature=temperature, seed=3)[0][2]
    generator = Generator(graph, base, adapter, PREFIX, Sampling(NEW, eos, temperature))
    batched = generator(rows(), batch_rows=5, seed=3)
    assert len(batched[0]) <= 2 < max(map(len, batched))
    streamed = [list(generator.stream(row, seed=3, index=i)) for i, row in enumerate(rows())]
    assert streamed == batched
    assert generator(rows()[3:], batch_rows=2, seed=3, first_index=3) == batched[3:]


def test_every_id_that_ends_a_completion_ends_it():
    whole = generate()
    also = whole[0][2]
    graph, base = split_decoder(tiny.parts().checkpoint)
    generator = Generator(graph, base, None, PREFIX, Sampling(NEW, NEVER, also_end=(also,)))
    expected = [row[: row.index(also)] if also in row else row for row in whole]
    assert generator(rows(), batch_rows=2) == expected != whole


LOGITS = jnp.log(jnp.asarray([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]]))


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, {0, 1, 2, 3}),
        (1, 1.0, {1}),
        (2, 1.0, {1, 3}),
        (9, 1.0, {0, 1, 2, 3}),
        (0, 0.39, {1}),
        (0, 0.6, {1, 3}),
        (0, 0.75, {1, 2, 3}),
        (2, 0.5, {1}),  # of the two left, the first holds 4/7
        (2, 0.6, {1, 3}),
    ],
)
def test_top_k_and_top_p_leave_the_likeliest(top_k, top_p, kept):
    left = np.asarray(restrict(LOGITS, top_k, top_p))
    assert set(np.flatnonzero(np.isfinite(left[0]))) == kept
    assert np.isfinite(left[1]).all()  # equally likely tokens stay together
    assert (left[0] == np.asarray(LOGITS[0]))[np.isfinite(left[0])].all()


@pytest.mark.parametrize("rows_of_many", [1, 7])
def test_the_likeliest_is_the_first_of_the_highest(rows_of_many):
    rng = np.random.default_rng(0)
    logits = rng.integers(-3, 4, (rows_of_many, 501)).astype(np.float32)  # full of equal ones
    logits[0] = -np.inf
    assert likeliest(jnp.asarray(logits)).tolist() == logits.argmax(-1).tolist()
    logits[-1, 3] = np.nan
    assert int(likeliest(jnp.asarray(logits))[-1]) == 500


def test_the_likeliest_of_one_is_the_greedy_choice():
    sampling = Sampling(NEW, NEVER, temperature=0.7, top_k=1)
    graph, base = split_decoder(tiny.parts().checkpoint)
    drawn = Generator(graph, base, None, PREFIX, sampling)(rows(), batch_rows=5, seed=9)
    assert drawn == generate(batch_rows=5)

"""What is trained on in the benchmarks of training: rows, and what each side makes of them.

Both sides get the same rows. Ours reads the recurring prompt once a step; PEFT's batch is the one
that its users write: prompt and row concatenated, padded on the right to the longest of the batch,
−100 where nothing is to be learned.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pintern.prompts.rows import Row

if TYPE_CHECKING:  # JAX would count in the memory of PEFT's process
    from pintern.training.batches import Shapes
    from pintern.training.step import TrainBatch

RANK, ALPHA = 16, 32


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison: the same rows on both sides, in as many steps as it has.

    Attributes:
      name: of the result.
      target: ratio that it is to reach.
      virtual: length of the soft prompt; 0 is LoRA on every linear map.
      prefix: ids that stand in front of every row.
      ours: rows of each of our steps.
      planned: steps on whose lengths the shapes are planned, as a run plans them before it starts.
      peer: the same rows in the order that a PEFT user's shuffled loader gives.
      micro: rows of a PEFT micro-batch; gradients of as many as make a step are accumulated.
      packed: rows of our packs, as `training.order` deals them out.
      repeats: timed runs of each side.
    """

    name: str
    target: float
    virtual: int
    prefix: tuple[int, ...]
    ours: tuple[tuple[Row, ...], ...]
    planned: tuple[tuple[Row, ...], ...]
    peer: tuple[tuple[Row, ...], ...]
    micro: int
    packed: int = 1
    repeats: int = 1

    def our_batches(self) -> list[TrainBatch]:
        """Each step's batch, padded to the few shapes that a run would have."""
        shapes = self._shapes(self.planned)
        return [self._batch(step, shapes) for step in self.ours]

    def checked_batch(self) -> TrainBatch:
        """The peer's first step in our form: one step's rows on which both are compared."""
        return self._batch(self.peer[0], self._shapes(self.peer[:1]))

    def _shapes(self, planned: tuple[tuple[Row, ...], ...]) -> Shapes:
        from pintern.training.batches import Shapes

        rows = [row for step in planned for row in step]
        steps = np.arange(len(rows)).reshape(len(planned), -1)
        return Shapes.plan(
            self.prefix, rows, steps, every=True, lane_rows=len(planned[0]), packed=self.packed
        )

    def _batch(self, rows: tuple[Row, ...], shapes: Shapes) -> TrainBatch:
        import jax

        from pintern.training.batches import make_batch
        from pintern.training.step import TrainBatch

        batch = make_batch(self.prefix, rows, shapes.shape_for(rows), lane_rows=len(rows))
        whole = TrainBatch(student=batch, labelled=np.ones((1, len(rows)), np.float32))
        return jax.tree.map(lambda x: np.asarray(x)[None], whole)

    def peer_batches(self) -> list[list[dict[str, np.ndarray]]]:
        """Each step's micro-batches: `input_ids`, `attention_mask`, `labels`, all `[row, slot]`."""
        return [
            [
                _padded(self.prefix, rows[i : i + self.micro])
                for i in range(0, len(rows), self.micro)
            ]
            for rows in self.peer
        ]

    def padding(self) -> tuple[float, float]:
        """Share of the slots that hold padding: ours, the peer's."""
        from pintern.training.batches import padding_share

        ours = [padding_share(batch.student) for batch in self.our_batches()]
        masks = [micro["attention_mask"] for step in self.peer_batches() for micro in step]
        real = sum(int(mask.sum()) for mask in masks)
        return float(np.mean(ours)), 1.0 - real / sum(mask.size for mask in masks)

    def flops(self, shape: Work) -> float:
        """Floating-point operations that one pass over our steps needs at least: no padding, and
        of the last block what a target or a later token depends on.
        """
        before = len(self.prefix) + self.virtual
        return sum(
            shape.prefix(before) + sum(shape.row(row, before) for row in step) for step in self.ours
        )

    def model_flops(self, shape: Work) -> float:
        """The same with every token read and in all blocks, as utilisation is commonly counted."""
        before = len(self.prefix) + self.virtual
        total = 0.0
        for step in self.ours:
            total += shape.every(before)
            for row in step:
                total += shape.every(len(row.tokens), before)
                total += shape.logits(len(row.tokens) - row.start)
        return total

    def peer_flops(self, shape: Work) -> float:
        """What PEFT computes: every row with its prompt, logits at every slot."""
        total = 0.0
        for step in self.peer_batches():
            for micro in step:
                rows, slots = micro["input_ids"].shape
                slots += self.virtual
                total += rows * (shape.every(slots) + shape.logits(slots))
        return total


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations of a training step to a frozen base: forward, and back to the activations.

    Attributes:
      token: of a token in one block's linear maps, the LoRA pairs' own gradients included.
      keys: of a token whose keys and values are all that is needed of the block.
      head: parameters of the output matrix.
      width: heads × their dimension.
      layers: of the model.
    """

    token: float
    keys: float
    head: float
    width: int
    layers: int

    @classmethod
    def of(cls, decoder: Any, rank: int) -> Work:
        """Of a decoder with LoRA of this rank on every linear map; 0 is none."""
        modules, config = decoder.linear_modules(), decoder.config

        def operations(sizes: Any) -> float:
            # A frozen weight meets a token forward and backward; a pair has its own gradient too.
            return sum(4 * i * o + 6 * rank * (i + o) for i, o in sizes)

        each = config.num_kv_heads * config.head_dim
        pair = [(config.model_dim, 2 * each)] if "attention.qkv" in modules else None
        return cls(
            token=operations(modules.values()),
            keys=operations(pair or [modules["attention.key"], modules["attention.value"]]),
            head=config.vocab_size * config.model_dim,
            width=config.num_heads * config.head_dim,
            layers=config.num_layers,
        )

    def prefix(self, length: int) -> float:
        """So many tokens that each look at those before them, and that rows look at."""
        blocks = (self.layers - 1) * (length * self.token + self._scores(_pairs(0, length)))
        return blocks + length * self.keys

    def row(self, row: Row, before: int) -> float:
        """A row behind so many tokens, its logits at the completion alone."""
        length, targets = len(row.read), len(row.tokens) - row.start
        blocks = (self.layers - 1) * (length * self.token + self._scores(_pairs(before, length)))
        seen = _pairs(before + length - targets, targets)
        last = targets * self.token + (length - targets) * self.keys + self._scores(seen)
        return blocks + last + self.logits(targets)

    def every(self, length: int, before: int = 0) -> float:
        """So many tokens behind others, in all blocks, without logits."""
        return self.layers * (length * self.token + self._scores(_pairs(before, length)))

    def logits(self, count: int) -> float:
        """At so many slots, and back to the hidden states."""
        return 4 * self.head * count

    def _scores(self, pairs: float) -> float:
        # Two products forward and four backward, each 2 operations per pair and channel.
        return 12 * pairs * self.width


def _pairs(before: int, length: int) -> float:
    """Of each of so many tokens with itself and what stands before it."""
    return length * before + length * (length + 1) / 2


def _padded(prefix: tuple[int, ...], rows: tuple[Row, ...]) -> dict[str, np.ndarray]:
    width = len(prefix) + max(len(row.tokens) for row in rows)
    ids = np.zeros((len(rows), width), np.int64)
    mask, labels = np.zeros_like(ids), np.full_like(ids, -100)
    for r, row in enumerate(rows):
        end = len(prefix) + len(row.tokens)
        ids[r, :end] = [*prefix, *row.tokens]
        mask[r, :end] = 1
        labels[r, len(prefix) + row.start : end] = row.tokens[row.start :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def recurrent(
    rows: int, target: float, vocab: int, *, sizes: tuple[int, int, int], name: str = ""
) -> Case:
    """One step of equal rows behind a template; `sizes` are template, query, completion."""
    rng = np.random.default_rng(0)
    template, query, completion = sizes
    prefix = tuple(rng.integers(0, vocab, template).tolist())
    step = tuple(
        Row(rng.integers(0, vocab, query + completion).tolist(), query) for _ in range(rows)
    )
    # More rows at once don't fit: PEFT keeps activations and logits of every row's whole prompt.
    name = name or f"train_recurrent_{rows}"
    steps = (step,)
    repeats = 2 if rows <= 8 else 1
    return Case(name, target, 0, prefix, steps, steps, steps, micro=8, repeats=repeats)


def soft_prompt(target: float, vocab: int, *, virtual: int, rows: int, sizes: tuple) -> Case:
    """One step of prompt tuning over equal short rows; `sizes` are query, completion."""
    case = recurrent(rows, target, vocab, sizes=(0, *sizes), name="train_soft_prompt")
    return dataclasses.replace(case, virtual=virtual, micro=rows, repeats=5)


def plain(
    target: float, vocab: int, *, data: Path, rows: int, steps: int = 8, window: int = 64
) -> Case:
    """The first steps of an epoch of ragged rows without a prompt, each side in its own order.

    Args:
      target: ratio.
      vocab: ids are folded into it.
      data: folder with NL2Bash and GPT-2's tokenizer; lengths are drawn where it isn't there.
      rows: of a step.
      steps: that are made. The peer gets the same rows, shuffled.
      window: steps whose rows our order packs together, and then shuffles step by step: as many as
        in a run.
    """
    from pintern.training.order import packing, stretch_indices

    drawn = nl2bash_rows(data, vocab, rows * window)
    lengths = np.array([len(row.tokens) for row in drawn])
    packed = packing(lengths, rows=rows)
    ours = stretch_indices(range(window), lengths, rows=rows, seed=0, packed=packed)
    theirs = np.random.default_rng(1).permutation(np.concatenate(ours[:steps]))

    def pick(order: Any) -> tuple[tuple[Row, ...], ...]:
        return tuple(tuple(drawn[i] for i in step) for step in order)

    mine, other = pick(ours[:steps]), pick(theirs.reshape(steps, rows))
    every = pick(ours)
    return Case("train_plain", target, 0, (), mine, every, other, rows, packed, repeats=3)


def nl2bash_rows(data: Path, vocab: int, count: int) -> list[Row]:
    """Rows of NL2Bash, chosen by a fixed seed; rows of drawn lengths where the data isn't there."""
    rng = np.random.default_rng(0)
    words = data / "tokenizer_gpt2" / "tokenizer.json"
    if not (words.is_file() and (data / "nl2bash").is_dir()):
        drawn = np.rint(rng.lognormal((2.9, 2.8), (0.45, 0.6), (count, 2))).astype(int) + 2
        return [Row(rng.integers(0, vocab, q + c).tolist(), int(q)) for q, c in drawn]
    from tokenizers import Tokenizer

    from pintern.tasks.nl2bash import nl2bash_task

    task, tokenizer = nl2bash_task(str(data / "nl2bash"), 0), Tokenizer.from_file(str(words))
    found = []
    for i in rng.choice(len(task.train), count, replace=False):
        example = task.train[i]
        query = tokenizer.encode(task.format.render_query(example.query)).ids
        completion = tokenizer.encode(task.format.render_completion(example.completion)).ids
        ids = np.array([*query, *completion, tokenizer.get_vocab_size() - 1]) % vocab
        found.append(Row(ids.tolist(), len(query)))
    return found

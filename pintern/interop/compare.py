"""Whether what was written computes what was trained: logits of both on the same tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pintern.adapters.adapter import Adapter
from pintern.interop.manifest import read_manifest
from pintern.interop.read import read_adapter
from pintern.models.decoder import Decoder
from pintern.models.load import Checkpoint, load_model
from pintern.models.shared_prefix import positions_of, prefill

# Shares of the largest logit. Two orders of summation in float32 differ by less than the first. A
# cast moves each weight by half a step of its format at most, at random, and what the layers make
# of it stays below the second in steps (the bundled model in bfloat16: a third of one).
_FLOAT32_TOLERANCE = 1e-4
_ROUNDING_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far the written export is from the trained adapter.

    Attributes:
      largest: absolute difference of two logits.
      scale: largest absolute logit.
      tolerance: share of `scale` that `largest` may reach.
      agreement: share of positions at which both would choose the same token.
      positions: compared.
    """

    largest: float
    scale: float
    tolerance: float
    agreement: float
    positions: int

    @property
    def within(self) -> bool:
        """Whether the export is as good as what was trained; never with a NaN."""
        return self.largest <= self.tolerance * self.scale

    def __str__(self) -> str:
        verdict = "within" if self.within else "BEYOND"
        return (
            f"largest logit difference {self.largest:.2e} over {self.positions} positions, "
            f"{verdict} the tolerance {self.tolerance * self.scale:.2e} ({self.tolerance:.0e} of "
            f"the largest logit); same next token at {self.agreement:.1%}"
        )


def compare(
    out: Path,
    checkpoint: Checkpoint,
    adapter: Adapter,
    rows: Sequence[Sequence[int]],
    dtype: DTypeLike,
) -> Difference:
    """Reads an export back from its files and compares logits with the adapter's.

    Args:
      out: the export.
      checkpoint: the base.
      adapter: what was exported.
      rows: token ids to compare on.
      dtype: in which the export is stored.
    """
    wanted = logits_of(checkpoint.decoder, adapter, rows)
    parts = read_manifest(out).parts
    if "model" in parts:
        base = load_model(out / parts["model"])
        soft = read_adapter(out, base) if "soft_prompt" in parts else None
        found = logits_of(base.decoder, soft, rows)
    else:
        found = logits_of(checkpoint.decoder, read_adapter(out, checkpoint), rows)
    step = float(jnp.finfo(dtype).eps)
    return Difference(
        largest=float(np.abs(found - wanted).max()),
        scale=max(1.0, float(np.abs(wanted).max())),
        tolerance=max(_FLOAT32_TOLERANCE, _ROUNDING_STEPS * step),
        agreement=float((found.argmax(-1) == wanted.argmax(-1)).mean()),
        positions=len(wanted),
    )


def logits_of(
    decoder: Decoder, adapter: Adapter | None, rows: Sequence[Sequence[int]]
) -> Float[Array, "position vocab"]:
    """Logits at every token of the rows in turn, each row behind the adapter's soft prompt.

    Args:
      decoder: the base, or a merged model.
      adapter: LoRA and soft prompt; None is the model alone.
      rows: token ids.
    """
    width = max(map(len, rows))
    tokens = np.zeros((1, len(rows), width), np.int32)
    valid = np.zeros_like(tokens)
    for i, row in enumerate(rows):
        tokens[0, i, : len(row)], valid[0, i, : len(row)] = row, 1
    with jax.default_matmul_precision("highest"):  # else a GPU or a TPU rounds each product
        return np.asarray(_forward(*nnx.split(decoder), adapter, tokens, valid))[valid > 0]


@functools.partial(jax.jit, static_argnums=0)
def _forward(
    graph: nnx.GraphDef,
    weights: nnx.State,
    adapter: Adapter | None,
    tokens: Int[Array, "group row slot"],
    valid: Int[Array, "group row slot"],
) -> Float[Array, "group row slot vocab"]:
    decoder = nnx.merge(graph, weights)
    empty = jnp.zeros((tokens.shape[0], 0), jnp.int32)
    cache, start = prefill(decoder, empty, empty, adapter=adapter)
    hidden, _ = decoder(tokens, positions_of(valid, start[:, None]), cache, adapter=adapter)
    return decoder.logits(hidden)

"""The trained tree: LoRA pairs for named linear modules, and a soft prompt. Never base weights."""

import fnmatch
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pintern.errors import UserError


@flax.struct.dataclass
class LoraPair:
    """Low-rank update of one linear module in every layer: ΔW = scale · A · B (LoRA, 2106.09685).

    Attributes:
      a: `[layer, in, rank]`.
      b: `[layer, rank, out]`, zero at the start, so that training starts at the base model.
    """

    a: Float[Array, "*layer in rank"]
    b: Float[Array, "*layer rank out"]


@flax.struct.dataclass
class Adapter:
    """Everything that is trained.

    Attributes:
      lora: module name (`attention.query`, …) to its pair; empty for prompt tuning.
      soft_prompt: `[virtual_token, model]` vectors at the head of the prefix, or None.
      scale: α/r (α/√r with rsLoRA); fixed, not trained.
      dropout: rate on the input of A while training; fixed.
    """

    lora: dict[str, LoraPair]
    soft_prompt: Float[Array, "virtual model"] | None = None
    scale: float = flax.struct.field(pytree_node=False, default=1.0)
    dropout: float = flax.struct.field(pytree_node=False, default=0.0)

    @property
    def num_virtual_tokens(self) -> int:
        """Length of the soft prompt, 0 without one."""
        return 0 if self.soft_prompt is None else self.soft_prompt.shape[0]


def match_targets(patterns: tuple[str, ...], modules: Mapping[str, tuple[int, int]]) -> list[str]:
    """Linear modules that the patterns name (shell wildcards; `all` means every one).

    Raises:
      UserError: a pattern that matches nothing; the message lists the modules there are.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(modules, "*" if pattern == "all" else pattern)
        if not found:
            raise UserError(
                f"LoRA target {pattern!r} matches no linear module of this model.",
                f"Use 'all' or patterns over: {', '.join(modules)}.",
            )
        chosen.update(found)
    return [name for name in modules if name in chosen]


def init_lora(
    key: PRNGKeyArray,
    modules: Mapping[str, tuple[int, int]],
    num_layers: int,
    *,
    targets: tuple[str, ...] = ("all",),
    rank: int,
) -> dict[str, LoraPair]:
    """Fresh LoRA pairs, in float32: A uniform with variance 1/(3·in), B zero.

    Args:
      key: random key.
      modules: name to `(in, out)` of every linear module of one layer.
      num_layers: leading axis of each pair.
      targets: which modules get one, see `match_targets`.
      rank: inner width r, at least 1.

    Raises:
      UserError: a rank below 1; see `match_targets`.
    """
    if rank < 1:
        raise UserError(f"adapter.rank is {rank}; it must be at least 1.")
    pairs = {}
    for name in match_targets(targets, modules):
        key, subkey = jax.random.split(key)
        width_in, width_out = modules[name]
        bound = width_in**-0.5
        pairs[name] = LoraPair(
            a=jax.random.uniform(subkey, (num_layers, width_in, rank), jnp.float32, -bound, bound),
            b=jnp.zeros((num_layers, rank, width_out), jnp.float32),
        )
    return pairs


def lora_scale(alpha: float, rank: int, *, rank_stabilised: bool = False) -> float:
    """α/r, or α/√r for rank-stabilised LoRA (2312.03732)."""
    return alpha / (rank**0.5 if rank_stabilised else rank)

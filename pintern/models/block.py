"""One block of the decoder: attention and MLP around the residual stream."""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Bool, Float

from pintern.models import alone
from pintern.models.attention import Attention
from pintern.models.config import DecoderConfig
from pintern.models.experts import Experts, Routed
from pintern.models.linear import LayerAdapter
from pintern.models.mlp import MLP
from pintern.models.norms import norm_of


class Block(nnx.Module):
    """Residual block; where its norms stand, and whether its MLP reads the attention's result,
    are choices of the config.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        sandwich = config.norm_placement == "sandwich"
        self.norm_placement = config.norm_placement
        self.parallel = config.parallel_residual
        self.attention_norm = norm_of(config)
        self.attention = Attention(config, rngs=rngs)
        self.attention_post_norm = norm_of(config) if sandwich else None
        self.mlp_norm = norm_of(config)
        self.mlp = (Experts if config.mlp == "experts" else MLP)(config, rngs=rngs)
        self.mlp_post_norm = norm_of(config) if sandwich else None

    def __call__(
        self,
        hidden: Float[Array, "group row slot model"],
        attend: Callable[..., tuple[Array, Any]],
        adapter: LayerAdapter,
        real: Bool[Array, "group row slot"],
        pick: Callable[[Array], Array],
    ) -> tuple[Float[Array, "group lane read model"], Any, Routed | None]:
        """Adds what attention and MLP make of `hidden`.

        Args:
          hidden: the residual stream.
          attend: maps the attention's input to its result at the places that are picked, and gives
            what is to be kept of it. For a token alone it takes the norm before it too, and what
            the result is added to.
          adapter: this layer's.
          real: which tokens are no padding, for the router's statistics.
          pick: takes `[group, row, slot, …]` at the places whose hidden states are asked for.

        Returns:
          the residual stream, what `attend` gave to keep, and the routing where there are experts.
        """
        if self.norm_placement == "post":
            mixed, kept = attend(hidden)
            hidden, real = pick(hidden), pick(real)
            hidden = self.attention_norm(hidden + mixed)
            out, routed = self._feed(hidden, adapter, real)
            return self.mlp_norm(hidden + out), kept, routed
        if self._joins_all(hidden):
            hidden, kept = attend(hidden, norm=self.attention_norm, residual=hidden)
            return self.mlp.added(hidden, adapter, self.mlp_norm, hidden), kept, None
        mixed, kept = attend(self.attention_norm(hidden))
        hidden, real = pick(hidden), pick(real)
        if self.attention_post_norm is not None:
            mixed = self.attention_post_norm(mixed)
        before, hidden = hidden, hidden + mixed
        out, routed = self._feed(self.mlp_norm(before if self.parallel else hidden), adapter, real)
        if self.mlp_post_norm is not None:
            out = self.mlp_post_norm(out)
        return hidden + out, kept, routed

    def _joins_all(self, hidden: Array) -> bool:
        """Whether norms, maps and sums are done together (`alone`)."""
        return (
            alone.is_alone(*hidden.shape[:-1])
            and self.norm_placement == "pre"
            and not self.parallel
            and self.attention_norm.kind == "rms"
            and self.attention.joined is not None
            and isinstance(self.mlp, MLP)
            and self.mlp.joined is not None
        )

    def _feed(self, x: Array, adapter: LayerAdapter, real: Array) -> tuple[Array, Routed | None]:
        if isinstance(self.mlp, Experts):
            return self.mlp(x, real)
        return self.mlp(x, adapter), None

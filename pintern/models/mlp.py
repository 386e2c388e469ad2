"""The MLP of a block."""

import functools

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pintern.models.config import DecoderConfig
from pintern.models.linear import INIT_STD, Joined, LayerAdapter, Linear, each_of
from pintern.models.norms import Norm

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
}


class MLP(nnx.Module):
    """Gated (`down(act(gate) · up)`) or plain (`down(act(up))`) feed-forward map.

    Attributes:
      joined: gate and up, where they are one map (`join`).
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        width, inner, bias = config.model_dim, config.mlp_dim, config.mlp_bias
        out_std = INIT_STD / (2 * config.num_layers) ** 0.5
        self.activation = config.activation
        self.gate = (
            Linear("mlp.gate", width, inner, bias=bias, rngs=rngs)
            if config.mlp == "gated"
            else None
        )
        self.up = Linear("mlp.up", width, inner, bias=bias, rngs=rngs)
        self.down = Linear("mlp.down", inner, width, bias=bias, rngs=rngs, std=out_std)
        self.joined: Joined | None = None

    def __call__(
        self, x: Float[Array, "*batch model"], adapter: LayerAdapter
    ) -> Float[Array, "*batch model"]:
        """Maps `[..., model]` to `[..., model]`."""
        act = ACTIVATIONS[self.activation]

        # The activation is made again in the backward pass: else every step within it, and what
        # `down` read for its LoRA pair, is kept, each of the block's greatest width. Of `down`
        # itself nothing is made again, since its product is not needed there. A GPU keeps what
        # `down` read: it is in memory anyway, and to make it again takes longer than to read it.
        on_gpu = jax.default_backend() == "gpu"
        kept = jax.checkpoint_policies.save_only_these_names(*["mlp.inner"] * on_gpu)

        @functools.partial(jax.checkpoint, policy=kept, prevent_cse=not on_gpu)
        def after_up(
            up: Float[Array, "*batch inner"], gate: Float[Array, "*batch inner"] | None
        ) -> Float[Array, "*batch model"]:
            inner = act(up) if gate is None else act(gate) * up
            return self.down(checkpoint_name(inner, "mlp.inner"), adapter)

        if self.joined is not None:
            gate, up = self.joined(x, adapter)
        elif self.gate is not None:
            gate, up = each_of((self.gate, self.up), x, adapter)
        else:
            gate, up = None, self.up(x, adapter)
        return after_up(up, gate)

    def added(
        self,
        x: Float[Array, "*batch model"],
        adapter: LayerAdapter,
        norm: Norm,
        residual: Float[Array, "*batch model"],
    ) -> Float[Array, "*batch model"]:
        """`residual`, and what a joined map makes of norm(x), for a token alone."""
        gate, up = self.joined(x, adapter, norm)
        return self.down.added(ACTIVATIONS[self.activation](gate) * up, adapter, residual)

    def join(self) -> None:
        """Makes one map of the two that read the same."""
        if self.gate is not None:
            self.joined = nnx.data(Joined((self.gate, self.up)))
            self.gate = self.up = nnx.static(None)

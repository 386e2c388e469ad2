"""What a decoder is made of: the small orthogonal choices that tell one family from another."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and choices of one causal decoder.

    Attributes:
      vocab_size: rows of the embedding table.
      model_dim: width of the residual stream.
      num_layers: number of blocks, stacked and scanned.
      num_heads: query heads.
      num_kv_heads: key and value heads; fewer than `num_heads` is grouped-query attention.
      head_dim: width of one head.
      mlp_dim: inner width of the MLP.
      norm: root-mean-square or layer normalisation.
      norm_eps: added to the variance.
      positions: rotary angles on queries and keys, or a learned table added to the embedding.
      max_positions: the context the model was made for, in tokens.
      rope_theta: base of the rotary angles.
      mlp: one matrix in (`plain`), or a gate times a linear (`gated`).
      activation: non-linearity of the MLP; `gelu_new` is the tanh approximation.
      fused_qkv: one matrix yields query, key and value (LoRA then shares its A among them).
      attention_bias: biases on the query, key and value projections.
      output_bias: bias on the attention's output projection.
      mlp_bias: biases inside the MLP.
      tied_head: the output matrix is the embedding table.
    """

    vocab_size: int
    model_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    positions: Literal["rope", "learned"] = "rope"
    max_positions: int = 2048
    rope_theta: float = 10000.0
    mlp: Literal["gated", "plain"] = "gated"
    activation: Literal["silu", "gelu", "gelu_new"] = "silu"
    fused_qkv: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied_head: bool = True

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )

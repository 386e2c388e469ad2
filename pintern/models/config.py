"""What a decoder is made of: the small orthogonal choices that tell one family from another."""

import dataclasses
from typing import Literal

from pintern.models.rope import RopeScaling


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
      mlp_dim: inner width of the MLP, or of one expert.
      norm: root-mean-square or layer normalisation.
      norm_eps: added to the variance.
      norm_offset: the norm multiplies by 1 + its scale (Gemma).
      norm_placement: before attention and MLP (`pre`), after each residual sum (`post`; there is no
        final norm then), or before and after each of the two (`sandwich`).
      parallel_residual: the MLP reads what the attention reads, and not its result.
      positions: rotary angles on queries and keys, a learned table added to the embedding, or a
        penalty on the distance in the scores (ALiBi, 2108.12409).
      max_positions: the context the model was made for, in tokens.
      position_offset: rows of the learned table before the row of position 0.
      rope_theta: base of the rotary angles.
      rope_scaling: stretches the angles over a longer context.
      rotary_dim: dimensions of each head that are rotated; None is all.
      local_rope_theta: base in the windowed layers, without scaling; None is as in the others.
      window: tokens that a windowed layer sees, the query's own included; None is all.
      windowed: which layers are windowed, one flag a layer; empty is all of them.
      mlp: one matrix in (`plain`), a gate times a linear (`gated`), or several gated ones to which
        a router sends each token (`experts`, 2401.04088).
      num_experts: experts in a layer.
      experts_per_token: experts that each token is sent to.
      activation: non-linearity of the MLP; `gelu_new` is the tanh approximation.
      fused_qkv: one matrix yields query, key and value (LoRA then shares its A among them).
      qkv_by_head: the fused columns stand head by head, (q, k, v) in each, and not q|k|v.
      qk_norm: root-mean-square norm of every query and key head, before the rotation.
      attention_bias: biases on the query, key and value projections.
      output_bias: bias on the attention's output projection.
      mlp_bias: biases inside the MLP.
      query_scale: factor of the scores; None is head_dim^-½.
      score_cap: scores are bent to cap · tanh(score / cap).
      logit_cap: the same for the logits.
      embed_dim: width of the embedding where two matrices lead to and from `model_dim`; None where
        it is `model_dim`.
      embedding_scale: factor of the embedding, rounded to its dtype.
      embedding_norm: the embedding is normalised before the first block.
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
    norm_offset: bool = False
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    parallel_residual: bool = False
    positions: Literal["rope", "learned", "alibi"] = "rope"
    max_positions: int = 2048
    position_offset: int = 0
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rotary_dim: int | None = None
    local_rope_theta: float | None = None
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    mlp: Literal["gated", "plain", "experts"] = "gated"
    num_experts: int = 0
    experts_per_token: int = 0
    activation: Literal["silu", "relu", "gelu", "gelu_new"] = "silu"
    fused_qkv: bool = False
    qkv_by_head: bool = False
    qk_norm: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_scale: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    embed_dim: int | None = None
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    tied_head: bool = True

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.windowed and len(self.windowed) != self.num_layers:
            raise ValueError(
                f"{len(self.windowed)} layers are said to be windowed or not; there are "
                f"{self.num_layers}"
            )
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token={self.experts_per_token} exceeds num_experts={self.num_experts}"
            )

"""Puts together what a config names: checkpoint, tokenizer, task and prompts.

Entry points, `pintern.training` and `pintern.evaluation` work with what it returns.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from pintern import compiling
from pintern.adapters.adapter import Adapter, init_lora, lora_scale
from pintern.adapters.soft_prompt import init_soft_prompt
from pintern.errors import UserError
from pintern.hub import resolve_model
from pintern.interop.read import read_adapter
from pintern.models.fused import choose_attention
from pintern.models.load import Checkpoint, check_tokenizer, init_model, load_model
from pintern.models.pooled import pooled_states_of
from pintern.models.quantize import quantize
from pintern.models.sharding import make_mesh, sharding_of
from pintern.models.surprisal import surprisal_of
from pintern.prompts.pipeline import Prompts, prepare_prompts
from pintern.prompts.retrievers.vectors import Encoder, base_encoder
from pintern.prompts.tokens import PieceTokenizer
from pintern.tasks import load_task

BUNDLED = Path(__file__).parent / "assets" / "nano"


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run works with.

    Attributes:
      config: the checked config.
      checkpoint: the frozen base.
      tokenizer: the base's.
      prompts: task, ladder, curriculum, retrieval.
    """

    config: ConfigDict
    checkpoint: Checkpoint
    tokenizer: PieceTokenizer
    prompts: Prompts


def model_directory(config: ConfigDict) -> Path:
    """`nano` is the bundled model; anything else a folder, or a name on the hub."""
    fields = config.model
    if fields.path == "nano":
        return BUNDLED
    return resolve_model(fields.path, fields.revision, weights=not fields.random_init)


def load_base(
    config: ConfigDict, *, attention: str | None = None
) -> tuple[Checkpoint, PieceTokenizer]:
    """Loads the base onto the config's mesh, and its tokenizer, and checks that they fit.

    Args:
      config: the checked config.
      attention: in place of `config.model.attention`.
    """
    where = sharding_of(make_mesh(config.mesh.to_dict()))
    directory = model_directory(config)
    auto = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    dtype = jnp.dtype(auto if config.model.dtype == "auto" else config.model.dtype)
    quantized = config.model.quantize == "int8"
    if config.model.random_init:
        checkpoint = init_model(
            directory, seed=config.seed, dtype=dtype, remat=config.model.remat, sharding_of=where
        )
        if quantized:
            quantize(checkpoint.decoder)
    else:
        checkpoint = load_model(
            directory,
            dtype=dtype,
            remat=config.model.remat,
            quantized=quantized,
            sharding_of=where,
        )
    decoder = checkpoint.decoder
    wanted = attention or config.model.attention
    choose_attention(decoder.blocks, checkpoint.config, dtype, wanted)
    decoder.unroll = compiling.unroll(config.model.unroll, checkpoint.config.num_layers)
    tokenizer = PieceTokenizer.load(directory)
    check_tokenizer(tokenizer.size, checkpoint.config)
    return checkpoint, tokenizer


def assemble(
    config: ConfigDict,
    *,
    prompts_directory: Path | None = None,
    base: tuple[Checkpoint, PieceTokenizer] | None = None,
) -> Parts:
    """Loads base and task, and prepares the prompts.

    Args:
      config: the checked config.
      prompts_directory: the run's `prompts/`, whose texts are used if they are there.
      base: what `load_base` gave, where several runs share it.
    """
    task = load_task(config)  # in no time, and what is wrong with it is told at once
    checkpoint, tokenizer = base or load_base(config)
    prompts = prepare_prompts(
        config,
        task,
        tokenizer,
        surprisal_of(checkpoint.decoder, tokenizer.bos),
        text_encoder(config, checkpoint, tokenizer),
        directory=prompts_directory,
    )
    return Parts(config, checkpoint, tokenizer.ending_with(prompts.renderer.eos), prompts)


def text_encoder(config: ConfigDict, checkpoint: Checkpoint, tokenizer: PieceTokenizer) -> Encoder:
    """Vectors of texts under the base; their key names all that the numbers follow from."""
    identity = (
        f"pooled states 1, base {checkpoint.fingerprint}, {checkpoint.decoder.embedding.dtype}, "
        f"{config.model.quantize}, {jax.default_backend()}, start {tokenizer.bos}"
    )
    pooled = pooled_states_of(checkpoint.decoder, tokenizer.bos)
    return base_encoder(tokenizer, pooled, identity)


def new_adapter(parts: Parts) -> Adapter:
    """The adapter that a run starts from: fresh, or what `adapter.init_from` holds of it.

    A folder of LoRA alone leaves the soft prompt fresh, and the other way round.

    Raises:
      UserError: the folder can't be read, or its shape isn't the config's.
    """
    adapter = fresh_adapter(parts)
    source = parts.config.adapter.init_from
    if not source:
        return adapter
    given = read_adapter(source, parts.checkpoint)
    if given.lora:
        _check_same_lora(adapter, given, parts.config)
        adapter = adapter.replace(lora=given.lora)
    if given.soft_prompt is not None:
        if adapter.num_virtual_tokens != given.num_virtual_tokens:
            raise UserError(
                f"{source} has a soft prompt of {given.num_virtual_tokens} virtual tokens; "
                f"config.adapter.soft_prompt is {adapter.num_virtual_tokens}.",
                f"Set config.adapter.soft_prompt={given.num_virtual_tokens}.",
            )
        adapter = adapter.replace(soft_prompt=given.soft_prompt)
    return adapter


def _check_same_lora(fresh: Adapter, given: Adapter, config: ConfigDict) -> None:
    """Refuses imported pairs that the config wouldn't make: it is the record of what is trained."""
    rank = next(iter(given.lora.values())).a.shape[-1]
    same_pairs = {k: p.a.shape for k, p in fresh.lora.items()} == {
        k: p.a.shape for k, p in given.lora.items()
    }
    if same_pairs and math.isclose(fresh.scale, given.scale, rel_tol=1e-6):
        return
    fields = config.adapter
    alpha = given.scale * (rank**0.5 if fields.rank_stabilised else rank)
    raise UserError(
        f"{fields.init_from} has LoRA of rank {rank} and scale {given.scale:g} on "
        f"{', '.join(given.lora)}; the config makes rank {fields.rank} and scale {fresh.scale:g} "
        f"on {', '.join(fresh.lora) or 'nothing'}.",
        f"Set --config.adapter.rank={rank} --config.adapter.alpha={alpha:g} "
        f'--config.adapter.targets="{tuple(given.lora)!r}".',
    )


def fresh_adapter(parts: Parts) -> Adapter:
    """A new adapter: LoRA's B is zero, so that it starts as the base model."""
    fields = parts.config.adapter
    decoder = parts.checkpoint.decoder
    lora_key, soft_key = jax.random.split(jax.random.key(parts.config.seed))
    lora = {}
    if fields.targets:
        lora = init_lora(
            lora_key,
            decoder.linear_modules(),
            decoder.config.num_layers,
            targets=tuple(fields.targets),
            rank=fields.rank,
        )
    soft_prompt = None
    if fields.soft_prompt:
        soft_prompt = init_soft_prompt(
            soft_key,
            fields.soft_prompt,
            init=fields.soft_prompt_init,
            # As `embed` gives them: some families scale what stands in the table.
            embedding=decoder.embed(jnp.arange(decoder.config.vocab_size)),
            text_ids=parts.tokenizer.encode(fields.soft_prompt_text) or None,
            path=Path(fields.soft_prompt_file) if fields.soft_prompt_file else None,
        )
    scale = lora_scale(fields.alpha, fields.rank, rank_stabilised=fields.rank_stabilised)
    return Adapter(lora, soft_prompt, scale=scale, dropout=fields.dropout)


def check_context(parts: Parts, prefix: int, row: int, name: str, *, new: int = 0) -> None:
    """Refuses a prompt that is longer than the model's context.

    Args:
      parts: whose model.
      prefix: tokens of soft prompt, BOS and template.
      row: tokens of the longest row.
      name: which example and where, for the message.
      new: tokens that may be generated behind it.
    """
    limit, whole = parts.checkpoint.config.max_positions, prefix + row + new
    if whole > limit:
        generated = f", {new} of config.eval.max_new_tokens" if new else ""
        fewer = " fewer new tokens," if new else ""
        raise UserError(
            f"{name} is {whole} tokens long ({prefix} of prefix, {row} of row{generated}); the "
            f"model's context is {limit}.",
            f"Use fewer shots,{fewer} a lower keep rate, a shorter template, or drop the example.",
        )


def split_decoder(checkpoint: Checkpoint) -> tuple[nnx.GraphDef, nnx.State]:
    """The decoder as a static graph and its parameters, for pure functions."""
    return nnx.split(checkpoint.decoder)

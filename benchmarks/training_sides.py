"""The two sides of the benchmarks of training: pintern's step, and PEFT's on the same weights.

Both clip the gradients' norm and make a step of AdamW; loading is not timed, compiling is told
apart.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.shared_models import pintern_model, torch_model
from benchmarks.training_cases import ALPHA, RANK, Case

if TYPE_CHECKING:
    from pintern.models.load import Checkpoint

LEARNING_RATE, CLIP = 1e-4, 1.0


def write_adapter(folder: Path, case: Case, checkpoint: Checkpoint | None = None) -> Path:
    """A random adapter that both sides start from, in PEFT's format; B isn't zero, so that every
    gradient says something.

    Args:
      folder: of the base.
      case: LoRA or a soft prompt.
      checkpoint: the base, if it is loaded.
    """
    import jax
    import jax.numpy as jnp

    from pintern.adapters.adapter import Adapter, LoraPair, init_lora
    from pintern.interop.peft_lora import write_lora
    from pintern.interop.peft_soft_prompt import write_soft_prompt

    out = folder / f"adapter-{case.virtual}"
    checkpoint = checkpoint or pintern_model(folder)
    config = checkpoint.config
    key, other = jax.random.split(jax.random.key(0))
    if case.virtual:
        vectors = 0.02 * jax.random.normal(key, (case.virtual, config.model_dim))
        write_soft_prompt(out, Adapter({}, vectors), checkpoint, base_name=str(folder))
        return out
    pairs = init_lora(key, checkpoint.decoder.linear_modules(), config.num_layers, rank=RANK)
    lora = {
        name: LoraPair(pair.a, 0.01 * jax.random.normal(other, pair.b.shape, jnp.float32))
        for name, pair in pairs.items()
    }
    write_lora(
        out,
        Adapter(lora),
        checkpoint,
        base_name=str(folder),
        alpha=ALPHA,
        rank_stabilised=False,
    )
    return out


class Ours:
    """Pintern's training step, compiled once per shape.

    Args:
      folder: of the base.
      adapter: folder of the adapter to start from.
      dtype: of the base and the activations; the adapter is float32.
      attention: as `config.model.attention`.
      unroll: as `config.model.unroll`.
      checkpoint: the base, if it is loaded.
      own_options: of `pintern.compiling`; else XLA's defaults.
    """

    def __init__(
        self,
        folder: Path,
        adapter: Path,
        *,
        dtype: str = "float32",
        attention: str = "auto",
        unroll: int = 0,
        checkpoint: Checkpoint | None = None,
        own_options: bool = True,
    ):
        import jax
        import jax.numpy as jnp
        import optax
        from ml_collections import ConfigDict

        from pintern import compiling
        from pintern.assemble import split_decoder
        from pintern.interop.read import read_adapter
        from pintern.models.fused import choose_attention
        from pintern.training.step import TrainState, make_optimizer, make_step

        config = ConfigDict(
            {
                "clip": CLIP,
                "learning_rate": LEARNING_RATE,
                "weight_decay": 0.0,
                "warmup": 0.0,
                "steps": 1000,
                "final_rate": 1.0,
                "decay": "constant",
            }
        )
        # What is kept is a few megabytes more than the optimizer has anyway.
        optimizer = optax.chain(kept_gradients(), make_optimizer(config))
        self.checkpoint = checkpoint or pintern_model(folder, dtype=dtype)
        decoder, shape = self.checkpoint.decoder, self.checkpoint.config
        choose_attention(decoder.blocks, shape, jnp.dtype(dtype), attention)
        decoder.unroll = compiling.unroll(unroll, shape.num_layers)
        graph, self._base = split_decoder(self.checkpoint)
        start = read_adapter(adapter, self.checkpoint)
        self._state = TrainState(start, optimizer.init(start))
        self._jitted = jax.jit(
            make_step(graph, optimizer),
            donate_argnums=0,
            compiler_options=compiling.options(compiling.STEP) if own_options else None,
        )
        self._key = jax.random.key(0)
        self._programs: dict[Any, Any] = {}
        self.compile_seconds = 0.0
        self.loss = float("nan")

    def compile(self, batches: list[Any]) -> None:
        """Makes the programs of these batches' shapes."""
        import jax

        for batch in batches:
            shape = tuple(x.shape for x in jax.tree.leaves(batch))
            if shape not in self._programs:
                began = time.perf_counter()
                lowered = self._jitted.lower(self._state, self._base, batch, None, self._key)
                self._programs[shape] = lowered.compile()
                self.compile_seconds += time.perf_counter() - began

    def run(self, batches: list[Any]) -> None:
        """Makes a step of each batch, and returns when all is done."""
        import jax

        self.compile(batches)
        for batch in batches:
            program = self._programs[tuple(x.shape for x in jax.tree.leaves(batch))]
            self._state, metrics = program(self._state, self._base, batch, None, self._key)
        jax.block_until_ready(self._state)
        self.loss = float(metrics["loss"])

    @property
    def programs(self) -> int:
        """How many were compiled."""
        return len(self._programs)

    @property
    def megabytes(self) -> float:
        """What the largest program needs: arguments, results and what it keeps in between."""
        return 1e-6 * max(
            found.argument_size_in_bytes
            + found.output_size_in_bytes
            - found.alias_size_in_bytes
            + found.temp_size_in_bytes
            for found in (program.memory_analysis() for program in self._programs.values())
        )

    def gradients(self) -> list[np.ndarray]:
        """Of the last step, leaf by leaf of the adapter."""
        import jax

        return [np.asarray(leaf) for leaf in jax.tree.leaves(self._state.optimizer[0])]


def kept_gradients() -> Any:
    """A transformation that passes gradients on as they are and keeps them as its state."""
    import jax
    import jax.numpy as jnp
    import optax

    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda g, _, params=None: (g, g)
    )


class Peer:
    """PEFT on transformers' own model, as `Trainer` has it by default: eager, with SDPA attention,
    fused AdamW, and without a cache of keys and values.

    Args:
      folder: of the base.
      adapter: folder of the adapter to start from.
      dtype: of the base; PEFT keeps adapters in float32 under bfloat16 by its own default.
      device: `cpu` or `cuda`.
      threads: that torch may use on a CPU.
    """

    def __init__(
        self,
        folder: Path,
        adapter: Path,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        threads: int = 0,
    ):
        import peft
        import torch
        from safetensors.torch import load_file

        if threads:
            torch.set_num_threads(threads)
        self._torch, self._device, self._bf16 = torch, device, dtype == "bfloat16"
        base = torch_model(folder, dtype=dtype, device=device)
        base.config.use_cache = False  # which every layer would copy its keys and values to
        config = peft.PeftConfig.from_pretrained(adapter)
        config.inference_mode = False
        self.model = peft.get_peft_model(base, config).train()
        start = load_file(adapter / "adapter_model.safetensors")
        peft.set_peft_model_state_dict(self.model, start)
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self._gradients: dict[str, Any] = {}
        self.loss = float("nan")

    def run(self, steps: list[list[dict[str, np.ndarray]]]) -> None:
        """Makes the steps, each of its micro-batches."""
        torch = self._torch
        for micro_batches in steps:
            total = 0.0
            for batch in micro_batches:
                tensors = {k: torch.from_numpy(v).to(self._device) for k, v in batch.items()}
                with torch.autocast(self._device, torch.bfloat16, enabled=self._bf16):
                    loss = self.model(**tensors).loss / len(micro_batches)
                loss.backward()
                total += loss.detach()
            # As our side does; a few megabytes.
            named = self.model.named_parameters()
            self._gradients = {n: p.grad.clone() for n, p in named if p.requires_grad}
            torch.nn.utils.clip_grad_norm_(self._trained, CLIP)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        self.loss = float(total)

    def converted_gradients(self, checkpoint: Any, folder: Path) -> list[np.ndarray]:
        """The last step's gradients in our layout: saved as PEFT does, and read as an adapter."""
        import jax

        from pintern.interop.read import read_adapter

        before = {n: p.clone() for n, p in self.model.named_parameters() if p.requires_grad}
        self._fill(self._gradients)
        self.model.save_pretrained(folder)
        self._fill(before)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(read_adapter(folder, checkpoint))]

    def _fill(self, values: dict[str, Any]) -> None:
        with self._torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(values[name])


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Largest relative error over the leaves: norm of the difference over the peer's norm."""
    pairs = zip(ours, theirs, strict=True)
    # NumPy's maximum, because Python's passes over NaN.
    return float(np.max([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]))

"""What XLA is asked for beside its defaults where it compiles for an NVIDIA GPU.

Other backends get their defaults. `benchmarks.training_gpu --xla_defaults` leaves `STEP` out, to
compare.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

Function = TypeVar("Function", bound=Callable[..., Any])
_MOST_UNROLLED = 48  # layers; with more of them a program takes minutes to compile

# cuBLAS adds within a product what LoRA gives, and reads a layer's weights where they lie in the
# stack. A recorded graph of so many kernels would be mended with every batch, which lies elsewhere.
STEP: Mapping[str, Any] = {
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_enable_command_buffer": "",
}
# Likewise of reading a prefix or rows: what each call is given lies elsewhere.
READ: Mapping[str, Any] = {"xla_gpu_enable_command_buffer": ""}
# The loop over tokens is recorded with its condition: no token waits for the host.
LOOP: Mapping[str, Any] = {
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
    ),
}


def options(on_gpu: Mapping[str, Any]) -> dict[str, Any] | None:
    """`compiler_options` of `jax.jit`: those given where JAX computes on a GPU, else none."""
    return dict(on_gpu) if jax.default_backend() == "gpu" else None


def jitted(on_gpu: Mapping[str, Any], **arguments: Any) -> Callable[[Function], Function]:
    """`jax.jit` for a decorator, with `options`: the backend is known at the first call only.

    Args:
      on_gpu: see `options`.
      **arguments: of `jax.jit`.
    """

    def decorate(function: Function) -> Function:
        @functools.cache
        def program() -> Any:
            return jax.jit(function, compiler_options=options(on_gpu), **arguments)

        @functools.wraps(function)
        def call(*given: Any) -> Any:
            # Within another program it is a part of that, and takes no options.
            traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given))
            return (function if traced else program())(*given)

        call.lower = lambda *given: program().lower(*given)
        return call

    return decorate


def unroll(wanted: int, layers: int) -> int:
    """Blocks that a training step's program has one behind another, of so many layers.

    Args:
      wanted: the config's number; 0 is all on one GPU, if they aren't too many to compile in a
        minute or two, and 1 elsewhere.
      layers: of the decoder.
    """
    if wanted:
        return min(wanted, layers)
    alone = jax.default_backend() == "gpu" and jax.device_count() == 1
    return layers if alone and layers <= _MOST_UNROLLED else 1


def only_device(tree: Any) -> jax.Device | None:
    """The device that holds all arrays of a tree; None where several do."""
    devices = {d for leaf in jax.tree.leaves(tree) for d in leaf.devices()}
    return devices.pop() if len(devices) == 1 else None

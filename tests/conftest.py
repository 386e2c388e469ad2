"""Every test runs with shapes and types checked at call time, and compiles no program twice.

Most of the suite's time is XLA's, and tests train the same tiny runs again and again. So compiled
programs lie in pytest's own cache folder, for this run's processes and for the next one
(`pytest --cache-clear` forgets them), and XLA turns each into machine code in the shortest way it
has: the same operations, fused alike, as slower code. `XLA_FLAGS= pytest` tests what users get.
"""

import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Before jax is imported; the environment is handed on to workers and subprocesses.
SHORTEST = ["--xla_backend_optimization_level=0"]
if metadata.version("jaxlib").startswith("0.10."):  # later ones don't know it, and end by that
    SHORTEST.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(SHORTEST))
PROGRAMS = Path(__file__).parent.parent / ".pytest_cache" / "d" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

install_import_hook(
    [
        "pintern.adapters",
        "pintern.models",
        "pintern.evaluation.decode",
        "pintern.evaluation.drafts",
        "pintern.evaluation.engine",
        "pintern.evaluation.places",
        "pintern.evaluation.sampling",
        "pintern.evaluation.turns",
        "pintern.prompts.retrievers.dense",
        "pintern.prompts.retrievers.topk",
        "pintern.prompts.retrievers.vectors",
        "pintern.training.step",
    ],
    "checker.typechecked",
)


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Drops a file's programs behind it.

    XLA:CPU maps a program's functions into memory one by one, hundreds of them, and Linux allows a
    process 65,530 maps (`vm.max_map_count`): one that has run half the suite would be aborted.
    """
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture
def full_precision() -> Iterator[None]:
    """Products in float32 as they are written, where a device would take less of it."""
    import jax

    with jax.default_matmul_precision("highest"):
        yield

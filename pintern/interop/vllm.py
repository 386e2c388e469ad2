"""Whether vLLM loads an export, and what to do where it does not.

vLLM adapts only models that say they support LoRA and only their linear modules; it pads every
adapter to `--max-lora-rank`, which takes few values; of adapter_config.json it reads r, α, rsLoRA
and the modules, refuses some options and passes over others.
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from pintern.errors import UserError
from pintern.interop.files import few, read_adapter_config
from pintern.interop.manifest import read_manifest

MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_MAX_RANK = 16
WITH_LORA = (
    "llama mistral mixtral qwen2 qwen3 gemma gemma2 gemma3 gemma3_text opt".split()  # model_type
)
MODULES = frozenset(
    "q_proj k_proj v_proj o_proj out_proj gate_proj up_proj down_proj fc1 fc2".split()
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What vLLM makes of an export.

    Attributes:
      loads: whether it serves all of it.
      lines: why, or how to start it.
    """

    loads: bool
    lines: tuple[str, ...]


def lint_vllm(directory: Path) -> Verdict:
    """Looks at an export, or at a PEFT directory with a pintern.json.

    Raises:
      UserError: it has no pintern.json, which tells the family.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise UserError(f"No pintern.json in {str(directory)!r}: the base's family isn't known.")
    base, parts = manifest.base, manifest.parts
    problems = []
    if "soft_prompt" in parts:
        problems.append(
            "soft prompt: vLLM has no prompt-tuning adapters. Send each request as prompt_embeds "
            "(vllm serve --enable-prompt-embeds): the rows of prompt_embeddings, then the "
            "embeddings of the tokens. Or train with config.adapter.soft_prompt=0."
        )
    if "model" in parts:
        folder = directory / parts["model"]
        return Verdict(
            not problems, (*problems, f"weights: {shlex.join(['vllm', 'serve', str(folder)])}")
        )
    if "lora" not in parts:
        return Verdict(False, tuple(problems))
    folder = directory / parts["lora"]
    config = read_adapter_config(folder)
    if base.family not in WITH_LORA:
        problems.append(
            f"family {base.family}: vLLM serves it without LoRA. Use --format=merged, and "
            "vllm serve the folder."
        )
    else:
        strange = {m for m in config["target_modules"] if m.split(".")[-1] not in MODULES}
        if strange:
            problems.append(
                f"modules {few(strange)}: vLLM adapts {few(MODULES, 20)} only. Train with fewer "
                "config.adapter.targets, or use --format=merged."
            )
    rank = config["r"]
    if rank > MAX_RANKS[-1]:
        problems.append(
            f"rank {rank}: vLLM takes {MAX_RANKS[-1]} at most. Train with a lower "
            "config.adapter.rank, or use --format=merged."
        )
    for option, plain in (("bias", "none"), ("use_dora", False), ("modules_to_save", None)):
        if config.get(option, plain) not in (plain, None, []):
            problems.append(f"{option}={config[option]!r}: vLLM refuses it.")
    for option in ("rank_pattern", "alpha_pattern"):
        if config.get(option):
            problems.append(f"{option}: vLLM doesn't read it, and would compute something else.")
    if problems:
        return Verdict(False, tuple(problems))
    least = next(size for size in MAX_RANKS if size >= rank)
    words = ["vllm", "serve", base.name]
    words += ["--revision", base.revision] if base.revision else []
    words += ["--enable-lora", "--lora-modules", f"adapter={folder}"]
    words += ["--max-lora-rank", str(least)] if rank > DEFAULT_MAX_RANK else []
    return Verdict(True, (shlex.join(words),))

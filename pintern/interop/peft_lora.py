"""PEFT's LoRA directory: adapter_config.json and adapter_model.safetensors.

Their update is ΔW = (α/r)·B·A with A `(r, in)` and B `(out, r)`, α/√r with `use_rslora`; ours is
scale·A·B with A `[in, r]` and B `[r, out]`. So both matrices are transposed, and nothing is scaled.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from pintern.adapters.adapter import Adapter, LoraPair, lora_scale
from pintern.errors import UserError
from pintern.interop.files import CONFIG, WEIGHTS, few, positive_number, read_adapter_tensors
from pintern.interop.modules import HubModule, hub_modules, target_suffixes
from pintern.models.load import Checkpoint

_PREFIX = "base_model.model."
# Read below, or without effect on what a trained adapter computes.
_UNDERSTOOD = frozenset(
    "peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r "
    "target_modules exclude_modules lora_alpha lora_dropout fan_in_fan_out use_rslora "
    "layers_pattern megatron_core loftq_config eva_config qalora_group_size velora_config "
    "runtime_config ensure_weight_tying".split()
)
# Values under which an option leaves plain LoRA on an unchanged base. Any other option must be
# null, false or empty: PEFT adds some with every release, and each computes something else.
_PLAIN = {
    "task_type": (None, "CAUSAL_LM"),
    "bias": (None, "none"),
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}


def write_lora(
    directory: Path,
    adapter: Adapter,
    checkpoint: Checkpoint,
    *,
    base_name: str,
    revision: str = "",
    alpha: float,
    rank_stabilised: bool,
    dtype: DTypeLike = jnp.float32,
) -> None:
    """Writes the adapter's LoRA pairs; its soft prompt has a directory of its own.

    Args:
      directory: where to; made if absent.
      adapter: with at least one pair, all of one rank.
      checkpoint: the base, for names and layouts.
      base_name: hub name or path under which loaders find the base.
      revision: of a hub name; empty is the newest.
      alpha: α of the scale.
      rank_stabilised: α/√r in place of α/r.
      dtype: of storage.
    """
    modules = hub_modules(checkpoint)
    rank = next(iter(adapter.lora.values())).a.shape[-1]
    tensors = {}
    for name, pair in adapter.lora.items():
        module = modules[name]
        a, b = (np.asarray(x, np.float32).astype(dtype) for x in (pair.a, pair.b))
        for layer, path in enumerate(module.paths):
            tensors[f"{_PREFIX}{path}.lora_A.weight"] = np.ascontiguousarray(a[layer].T)
            tensors[f"{_PREFIX}{path}.lora_B.weight"] = module.stored_b(b, layer)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": revision or None,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": target_suffixes(adapter.lora, modules),
        "lora_dropout": adapter.dropout,
        "bias": "none",
        "fan_in_fan_out": all(modules[name].conv1d for name in adapter.lora),
        "use_rslora": rank_stabilised,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def read_lora(directory: Path, config: dict[str, Any], checkpoint: Checkpoint) -> Adapter:
    """Reads a LoRA directory that PEFT or `write_lora` wrote.

    Args:
      directory: of the adapter.
      config: its adapter_config.json.
      checkpoint: the base that it is to sit on.

    Raises:
      UserError: an option that isn't computed here, or tensors that don't belong to this base.
    """
    _check_options(directory, config)
    rank = positive_number(config, "r", directory, int)
    alpha = positive_number(config, "lora_alpha", directory, int, float)
    dropout = config.get("lora_dropout") or 0.0
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise UserError(f"{directory / CONFIG}: lora_dropout is {dropout!r}; expected 0 to 1.")
    tensors = read_adapter_tensors(directory)
    modules = hub_modules(checkpoint)
    chosen = _match_names(directory, config, tensors, modules, checkpoint)
    pairs = {}
    for module in chosen:
        keys = [[f"{_PREFIX}{path}.lora_{x}.weight" for path in module.paths] for x in "AB"]
        for a, b in zip(*keys, strict=True):
            _check_shape(directory, a, tensors[a], (rank, module.width_in), rank, axis=0)
            _check_shape(directory, b, tensors[b], (module.width_out, rank), rank, axis=1)
        pairs[module.name] = LoraPair(
            a=jnp.asarray(np.stack([tensors[key].T for key in keys[0]])),
            b=jnp.asarray(np.stack([module.own_b(tensors[key]) for key in keys[1]])),
        )
    scale = lora_scale(float(alpha), rank, rank_stabilised=bool(config.get("use_rslora")))
    return Adapter(pairs, scale=scale, dropout=float(dropout))


def _check_options(directory: Path, config: dict[str, Any]) -> None:
    for option, value in config.items():
        if option in _PLAIN:
            plain = any(value is x or (value == x and type(x) is str) for x in _PLAIN[option])
        else:
            plain = option in _UNDERSTOOD or not value
        if not plain:
            raise UserError(
                f"{directory / CONFIG}: {option} is {value!r}, which is more than plain LoRA and "
                "not computed here.",
                "Merge the adapter with PEFT (merge_and_unload, save_pretrained) and give the "
                "result as config.model.path, or train one without this option.",
            )


def _match_names(
    directory: Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    modules: dict[str, HubModule],
    checkpoint: Checkpoint,
) -> list[HubModule]:
    """The modules that the files adapt, once no tensor is missing or left over."""
    places = {path: module for module in modules.values() for path in module.paths}
    known = {f"{_PREFIX}{path}.lora_{x}.weight": path for path in places for x in "AB"}
    extra = tensors.keys() - known.keys()
    if extra:
        raise UserError(
            f"{directory / WEIGHTS} holds tensors that are no LoRA weights of this "
            f"{checkpoint.family.name} base with {checkpoint.config.num_layers} layers: "
            f"{few(extra)}.",
            "Nothing is dropped silently: give the base that the adapter was trained on.",
        )
    wanted = {path for path in places if _targets(directory, config, path)}
    wanted |= {known[key] for key in tensors}
    if not wanted:
        raise UserError(
            f"{directory / CONFIG}: target_modules {config.get('target_modules')!r} names no "
            f"linear module of this {checkpoint.family.name} base, and there are no tensors.",
            f"It has {few([m.paths[0] for m in modules.values()], 12)}.",
        )
    chosen = [m for m in modules.values() if not wanted.isdisjoint(m.paths)]
    needed = {f"{_PREFIX}{p}.lora_{x}.weight" for m in chosen for p in m.paths for x in "AB"}
    missing = needed - tensors.keys()
    if missing:
        raise UserError(
            f"{directory / WEIGHTS} lacks {few(missing)}.",
            "Every layer of a targeted module needs its A and B: the file is incomplete, or of a "
            "base with fewer layers.",
        )
    return chosen


def _targets(directory: Path, config: dict[str, Any], path: str) -> bool:
    """Whether PEFT would adapt the module: a list holds endings, a string is a pattern."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    for option, value in (("target_modules", targets), ("exclude_modules", excluded or "none")):
        if not value or not _names_modules(value):
            raise UserError(
                f"{directory / CONFIG}: {option} is {value!r}.",
                "Expected a list of module names or a pattern.",
            )

    def named(by: Any) -> bool:
        if isinstance(by, str):
            return re.fullmatch(by, path) is not None
        return any(path == ending or path.endswith(f".{ending}") for ending in by)

    return (targets == "all-linear" or named(targets)) and not (excluded and named(excluded))


def _names_modules(value: Any) -> bool:
    """Whether it is a list of names, or a pattern that can be read."""
    if isinstance(value, list):
        return all(isinstance(each, str) for each in value)
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except re.error:
        return False


def _check_shape(
    directory: Path, name: str, tensor: np.ndarray, shape: tuple[int, int], rank: int, axis: int
) -> None:
    if tensor.shape == shape:
        return
    if tensor.ndim == 2 and tensor.shape[1 - axis] == shape[1 - axis]:
        raise UserError(
            f"{directory / CONFIG} says r={rank}, but {name} has rank {tensor.shape[axis]}.",
            "Config and weights must belong to one adapter.",
        )
    raise UserError(
        f"Tensor {name} in {directory / WEIGHTS} has shape {tensor.shape}; this base needs "
        f"{shape}.",
        "It is an adapter of another base.",
    )

"""Reading config.json: every option is computed, known to be harmless, or refused by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from pintern.errors import UserError
from pintern.models.config import DecoderConfig
from pintern.models.families.table import Family

# What transformers, and who publishes models, write into any config.json. None of it changes what
# the weights compute.
_HARMLESS_GROUPS = {
    "what the file is": (
        "architectures model_type transformers_version _name_or_path _commit_hash torch_dtype "
        "dtype tokenizer_class finetuning_task unsloth_version unsloth_fixed"
    ),
    "which code computes it": (
        "_attn_implementation _attn_implementation_autoset transformers.js_config use_bfloat16"
    ),
    "special tokens, on which the tokenizer decides": (
        "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id prefix"
    ),
    "training and initialisation": (
        "initializer_range gradient_checkpointing task_specific_params problem_type"
    ),
    "how a call returns its results": (
        "use_cache return_dict use_return_dict output_attentions output_hidden_states "
        "output_scores output_past return_dict_in_generate torchscript chunk_size_feed_forward"
    ),
    "heads that a causal LM hasn't got": (
        "id2label label2id num_labels _num_labels summary_type summary_use_proj summary_activation "
        "summary_proj_to_labels summary_first_dropout summary_hidden_size tie_encoder_decoder "
        "cross_attention_hidden_size"
    ),
    "generation settings, which older files keep here": (
        "max_length min_length do_sample early_stopping num_beams num_beam_groups top_k top_p "
        "typical_p diversity_penalty temperature repetition_penalty length_penalty "
        "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences "
        "forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens "
        "begin_suppress_tokens exponential_decay_length_penalty"
    ),
}
_HARMLESS = frozenset(" ".join(_HARMLESS_GROUPS.values()).split())

# These would change the arithmetic of any family.
_CHECKED = {"is_encoder_decoder": (None, False), "pruned_heads": (None, {})}


def decoder_config(family: Family, raw: Mapping[str, Any]) -> DecoderConfig:
    """Maps config.json to a `DecoderConfig`, once every option is understood.

    Raises:
      UserError: an option is unknown, missing, malformed, or asks for arithmetic that this decoder
        doesn't do; the message names it and its value.
    """
    allowed = {**_CHECKED, **family.checked}
    for option, value in raw.items():
        if option in allowed:
            if value not in allowed[option]:
                values = " or ".join(repr(v) for v in allowed[option] if v is not None)
                raise UserError(
                    f"config.json: {option} is {value!r}, which this decoder does not compute.",
                    f"For {family.name} it computes {values or 'the option left out (null)'}.",
                )
        elif option not in family.known and option not in _HARMLESS:
            raise UserError(
                f"config.json: unknown option {option!r} (value {value!r}) for {family.name}.",
                "It may change the arithmetic, so it is not passed over; remove it if it does not.",
            )
    try:
        return family.to_config(raw)
    except ValueError as error:
        raise UserError(f"config.json: {error}.") from error
    except (TypeError, LookupError) as error:  # a list or a table where a word is expected, say
        raise UserError(
            f"config.json: the value of an option is of another kind than expected: {error}.",
            f"Compare it with a config.json of {family.name} as transformers writes it.",
        ) from error


def read_size(raw: Mapping[str, Any], option: str, default: int | None = None) -> int:
    """A positive integer; `default` where it is left out or null.

    Raises:
      UserError: it is something else, or left out without a default.
    """
    value = raw.get(option)
    value = default if value is None else value
    if value is None:
        raise UserError(
            f"config.json: {option!r} is missing.", "The model cannot be built without it."
        )
    if type(value) is not int or value < 1:
        raise UserError(f"config.json: {option} is {value!r}; it must be a positive integer.")
    return value


def read_number(raw: Mapping[str, Any], option: str, default: float) -> float:
    """A positive finite number; `default` where it is left out or null.

    Raises:
      UserError: it is something else.
    """
    value = raw.get(option)
    value = default if value is None else value
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise UserError(f"config.json: {option} is {value!r}; it must be a positive number.")
    return float(value)


def read_flag(raw: Mapping[str, Any], option: str, default: bool) -> bool:
    """True or false; `default` where it is left out or null.

    Raises:
      UserError: it is something else.
    """
    value = raw.get(option)
    value = default if value is None else value
    if type(value) is not bool:
        raise UserError(f"config.json: {option} is {value!r}; it must be true or false.")
    return value


def head_width(width_option: str, width: int, heads: int) -> int:
    """Width of one head where config.json doesn't state it.

    Raises:
      UserError: the heads don't divide the model's width.
    """
    if width % heads:
        raise UserError(f"config.json: {width_option} {width} is not a multiple of {heads} heads.")
    return width // heads


# What config.json may call an activation, and what the decoder calls it.
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
}


def read_activation(raw: Mapping[str, Any], option: str, default: str) -> str:
    """The decoder's name of an activation; of `default` where it is left out or null.

    Raises:
      UserError: an activation that isn't computed.
    """
    value = raw.get(option)
    value = default if value is None else value
    if value not in _ACTIVATIONS:
        raise UserError(
            f"config.json: {option} is {value!r}, which this decoder does not compute.",
            f"It computes {', '.join(map(repr, _ACTIVATIONS))}.",
        )
    return _ACTIVATIONS[value]


def read_cap(raw: Mapping[str, Any], option: str) -> float | None:
    """A soft cap; None where it is left out or null."""
    return None if raw.get(option) is None else read_number(raw, option, 1.0)


def read_window(raw: Mapping[str, Any]) -> int | None:
    """Tokens that a windowed layer sees; None where `sliding_window` is left out or null."""
    return None if raw.get("sliding_window") is None else read_size(raw, "sliding_window")


def read_windowed(
    raw: Mapping[str, Any], window: int | None, default: Sequence[bool]
) -> dict[str, Any]:
    """The fields `window` and `windowed` of a `DecoderConfig`.

    Args:
      raw: config.json; its `layer_types` says which layers are windowed.
      window: tokens that a windowed layer sees.
      default: which layers are windowed where `layer_types` doesn't say.

    Raises:
      UserError: a kind of layer that isn't computed, a list of another length, or windowed layers
        without a window.
    """
    windowed = tuple(default)
    if raw.get("layer_types") is not None:
        kinds = {"full_attention": False, "sliding_attention": True}
        unknown = [kind for kind in raw["layer_types"] if kind not in kinds]
        if unknown or len(raw["layer_types"]) != len(default):
            raise UserError(
                f"config.json: layer_types is {raw['layer_types']!r}.",
                f"Expected {len(default)} of {' and '.join(kinds)}, one a layer.",
            )
        windowed = tuple(kinds[kind] for kind in raw["layer_types"])
    if any(windowed) and window is None:
        raise UserError(
            "config.json: layers slide, but sliding_window is null.",
            "Expected the window's width in tokens, or no sliding_attention in layer_types.",
        )
    if not any(windowed):
        return {"window": None, "windowed": ()}
    return {"window": window, "windowed": () if all(windowed) else windowed}

"""Small real tokenizers of several families, and chat templates of the kinds in use."""

import functools
import json
from pathlib import Path

import tiny

from pintern.prompts.tokens import PieceTokenizer

TEXT = """\
Once upon a time there was a question about a store, and the answer was on the shelf.
system user assistant: How many orders? Where is the red bolt? SELECT COUNT(*) FROM ord_7
"""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A system turn of its own where none is given, and one more token where the answer starts.
WITH_DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe of help.<|im_end|>\n{% endif %}"
    + CHATML
)
THINKING = CHATML.replace("assistant\n{% endif", "assistant\n<|think|>{% endif")
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Llama 3.2's writes the day at the head.
DATED = HEADERS.replace(
    "{{ bos_token }}",
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
    "Today is {{ strftime_now('%d %b %Y') }}.<|eot_id|>",
)
# The system's text stands inside the first user's turn.
INSIDE = (
    "{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}"
    "{% elif m.role == 'user' %}{{ bos_token }}[INST] {{ ns.system }}{{ m.content }} [/INST] "
    "{% set ns.system = '' %}{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
)
NO_SYSTEM += CHATML
LAST_TURN_ONLY = "<|im_start|>{{ messages[-1].content }}<|im_end|><|im_start|>"
PLAIN_ROLES = (
    "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
_CHAT_TOKENS = [
    *("<|im_start|>", "<|im_end|>", "<|think|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
]


@functools.cache
def byte_level(
    name: str,
    *,
    bos: str | None,
    eos: str,
    template: str | None = None,
    family: str | None = None,
    adds_bos: bool = False,
    add_bos_token: bool | None = None,
    ends: tuple[int, ...] = (),
) -> Path:
    """Folder with a byte-level BPE tokenizer, as GPT-2, BLOOM, Qwen and Llama 3 have it."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    specials = list(dict.fromkeys([bos or eos, eos, *_CHAT_TOKENS]))
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT] * 4, trainer)
    return _saved(name, made, bos, eos, template, family, adds_bos, add_bos_token, ends)


@functools.cache
def llama_like(name: str, *, adds_bos: bool = True, template: str | None = None) -> Path:
    """Folder with a BPE tokenizer as SentencePiece makes them: ▁ for spaces, bytes as tokens."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, trainers

    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>", *_CHAT_TOKENS, *every_byte],
        show_progress=False,
    )
    made.train_from_iterator(TEXT.split("\n"), trainer)
    # As special tokens they would be left out of decoded text.
    content = json.loads(made.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in every_byte]
    made = tokenizers.Tokenizer.from_str(json.dumps(content))
    return _saved(name, made, "<s>", "</s>", template, "llama", adds_bos, None, ())


def load(folder: Path) -> PieceTokenizer:
    """The tokenizer of a folder."""
    return PieceTokenizer.load(folder)


def _saved(name, made, bos, eos, template, family, adds_bos, add_bos_token, ends) -> Path:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if adds_bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=bos,
        eos_token=eos,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    folder = tiny.root() / f"tokenizer-{name}"
    fast.save_pretrained(folder)
    if add_bos_token is not None:
        path = folder / "tokenizer_config.json"
        told = json.loads(path.read_text()) | {"add_bos_token": add_bos_token}
        path.write_text(json.dumps(told))
    if family:
        (folder / "config.json").write_text(json.dumps({"model_type": family}))
    if ends:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(ends)}))
    return folder

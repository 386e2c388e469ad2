"""LLMLingua-2: a trained token classifier says which words to keep (2403.12968).

The package `llmlingua` does the work; here its texts are matched to the asked rate. What it calls
a rate is a percentile over its own words, which a newline, a space lost before a bracket or
another tokenizer turns into something else. So the texts of all its percentiles are made, counted
with the base's tokenizer, and the nearest to the asked rate is taken.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pintern.errors import UserError, first_line
from pintern.hub import resolve_other
from pintern.prompts.compressors.rates import TOLERANCE, check_rate
from pintern.prompts.tokens import PieceTokenizer

# The package knows its two published classifiers by their names, and how words begin from that.
_NAMES = {"xlm-roberta": "xlm-roberta-large", "bert": "bert-base-multilingual-cased"}


class LLMLingua2Compressor:
    """Keeps the words that the classifier would keep, as the package writes them.

    Newlines are the package's `force_tokens`: lines stay apart while any of their words is kept.
    Other white space and the spaces around punctuation are as the classifier's tokenizer has them.

    Args:
      tokenizer: of the base model.
      model: folder or hub name of a token classifier of XLM-RoBERTa's or BERT's architecture.

    Raises:
      UserError: the package isn't installed, or the classifier can't be read or is no such one.
    """

    def __init__(self, tokenizer: PieceTokenizer, model: str):
        self._tokenizer = tokenizer
        self._package = _load(model, lambda word: tokenizer.encode(word.replace("▁", " ")))
        self._candidates = functools.cache(self._candidates_uncached)

    def __call__(self, text: str, rate: float) -> str:
        """Text at the asked rate.

        Raises:
          UserError: a rate outside [0, 1], or a text of which no percentile comes near enough.
        """
        check_rate(rate)
        if rate in (0, 1):
            return text if rate else ""
        full = len(self._tokenizer.encode(text))
        candidates = self._candidates(text)
        nearest = min(candidates, key=lambda c: abs(candidates[c] - rate * full), default=None)
        if nearest is None or abs(candidates[nearest] / full - rate) > TOLERANCE + 1e-9:
            got = candidates[nearest] / full if nearest else 0.0
            raise UserError(
                f"LLMLingua-2 has no text that keeps {rate:.2f} ± {TOLERANCE} of the template; the "
                f"nearest keeps {got:.3f} of {full} tokens.",
                "Use a longer template, other rates, or a ladder written by hand.",
            )
        return nearest

    def _candidates_uncached(self, text: str) -> dict[str, int]:
        """Texts that the package makes of this one, with their tokens by the base's tokenizer."""
        if not text.strip():
            return {}
        end = text[len(text.rstrip()) :]  # parts the template from the query
        made = []
        for percent in range(99):
            # The half keeps the package's own rounding down to a whole percentile clear of float
            # error.
            answer = self._package.compress_prompt_llmlingua2(
                [text], rate=1 - (percent + 0.5) / 100, force_tokens=["\n"], drop_consecutive=True
            )
            kept = answer["compressed_prompt"].strip()
            if kept:
                made.append(kept + end)
        counts = map(len, self._tokenizer.encode_many(made))
        return dict(zip(made, counts, strict=True))


def _load(model: str, encode: Callable[[str], list[int]]) -> Any:
    """The package's compressor, with the base's tokenizer where it would fetch GPT-3.5's.

    Its constructor downloads that tokenizer, to weigh words by; a rate is of the base's tokens
    here, so what else the constructor does is done without it. No code from the hub is run.
    """
    try:
        from llmlingua import PromptCompressor
    except ImportError as error:
        raise UserError(
            "config.prompt.compressor is 'llmlingua2', which needs a package that isn't installed "
            f"({error.name}).",
            "Install it: pip install 'pintern[llmlingua]'.",
        ) from error
    import torch
    from transformers import AutoConfig

    folder = resolve_other("prompt.llmlingua_model", model)

    class Package(PromptCompressor):
        def __init__(self) -> None:
            self.model_name = folder
            self.use_llmlingua2 = True
            self.oai_tokenizer = _Encoder(encode)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.load_model(folder, device, {"trust_remote_code": False})
            self.init_llmlingua2()

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        kinds = config.architectures or ["no architecture"]
        if config.model_type not in _NAMES or not kinds[0].endswith("ForTokenClassification"):
            raise UserError(
                f"config.prompt.llmlingua_model={model} is a {kinds[0]}.",
                "Expected a token classifier of XLM-RoBERTa's or BERT's architecture, such as "
                "microsoft/llmlingua-2-xlm-roberta-large-meetingbank.",
            )
        package = Package()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"config.prompt.llmlingua_model={model} can't be loaded: {first_line(error)}",
            "Give a folder with config.json, safetensors and tokenizer, or a name on the hub.",
        ) from error
    package.model_name = _NAMES[config.model_type]
    package.model = _remembering(package.model)
    return package


class _Encoder:
    """What the package asks of a tokenizer that counts."""

    def __init__(self, encode: Callable[[str], list[int]]):
        self.encode = functools.cache(encode)


def _remembering(model: Callable[..., Any]) -> Callable[..., Any]:
    """The classifier, run once per batch of chunks: one text is asked about at every percentile."""
    answers: dict[tuple[bytes, bytes], Any] = {}

    def forward(input_ids: Any, attention_mask: Any) -> Any:
        key = (input_ids.cpu().numpy().tobytes(), attention_mask.cpu().numpy().tobytes())
        if key not in answers:
            answers[key] = model(input_ids=input_ids, attention_mask=attention_mask)
        return answers[key]

    return forward

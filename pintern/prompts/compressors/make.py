"""The compressor that a config names."""

from pintern.errors import UserError
from pintern.prompts.compressors.llmlingua import LLMLingua2Compressor
from pintern.prompts.compressors.rates import Compressor
from pintern.prompts.compressors.self_information import SelfInformationCompressor, Surprisal
from pintern.prompts.compressors.truncation import TruncationCompressor
from pintern.prompts.tokens import PieceTokenizer

COMPRESSORS = ("self_information", "llmlingua2", "truncation")


def make_compressor(
    kind: str, tokenizer: PieceTokenizer, *, surprisal: Surprisal, llmlingua_model: str
) -> Compressor:
    """Compressor of a kind.

    Args:
      kind: one of `COMPRESSORS`.
      tokenizer: the base's, which all rates are counted with.
      surprisal: bits of each token under the base model, for `self_information`.
      llmlingua_model: token classifier, a folder or a name on the hub, for `llmlingua2`.

    Raises:
      UserError: an unknown kind; a classifier or package that isn't there.
    """
    match kind:
        case "self_information":
            return SelfInformationCompressor(tokenizer, surprisal)
        case "llmlingua2":
            return LLMLingua2Compressor(tokenizer, llmlingua_model)
        case "truncation":
            return TruncationCompressor(tokenizer)
    raise UserError(f"Unknown compressor {kind!r}.", f"Use one of: {', '.join(COMPRESSORS)}.")

"""Makes a small GPT-2 of random weights: a checkpoint directory in Hugging Face's layout.

    python -m experiments.promptintern.make_gpt2 --tokenizer=FOLDER --out=DIR

FOLDER holds GPT-2's tokenizer.json. DIR then works like any other --config.model.path. The model
knows nothing; it is for trying the path of a GPT-2 checkpoint where none can be downloaded.
"""

from pathlib import Path

from absl import flags

from pintern import cli
from pintern.errors import UserError

TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder with tokenizer.json.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder of the checkpoint; made if absent.", required=True)
LAYERS = flags.DEFINE_integer("layers", 2, "Blocks.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 128, "Width of the model, in heads of 32.", lower_bound=32)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the weights.", lower_bound=0)

END = "<|endoftext|>"  # GPT-2's only special token: start, end and unknown in one
POSITIONS = 1024
HEAD_WIDTH = 32


def make_gpt2(
    tokenizer: Path, out: Path, *, layers: int = 2, width: int = 128, seed: int = 0
) -> None:
    """Writes config.json, model.safetensors and the tokenizer.

    Args:
      tokenizer: folder with GPT-2's tokenizer.json.
      out: folder of the checkpoint; it must not hold weights yet.
      layers: blocks.
      width: of the model, a multiple of 32.
      seed: of the weights.

    Raises:
      UserError: no such tokenizer, one without `<|endoftext|>`, a width that isn't a multiple of
        32, or a folder that holds weights already.
    """
    path = tokenizer / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.", "Give the folder that holds it.")
    if width % HEAD_WIDTH:
        raise UserError(f"--width={width} is not a multiple of {HEAD_WIDTH}.", "Use 128.")

    from tokenizers import Tokenizer

    # Asked of the file: transformers would add the token to a tokenizer that lacks it.
    if Tokenizer.from_file(str(path)).token_to_id(END) is None:
        raise UserError(f"{path} has no token {END}.", "Give GPT-2's tokenizer.")

    from transformers import PreTrainedTokenizerFast

    from pintern.models.load import init_model, save_model

    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(path), bos_token=END, eos_token=END, unk_token=END
    )
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "bos_token_id": fast.bos_token_id,
        "eos_token_id": fast.eos_token_id,
        "layer_norm_epsilon": 1e-5,
        "n_embd": width,
        "n_head": width // HEAD_WIDTH,
        "n_layer": layers,
        "n_positions": POSITIONS,
        "tie_word_embeddings": True,
        "vocab_size": len(fast),
    }
    made = init_model(config, seed)
    out.mkdir(parents=True, exist_ok=True)
    save_model(out, made.decoder, made.family, config, dtype="float32")
    fast.save_pretrained(out)


def main(_: list[str]) -> None:
    """Makes the checkpoint that the flags describe."""
    make_gpt2(
        Path(TOKENIZER.value),
        Path(OUT.value),
        layers=LAYERS.value,
        width=WIDTH.value,
        seed=SEED.value,
    )
    print(f"Random GPT-2 in {OUT.value}: pass --config.model.path={OUT.value}")


if __name__ == "__main__":
    cli.run(main)

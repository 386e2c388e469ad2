"""Retrieval by a sentence-transformers model, a tiny random one made here."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="needs pip install 'pintern[dense]'"
)
sys.path.insert(0, str(Path(__file__).parents[1]))

import tokenizers  # noqa: E402
import transformers  # noqa: E402
from prompt_samples import TEMPLATE  # noqa: E402
from tokenizers import models, pre_tokenizers, trainers  # noqa: E402

from pintern.errors import UserError  # noqa: E402
from pintern.prompts.retrievers.make import make_retriever  # noqa: E402
from pintern.prompts.retrievers.vectors import sentence_encoder  # noqa: E402

POOL = [line.strip() for line in TEMPLATE.splitlines() if line.strip()]


def save_model(folder, seed=0):
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=list(special.values()), show_progress=False
    )
    made.train_from_iterator([TEMPLATE], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
    config = transformers.BertConfig(
        vocab_size=len(fast),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    torch.manual_seed(seed)
    plain = folder / "plain"
    transformers.BertModel(config).save_pretrained(plain)
    fast.save_pretrained(plain)
    # Of a plain model the package makes one with mean pooling.
    pooling = sentence_transformers.SentenceTransformer(str(plain), device="cpu")
    pooling.save(str(folder / "sentences"))
    return str(folder / "sentences")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def make(kind, model, cache=None, **options):
    return make_retriever(
        kind, POOL, seed=0, encoder=None, sentence_model=model, cache=cache, **options
    )


def test_the_nearest_are_those_of_the_package(model):
    package = sentence_transformers.SentenceTransformer(model, device="cpu")
    queries = ["orders of customers", POOL[3], "country names"]
    similar = package.similarity(package.encode(queries), package.encode(POOL)).numpy()
    found = make("sentence_transformers", model).neighbours(queries, 4)
    assert found == np.argsort(-similar, axis=1)[:, :4].tolist()
    assert found[1][0] == 3


def test_the_band_may_use_it(model):
    whole = make("sentence_transformers", model)
    band = make("similarity_band", model, similarity="sentence_transformers", quantile=1.0)
    places = range(len(POOL))
    assert band.neighbours(POOL, 3, exclude=places) == whole.neighbours(POOL, 3, exclude=places)


def test_vectors_are_kept_by_what_the_model_is(model, tmp_path):
    found = make("sentence_transformers", model, tmp_path).neighbours(["stock"], 5)
    (path,) = tmp_path.glob("*.npz")
    before = path.stat().st_mtime_ns
    assert make("sentence_transformers", model, tmp_path).neighbours(["stock"], 5) == found
    assert path.stat().st_mtime_ns == before
    other = save_model(tmp_path / "other", seed=1)
    make("sentence_transformers", other, tmp_path).neighbours(["stock"], 5)
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"sentence_model=.*absent can't be loaded"):
        sentence_encoder(str(tmp_path / "absent"))


def test_a_model_that_batches_no_texts_is_told(model, tmp_path):
    """A causal model's tokenizer mostly has no padding token; its folder loads all the same."""
    shutil.copytree(Path(model).parent / "plain", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer_config.json"
    options = json.loads(path.read_text())
    path.write_text(json.dumps({**options, "pad_token": None}))
    with pytest.raises(UserError, match=r"sentence_model=.* has no padding token"):
        sentence_encoder(str(tmp_path))

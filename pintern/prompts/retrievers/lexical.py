"""Retrieval by shared words."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from pintern.prompts.kept import LARGE
from pintern.prompts.retrievers.pool import Pool, highest
from pintern.prompts.retrievers.vectors import digest

if TYPE_CHECKING:
    from bm25s import BM25

_SUM = "sha256"  # file of an index that is kept

# Characters of scripts that write no spaces (Thai, Lao, Burmese, Khmer, kana, Han): each is a word,
# since a whole sentence would be one, which no other sentence shares.
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_ALONE += "\U00020000-\U0003ffff"
# Vowel signs and accents, which no letter is but a word goes on behind: Hebrew, Arabic, Indic.
_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff"
_WORD = re.compile(rf"[^\W{_ALONE}]+(?:[{_MARKS}]+[^\W{_ALONE}]*)*|(?!\W)[{_ALONE}]")


class BM25Retriever:
    """Okapi BM25 over lower-case words and numbers; no stop words. Ties go to the lower index.

    Of a script that writes no spaces each character is a word.

    Args:
      pool: texts of the items.
      cache: folder in which the index of a large pool is kept; None keeps none.
    """

    def __init__(self, pool: Sequence[str], cache: Path | None = None):
        self.pool = Pool(pool)
        self._index = _kept_index(pool, cache) if cache and len(pool) >= LARGE else _index(pool)

    def neighbours(
        self, queries: Sequence[str], k: int, *, exclude: Sequence[int | None] | None = None
    ) -> list[list[int]]:
        """See `Retriever.neighbours`."""
        left_out = self.pool.left_out(queries, k, exclude)
        found = []
        with self.pool.progress(queries) as done:
            for scores, places in zip(self.scores(queries), left_out, strict=True):
                scores[places] = -np.inf
                found.append(highest(scores, k))
                done(1)
        return found

    def scores(self, queries: Sequence[str]) -> Iterator[Float[np.ndarray, " item"]]:
        """See `Scorer.scores`."""
        for query in queries:
            yield self._index.get_scores(_words(query))


def bm25_identity(_: Sequence[str]) -> str:
    """What its scores follow from beside the texts."""
    return f"bm25s {_library().__version__} {_WORD.pattern}"


def _library() -> ModuleType:
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells every step of indexing
    return bm25s


def _index(pool: Sequence[str]) -> BM25:
    bm25s = _library()
    made = bm25s.BM25()
    shown = len(pool) >= LARGE and sys.stderr.isatty()
    # The library's own empty token has no column in its index, so that asking for it fails.
    made.index([_words(text) for text in pool], create_empty_token=False, show_progress=shown)
    return made


def _kept_index(pool: Sequence[str], cache: Path) -> BM25:
    """The index from the folder where it is there, else made and put there, whole or not at all."""
    bm25s = _library()
    path = cache / f"bm25-{digest([bm25_identity(pool), *pool])}"
    if path.exists():
        try:
            # Its files carry no checksums of their own: a damaged one may give other examples.
            if (path / _SUM).read_text() != _sum_of(path):
                raise ValueError("not what was written")
            return bm25s.BM25.load(path, show_progress=False)
        except Exception as error:  # what a broken file raises is anybody's guess
            print(f"{path} is broken ({error}); it is made again.", file=sys.stderr)
            shutil.rmtree(path, ignore_errors=True)
    made = _index(pool)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        made.save(temporary, show_progress=False)
        (temporary / _SUM).write_text(_sum_of(temporary))
        temporary.rename(path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not path.is_dir():  # else another process was quicker
            print(f"The index can't be kept in {cache}: {error.strerror}.", file=sys.stderr)
    return made


def _sum_of(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.name != _SUM)
    return digest(part for path in files for part in (path.name, path.read_bytes()))


def _words(text: str) -> list[str]:
    # The empty word stands for a text without any, because bm25s indexes no empty document.
    return _WORD.findall(unicodedata.normalize("NFC", text.lower())) or [""]

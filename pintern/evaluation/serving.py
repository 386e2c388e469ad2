"""A model ready for a user's prompts: a run's adapter on its base, or any checkpoint alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from pintern.adapters.adapter import Adapter
from pintern.assemble import Parts, split_decoder
from pintern.errors import UserError
from pintern.evaluation.decode import Generator
from pintern.evaluation.run import known_answers, serving_model
from pintern.evaluation.sampling import Sampling
from pintern.models.load import Checkpoint
from pintern.prompts.chat import ChatLayout
from pintern.prompts.requests import Request
from pintern.prompts.task import Example
from pintern.prompts.tokens import PieceTokenizer, TextStream


@dataclasses.dataclass(frozen=True)
class Server:
    """A model and how it is asked.

    Attributes:
      generator: decodes rows.
      encode: queries to token ids, as they stand behind the prefix.
      tokenizer: of the completions.
      prefix: tokens in front of every row, soft prompt included.
      new_tokens: longest completion.
      context: tokens that the model takes.
      strip: completions are read without white space at their ends, as scored answers are.
    """

    generator: Generator
    encode: Callable[[Sequence[str]], list[list[int]]]
    tokenizer: PieceTokenizer
    prefix: int
    new_tokens: int
    context: int
    strip: bool

    def rows(self, requests: Sequence[Request]) -> list[list[int]]:
        """Token ids of the prompts.

        Raises:
          UserError: one that leaves the model's context no room for its completion.
        """
        rows = self.encode([request.text for request in requests])
        for request, row in zip(requests, rows, strict=True):
            length = self.prefix + len(row)
            if length + self.new_tokens > self.context:
                raise UserError(
                    f"{request.where}: the prompt is {length} tokens long ({self.prefix} of "
                    f"prefix, {len(row)} of row); with {self.new_tokens} new ones it exceeds the "
                    f"model's context of {self.context}.",
                    "Shorten the prompt, or lower --max_new_tokens.",
                )
        return rows

    def stream(self, row: Sequence[int], *, seed: int = 0, index: int = 0) -> Iterator[str]:
        """One completion in pieces of text, each as soon as it is certain."""
        text = TextStream(self.tokenizer, strip=self.strip)
        for token in self.generator.stream(row, seed=seed, index=index):
            yield text.push(token)
        yield text.end()

    def answer(self, request: Request, ids: Sequence[int]) -> dict[str, object]:
        """A line of the output: the query, its completion, and why that ended."""
        text = self.tokenizer.decode(ids)
        return ({"id": request.id} if request.id else {}) | {
            "query": request.text,
            "completion": text.strip() if self.strip else text,
            "new_tokens": len(ids),
            "ended_by": "length" if len(ids) == self.new_tokens else "end token",
        }


def sampling_of(
    tokenizer: PieceTokenizer,
    new_tokens: int,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    draft_tokens: int,
) -> Sampling:
    """Sampling that ends where the tokenizer says that completions end."""
    return Sampling(
        new_tokens, tokenizer.eos, temperature, top_k, top_p, tokenizer.also_end, draft_tokens
    )


def run_server(
    parts: Parts,
    adapter: Adapter | None,
    *,
    raw: bool = False,
    merge: bool = True,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Server:
    """A run as its config's `eval` says.

    Args:
      parts: the run's.
      adapter: of a checkpoint; None is the base.
      raw: take queries as they are, behind the start token alone.
      merge: fold LoRA into the weights first; beside a quantised base it stays apart.
      top_k: see `Sampling`.
      top_p: likewise.
    """
    fields, tokenizer, prompts = parts.config.eval, parts.tokenizer, parts.prompts
    prefix = list(tokenizer.bos) if raw else prompts.prefix(fields.keep_rate)
    virtual = 0 if adapter is None else adapter.num_virtual_tokens
    if merge:
        (graph, base), adapter = serving_model(parts, adapter)
    else:
        graph, base = split_decoder(parts.checkpoint)
    sampling = sampling_of(
        tokenizer,
        fields.max_new_tokens,
        temperature=fields.temperature,
        top_k=top_k,
        top_p=top_p,
        draft_tokens=fields.draft_tokens,
    )

    def encode(queries: Sequence[str]) -> list[list[int]]:
        if raw:
            return tokenizer.encode_many(queries)
        asked = [Example(query, "") for query in queries]
        return [row.tokens for row in prompts.request_rows(asked, fields.shots)]

    return Server(
        Generator(
            graph,
            base,
            adapter,
            prefix,
            sampling,
            answers=known_answers(parts) if fields.draft_tokens else (),
        ),
        encode,
        tokenizer,
        prefix=len(prefix) + virtual,
        new_tokens=fields.max_new_tokens,
        context=parts.checkpoint.config.max_positions,
        strip=not raw,
    )


def checkpoint_server(
    checkpoint: Checkpoint,
    tokenizer: PieceTokenizer,
    new_tokens: int,
    *,
    query_format: str = "",
    chat: bool = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    draft_tokens: int = 0,
) -> Server:
    """A base model or a merged export, without a task.

    Args:
      checkpoint: the model.
      tokenizer: its own.
      new_tokens: longest completion.
      query_format: text with `{query}`; empty takes the query as it is.
      chat: a query is the user's turn in the checkpoint's chat template.
      temperature: see `Sampling`.
      top_k: likewise.
      top_p: likewise.
      draft_tokens: likewise; they are guessed from the prompt itself.
    """
    prefix = list(tokenizer.bos)
    layout = ChatLayout.of(tokenizer) if chat else None
    if layout is not None:
        prefix, tokenizer = layout.head(""), tokenizer.ending_with(layout.eos)

    def encode(queries: Sequence[str]) -> list[list[int]]:
        if layout is not None:
            return [layout.query(query) for query in queries]
        form = query_format or "{query}"
        return tokenizer.encode_many([form.replace("{query}", query) for query in queries])

    sampling = sampling_of(
        tokenizer,
        new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        draft_tokens=draft_tokens,
    )
    return Server(
        Generator(*split_decoder(checkpoint), None, prefix, sampling),
        encode,
        tokenizer,
        prefix=len(prefix),
        new_tokens=new_tokens,
        context=checkpoint.config.max_positions,
        strip=bool(chat or query_format),
    )

"""Which labelled pairs to show beside a query.

Every retriever obeys `pool.Retriever`: best first, and never an item itself nor a copy of it.
`make.make_retriever` is what others import. Similarities are lexical (`lexical.py`) or cosines of
vectors (`dense.py`) that an `Encoder` makes; this package knows no JAX model, so the base model's
encoder is passed in.
"""

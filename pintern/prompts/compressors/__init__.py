"""Shorter texts of a template at an asked keep rate τ.

Each compressor is a function of text and rate (`rates.Compressor`) that comes within two points of
the rate by the model's own tokenizer, or says that it can't. Self-information asks a function that
is passed in for the bits of a text; LLMLingua-2 is a package of its own and is imported when used;
truncation is the control. `make.make_compressor` is what others import.
"""

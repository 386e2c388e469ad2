"""Answers and their scores: what a model predicts, how fast, and how much of it is right.

`sql` runs predicted queries safely, `results` compares what they return and `sql_clauses` what they
say, `sandbox` runs predicted programs, `metrics` turns predictions and gold answers into scores
with intervals, overall and per slice, and `samples` averages several answers: these know no model,
only text. The other files let a model answer. Entry points and `training` import from here, `tasks`
the form of a table.
"""

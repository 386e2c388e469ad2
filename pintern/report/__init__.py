"""What a study comes to: accounts, tables, plots and one page.

`accounting` turns each arm's score, tokens, latency and training time into `summary.json`; `table`,
`plots` and `html` show that summary and compute no figures of their own (`page` holds the page's
style and script). Nothing here knows a model or a task: numbers and text come in, files go out.
Entry points import from here; `evaluation` measures into the dataclasses of `accounting`.
"""

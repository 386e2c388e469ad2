"""Studies: each file has a `get_study()` for `python -m pintern.study --study=FILE`.

`promptintern_main` and `promptintern_main_reduced` are PromptIntern's main table, `schedules` how
the prompt is taken away, `diagnostics` what it leaves behind. `rows` is what they share.
"""

"""Studies: each file has a `get_study()` for `python -m pintern.study --study=FILE`.

`promptintern_main` and `promptintern_main_reduced` are PromptIntern's main table, `schedules` how
the prompt is taken away, `ipt` and `ipt_reduced` soft prompts against demonstrations, `diagnostics`
what internalising leaves behind. `rows` is what they share.
"""

"""What `launch.plan` works with: chips and their published rates (`chips`), the programs that a run
compiles, of shapes alone (`programs`; for a TPU that isn't here, `tpu`), what a compiled one says
of itself (`hlo`, `measure`), the analytic estimate (`estimate`), the table (`table`), and the
search over them (`search`).
"""

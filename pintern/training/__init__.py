"""Training an adapter: data by step, the step itself, its programs, checkpoints, the loop.

Import `loop.train` to run and `restore.restore_run` to read a run back. Knows models, prompts and
evaluation (for the teacher's answers and the adaptive curriculum); knows no entry point.
"""

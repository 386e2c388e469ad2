"""Training an adapter: data by step, the step itself, its programs, checkpoints, the loop.

Import `loop.train` to run and `restore.restore_run` to read a run back. Knows models, prompts and
evaluation (for the teacher's answers, the adaptive curriculum, and the watcher beside a run); knows
no entry point.
"""

"""The language model: one decoder with a few orthogonal choices (`config`, `attention`, `block`,
`decoder`), the reading of rows behind a shared prefix (`shared_prefix`), the families whose
checkpoints it takes (`families`), and loading and saving them (`load`). Everything above may import
from here; nothing here knows of prompts, training or evaluation.
"""

r"""PromptIntern (2407.02211) on MBPP: a sentence and three asserts to a Python function, by pass@1.

    python -m pintern.train --config=experiments/promptintern/mbpp.py \
        --config.task.data=FILE --workdir=runs/mbpp
    python -m pintern.evaluate --workdir=runs/mbpp --samples=20 --temperature=0.8

FILE is mbpp.jsonl. The second line draws 20 programs for each task and tells pass@k. Programs run
in a sandbox, which needs Linux with Landlock and seccomp. The model is the paper's smallest;
--config.model.path takes meta-llama/Llama-2-13b-hf or mistralai/Mixtral-8x7B-v0.1 as well.
"""

from ml_collections import ConfigDict

from pintern.config import default_config


def get_config() -> ConfigDict:
    """Llama-2-7B, LoRA of rank 32, four linear stages over ten epochs, two shots."""
    config = default_config()
    config.name = "promptintern-mbpp"
    config.model.path = "meta-llama/Llama-2-7b-hf"
    config.model.remat = True
    config.task.kind = "mbpp"
    config.prompt.max_shots = 2
    config.curriculum.schedule = "linear"
    config.curriculum.stages = 4
    config.adapter.rank = 32
    config.adapter.alpha = 64.0
    config.train.steps = 240  # 374 tasks in batches of 16, ten times
    config.train.batch_rows = 16
    config.train.learning_rate = 5e-5  # not public; SKIntern's (2409.13183) of 8B
    config.eval.max_new_tokens = 256
    return config

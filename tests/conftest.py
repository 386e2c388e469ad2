"""Every test runs with shapes and types checked at call time."""

from jaxtyping import install_import_hook

install_import_hook(
    [
        "pintern.adapters",
        "pintern.models",
        "pintern.evaluation.decode",
        "pintern.evaluation.engine",
        "pintern.evaluation.sampling",
        "pintern.prompts.retrievers.dense",
        "pintern.prompts.retrievers.topk",
        "pintern.prompts.retrievers.vectors",
        "pintern.training.step",
    ],
    "checker.typechecked",
)

"""Packaging: `pip install .` for CPU, `.[tpu]` or `.[cuda]` for accelerators."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="pintern",
    version="0.1.0",
    description="Move a recurring prompt into a language model's adapter; measure what it saves",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["pintern", "pintern.*"]),
    package_data={"pintern": ["assets/*/*"]},
    install_requires=[
        "absl-py",
        "bm25s",
        "datasets",
        "flax>=0.12.8,!=0.12.9",
        "fsspec",
        "huggingface_hub",
        "jax>=0.10",
        "jaxtyping",
        "jinja2",
        "matplotlib",
        "ml_collections",
        "ml_dtypes",
        "numpy",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "pyyaml",
        "rich",
        "sacrebleu",
        "safetensors",
        "sqlglot",
        "tensorboardX",
        "tensorflow-datasets",
        "tokenizers",
        "transformers>=5",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "plan": ["jax[tpu]"],  # the TPU's compiler alone, in the version that this JAX goes with
        "gcs": ["gcsfs"],
        "s3": ["s3fs"],
        "dense": ["sentence-transformers"],
        # Its constructor is replaced (pintern/prompts/compressors/llmlingua.py), hence one version.
        "llmlingua": ["llmlingua==0.2.2"],
        # Of one version an index's CPU build ("+cpu") outranks its plain one, where it has both.
        "peers": [
            "torch==2.13.*",
            "transformers",
            "peft",
            "llmlingua==0.2.2",
            "sentence-transformers",
        ],
        "test": [
            "beartype",
            "flask",  # with flask-cors, moto's server
            "flask-cors",
            "hypothesis",
            "kubeflow-trainer-api",
            "moto[s3]",
            "pytest",
            "pytest-xdist",
            "ruff",
            "s3fs",
            "selenium",
        ],
    },
)

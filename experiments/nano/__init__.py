"""The bundled base model: generated text-to-SQL episodes, tokenizer, pre-training."""

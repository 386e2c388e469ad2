"""The prompt as data: tasks, retrieval, template ladders, token rows. Knows no JAX model."""

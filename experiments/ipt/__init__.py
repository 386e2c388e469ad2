"""IPT (2302.11521): soft prompt, retrieved demonstration and query, on the paper's tasks."""

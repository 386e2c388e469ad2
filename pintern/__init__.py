"""pintern moves a recurring prompt into a causal language model's adapter.

Entry points: `python -m pintern.train`, `pintern.evaluate`, `pintern.generate`, `pintern.export`,
`pintern.curriculum`, `pintern.retrieve`, `pintern.population`, `pintern.study`, `pintern.config`.
"""

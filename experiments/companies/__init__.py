"""Five small companies, each a task of its own: other tables, other private names, other rows.

The reduced studies of prompt tuning need several tasks that the bundled model can answer. `task`
draws them and writes their files; nothing of them is committed.
"""

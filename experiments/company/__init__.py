"""The default task: questions about one fixed company database, answered in SQL.

`schema` is the database written out, `database` its rows, `task` the pools of questions; run
`generate` to write the files. Import `task.make_task` and the names of `schema`.
"""

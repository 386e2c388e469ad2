"""Studies: grids of arms × tasks × models × seeds, run cell by cell into one ledger.

`study` is the declaration that an experiment file returns from `get_study()`; `runner` runs its
cells, each an ordinary run folder; `ledger` lets several processes share a grid and outlive a kill;
`diagnostics` are further measurements of a cell; `statistics`, `tables` and `report` say what it
comes to. `pintern.study` is the entry point. Study files import `study` and
`diagnostics`; nothing outside this folder and the entry point imports the rest.
"""

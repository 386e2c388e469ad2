"""The thirteen arms of the ledger, one config each: what is trained, behind which prompt, by which
loss, and what stands in front of the query at inference. `base` holds what they share; their
defaults are those of the company task, and `--config.task…` and `--config.model…` take them
elsewhere.
"""

"""What the launchers' tests start: a one-node Slurm, a `gcloud` that replays, a small job."""

"""Launchers put one command on a target: this machine, Slurm, Cloud TPU VMs, GKE.

Each is an entry point of its own (`python -m launch.local`, ...) with its own flags; `common` is
what they share. No launcher imports JAX, and `pintern` imports nothing from here.
"""

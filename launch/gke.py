"""Runs a command as a JobSet on GKE, on TPU slices or GPU nodes, and follows its output.

    python -m launch.gke --cluster=c --location=us-west4 --type=v5litepod-64 --image=IMAGE -- \\
        python -m pintern.train --workdir=gs://bucket/runs/large ...
    python -m launch.gke --cluster=c --location=us-west4 --type=nvidia-h100-80gb --nodes=4 ...

The image holds the package and its `tpu` or `cuda` extra. The run folder has to be a bucket's. Pods
that are taken away come back, and the run goes on from its checkpoint. Run the same line again to
attach to the run; Ctrl-C leaves it alone. The cluster needs the JobSet controller.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from launch import common
from launch.gke_manifest import FINGERPRINT, hardware, job_set
from pintern.errors import UserError

_POLL = 5.0  # seconds
_TRIES = 5  # of a look, while a run is followed for days


def define(values: flags.FlagValues) -> None:
    """The launcher's flags."""
    common.define_common(values)

    def text(name: str, default: str | None, doc: str, required: bool = False) -> None:
        flags.DEFINE_string(name, default, doc, required=required, flag_values=values)

    def number(name: str, default: int, doc: str) -> None:
        flags.DEFINE_integer(name, default, doc, lower_bound=1, flag_values=values)

    text("cluster", None, "Name of the cluster.", required=True)
    text("location", None, "Its region or zone.", required=True)
    text("type", None, "TPU type (v5litepod-64) or GPU label (nvidia-h100-80gb).", required=True)
    text("image", None, "Container image with the package in it.", required=True)
    text("project", None, "Project; gcloud's own without.")
    text("name", None, "Name of the JobSet; by default made of the run's folder.")
    text("namespace", "default", "Kubernetes namespace.")
    text("service_account", None, "Kubernetes service account that may write to the bucket.")
    number("slices", 1, "TPU slices.")
    number("nodes", 1, "GPU nodes, a process on each.")
    number("gpus_per_node", 8, "GPUs of each node.")
    number("grace", 120, "Seconds that the command has to save.")
    number("max_restarts", 1000, "Restarts of the whole run.")
    flags.DEFINE_boolean("spot", False, "Run on spot nodes.", flag_values=values)
    flags.DEFINE_boolean("follow", True, "Follow the run to its end.", flag_values=values)
    flags.DEFINE_multi_string("env", [], "NAME=value for the command.", flag_values=values)


def main(values: flags.FlagValues, command: list[str]) -> int:
    """Applies the manifest or attaches to the run; the exit status."""
    made = manifest(values, command)
    if values.dry_run:
        print(_yaml(made) + "---")
        print(shlex.join(_credentials(values)))
        print(shlex.join(_kubectl(made, "apply", "--filename=-")))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        # kubectl's own configuration, and the cluster that it points to, stay as they are.
        os.environ["KUBECONFIG"] = str(Path(folder) / "config")
        _must(_credentials(values), "the Google Cloud SDK")
        end = _how_to_end(values, made)
        _apply_once(made, end)
        try:
            return _follow(made) if values.follow else 0
        except KeyboardInterrupt:
            print(f"\nThe run goes on. Attach: the same command. End it: {end}")
            return 0


def manifest(values: flags.FlagValues, command: list[str]) -> dict[str, Any]:
    """The JobSet that the flags name."""
    workdir = common.workdir_of(command)
    if workdir is not None and not common.is_bucket(workdir):
        raise UserError(
            f"--workdir={workdir} would lie in a pod, and be gone with it.",
            "Use a bucket: --workdir=gs://BUCKET/...",
        )
    name = common.check_name(values.name or common.run_name(command, absolute=False))
    target = hardware(
        values.type,
        slices=values.slices,
        nodes=values.nodes,
        gpus_per_node=values.gpus_per_node,
    )
    return job_set(
        name,
        command,
        target,
        image=values.image,
        namespace=values.namespace,
        environment=common.parse_environment(values.env),
        watcher=common.watch_command(command) if values.with_eval else None,
        spot=values.spot,
        grace=values.grace,
        max_restarts=values.max_restarts,
        service_account=values.service_account,
    )


def _credentials(values: flags.FlagValues) -> list[str]:
    words = ["gcloud", "container", "clusters", "get-credentials", values.cluster]
    words.append(f"--location={values.location}")
    return words + ([f"--project={values.project}"] if values.project else [])


def _kubectl(made: dict[str, Any], *words: str) -> list[str]:
    return ["kubectl", f"--namespace={made['metadata']['namespace']}", *words]


def _how_to_end(values: flags.FlagValues, made: dict[str, Any]) -> str:
    """For the user's own shell, whose kubectl may know another cluster or none."""
    delete = _kubectl(made, "delete", "jobset", made["metadata"]["name"])
    return f"{shlex.join(_credentials(values))} && {shlex.join(delete)}"


def _yaml(made: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(made, sort_keys=False)


def _must(command: list[str], program_of: str, *, tries: int = 1) -> str:
    done = common.call(command, program_of=program_of)
    while done.returncode and (tries := tries - 1):
        time.sleep(_POLL)
        done = common.call(command, program_of=program_of)
    if done.returncode:
        raise UserError(f"{shlex.join(command)} failed: {common.last_line(done.stderr)}")
    return done.stdout


def _found(made: dict[str, Any], *, tries: int = 1) -> dict[str, Any] | None:
    """The JobSet of this name in the cluster."""
    words = ("get", "jobset", made["metadata"]["name"], "--output=json", "--ignore-not-found")
    said = _must(_kubectl(made, *words), "kubectl", tries=tries)
    return json.loads(said) if said.strip() else None


def _end(found: dict[str, Any]) -> str | None:
    """ "Completed" or "Failed" with the reason, or None while the run lasts."""
    for condition in found.get("status", {}).get("conditions", []):
        if condition["type"] in ("Completed", "Failed") and condition["status"] == "True":
            message = condition.get("message", "")
            return f"{condition['type']}: {message}" if message else condition["type"]
    return None


def _apply_once(made: dict[str, Any], end: str) -> None:
    """Starts the run unless it is there; one that has ended makes room for it.

    Args:
      made: its manifest.
      end: how another one of this name is ended.
    """
    name, found = made["metadata"]["name"], _found(made)
    if found is not None and _end(found) is None:
        theirs = found["metadata"].get("annotations", {}).get(FINGERPRINT)
        if theirs != made["metadata"]["annotations"][FINGERPRINT]:
            raise UserError(
                f"JobSet {name} is there already, with another command or other options.",
                f"End it ({end}), or give this one another --name.",
            )
        print(f"JobSet {name} is there already.", flush=True)
        return
    if found is not None:
        _must(_kubectl(made, "delete", "jobset", name), "kubectl")
    command = _kubectl(made, "apply", "--filename=-")
    done = subprocess.run(command, input=_yaml(made), capture_output=True, text=True, check=False)
    if done.returncode:
        hint = ""
        if "no matches for kind" in done.stderr:
            hint = "Install the JobSet controller in the cluster (jobset.sigs.k8s.io)."
        raise UserError(f"kubectl apply failed: {common.last_line(done.stderr)}", hint)
    print(f"JobSet {name} is submitted.", flush=True)


def _follow(made: dict[str, Any]) -> int:
    """Prints the first process's log until the run ends; 0 if it completed."""
    name, told, since = made["metadata"]["name"], "", None
    selector = f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/replicatedjob-name=train"
    selector += ",jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    while True:
        found = _found(made, tries=_TRIES)
        if found is None:
            raise UserError(f"JobSet {name} was deleted.")
        said = _end(found)
        look = _kubectl(made, "get", "pods", f"--selector={selector}", "--output=json")
        pods = json.loads(_must(look, "kubectl", tries=_TRIES))["items"]
        if said is None:
            phase = pods[-1]["status"].get("phase", "Pending") if pods else "Pending"
            said = f"restart {found.get('status', {}).get('restarts', 0)}, first pod {phase}"
        if said != told:
            print(f"launch: JobSet {name}: {said}", file=sys.stderr, flush=True)
        told = said
        pod = pods[-1] if pods else None
        if pod is not None and pod["status"].get("phase") != "Pending":
            identity = pod["metadata"]["uid"]
            # A pod's log once; again only what came after a connection that broke.
            words = ["--since=20s"] if identity == since and _end(found) is None else []
            if identity != since or words:
                log = _kubectl(made, "logs", "--follow", *words, f"pod/{pod['metadata']['name']}")
                subprocess.run(log, check=False, stderr=subprocess.DEVNULL)
            since = identity
        if re.match("Completed|Failed", said):
            return int(said.startswith("Failed"))
        time.sleep(_POLL)


if __name__ == "__main__":
    common.run("launch.gke", __doc__, define, main)

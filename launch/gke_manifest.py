"""A run as a JobSet manifest for GKE, on TPU slices or on GPU nodes: a pure function.

JobSet (jobset.x-k8s.io/v1alpha2) restarts all pods of a run together, as JAX's processes need. On
TPUs GKE itself puts TPU_WORKER_ID, TPU_WORKER_HOSTNAMES and, for several slices, MEGASCALE_* into
the pods, where JAX looks for them. On GPUs the pods get the variables of `pintern.distributed`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from launch.common import STOPPED, digest
from pintern.distributed import ADDRESS, NUM_PROCESSES, PROCESS_ID, STOPPED_STATUS
from pintern.errors import EXIT_CODE, UserError

FINGERPRINT = "pintern/fingerprint"
_PORT = 8476
# Accelerator label, chips per unit in the type's name, shape by chips. v5p and v4 count cores, two
# per chip; v5e and v6e chips.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}
_CUBE |= {256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16"}
_TPUS = {
    "v5litepod": ("tpu-v5-lite-podslice", 1, _FLAT),
    "v6e": ("tpu-v6e-slice", 1, _FLAT),
    "v5p": ("tpu-v5p-slice", 2, _CUBE),
    "v4": ("tpu-v4-podslice", 2, _CUBE),
}


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a run's pods run on.

    Attributes:
      selector: node labels.
      resource: name of the accelerator to Kubernetes.
      per_pod: accelerators of a pod.
      pods: of one slice, or of all GPU nodes.
      slices: TPU slices; 1 for GPUs.
    """

    selector: dict[str, str]
    resource: str
    per_pod: int
    pods: int
    slices: int


def hardware(kind: str, *, slices: int = 1, nodes: int = 1, gpus_per_node: int = 8) -> Hardware:
    """Reads `--type`: a TPU type such as v5litepod-64, or a GPU's label such as nvidia-h100-80gb.

    Raises:
      UserError: an unknown type or size, naming the known ones.
    """
    generation, _, size = kind.rpartition("-")
    if generation in _TPUS:
        if nodes != 1:
            raise UserError(f"--nodes={nodes} is for GPUs; the hosts of {kind} follow from it.")
        label, unit, shapes = _TPUS[generation]
        chips = int(size) // unit if size.isdigit() and int(size) % unit == 0 else 0
        if chips not in shapes:
            known = ", ".join(f"{generation}-{unit * n}" for n in shapes)
            raise UserError(f"--type={kind} is no size of {generation}: expected one of {known}.")
        # Hosts of four chips; eight of the flat ones have a host of their own.
        per_pod = min(chips, 8 if shapes is _FLAT and chips == 8 else 4)
        selector = {
            "cloud.google.com/gke-tpu-accelerator": label,
            "cloud.google.com/gke-tpu-topology": shapes[chips],
        }
        return Hardware(selector, "google.com/tpu", per_pod, chips // per_pod, slices)
    if not kind.startswith("nvidia-"):
        known = ", ".join(f"{name}-N" for name in _TPUS)
        raise UserError(
            f"--type={kind}: expected a TPU type ({known}) or a GPU label such as nvidia-h100-80gb."
        )
    if slices != 1:
        raise UserError(f"--slices={slices} is for TPUs; give --nodes for GPUs.")
    selector = {"cloud.google.com/gke-accelerator": kind}
    return Hardware(selector, "nvidia.com/gpu", gpus_per_node, nodes, 1)


def job_set(
    name: str,
    command: Sequence[str],
    target: Hardware,
    *,
    image: str,
    namespace: str = "default",
    environment: Mapping[str, str] | None = None,
    watcher: Sequence[str] | None = None,
    spot: bool = False,
    grace: int = 120,
    max_restarts: int = 1000,
    service_account: str | None = None,
) -> dict[str, Any]:
    """The manifest.

    Args:
      name: of the JobSet.
      command: of each pod; it is the container's first process, so that SIGTERM reaches it.
      target: what it runs on.
      image: container image with the package in it.
      namespace: where it goes.
      environment: variables for the command.
      watcher: a command to run beside it in a pod without accelerators.
      spot: tolerate and select spot nodes.
      grace: seconds from SIGTERM to SIGKILL (GKE gives a spot node's pods 15 at most).
      max_restarts: of the whole run, each from its checkpoint.
      service_account: Kubernetes service account, bound to one that may write to the bucket.
    """
    given = {"PYTHONUNBUFFERED": "1", STOPPED_STATUS: str(STOPPED), **(environment or {})}
    variables = _variables(given)
    if target.resource == "nvidia.com/gpu" and target.pods > 1:
        variables += _variables(
            {ADDRESS: f"{name}-train-0-0.{name}:{_PORT}", NUM_PROCESSES: str(target.pods)}
        )
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        variables.append({"name": PROCESS_ID, "valueFrom": {"fieldRef": {"fieldPath": index}}})
    amount = {target.resource: str(target.per_pod)}
    container = {
        "name": "train",
        "image": image,
        "command": [_literal(word) for word in command],
        "env": variables,
        "resources": {"limits": amount, "requests": amount},
        # NCCL and the loader of a large checkpoint want more than a container's 64 MiB.
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    if target.resource == "google.com/tpu":
        # Between the chips' hosts (8471), megascale (8080) and the coordinator (8476).
        container["ports"] = [
            {"containerPort": port, "protocol": "TCP"} for port in (8471, 8080, _PORT)
        ]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace,
        "nodeSelector": dict(target.selector),
        "tolerations": [
            {"key": target.resource, "operator": "Exists", "effect": "NoSchedule"},
        ],
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    if spot:
        pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
        pod["tolerations"].append(
            {"key": "cloud.google.com/gke-spot", "operator": "Exists", "effect": "NoSchedule"}
        )
    train = {
        "backoffLimit": 0,  # one pod fails, all are made anew
        "completionMode": "Indexed",
        "completions": target.pods,
        "parallelism": target.pods,
        # A mistake of the user's fails alike however often it is repeated.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "train",
                        "operator": "In",
                        "values": [EXIT_CODE],
                    },
                }
            ]
        },
        "template": {"spec": pod},
    }
    template: dict[str, Any] = {"spec": train}
    if target.resource == "google.com/tpu":
        # Each slice has a node pool to itself; the watcher's pod is no slice.
        exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        template["metadata"] = {"annotations": {exclusive: "cloud.google.com/gke-nodepool"}}
    jobs = [{"name": "train", "replicas": target.slices, "template": template}]
    if watcher:
        jobs.append(_watcher_job(watcher, image, {**given, "JAX_PLATFORMS": "cpu"}, grace))
    if service_account:
        for job in jobs:
            job["template"]["spec"]["template"]["spec"]["serviceAccountName"] = service_account
    spec = {
        "network": {"enableDNSHostnames": True, "subdomain": name},
        "failurePolicy": {
            "maxRestarts": max_restarts,
            "rules": [
                {
                    "name": "mistake",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                }
            ],
        },
        "replicatedJobs": jobs,
    }
    annotations = {FINGERPRINT: digest(repr(spec))}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
        "spec": spec,
    }


def _watcher_job(
    command: Sequence[str], image: str, environment: Mapping[str, str], grace: int
) -> dict[str, Any]:
    """The watcher: on the CPU, tried again for ever by itself; it ends with the run's last step."""
    container = {
        "name": "eval",
        "image": image,
        "command": [_literal(word) for word in command],
        "env": _variables(environment),
        "resources": {"requests": {"cpu": "4", "memory": "16Gi"}},
    }
    pod = {
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": math.ceil(grace / 4),
        "containers": [container],
    }
    spec = {"backoffLimit": 1000, "completions": 1, "parallelism": 1, "template": {"spec": pod}}
    return {"name": "eval", "replicas": 1, "template": {"spec": spec}}


def _variables(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": _literal(value)} for name, value in values.items()]


def _literal(text: str) -> str:
    """Kubernetes puts a variable's value in place of `$(NAME)`, and one `$` in place of two."""
    return text.replace("$", "$$")

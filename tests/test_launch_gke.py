"""Manifests that Kubernetes' own types take; the launcher against a `kubectl` of a few lines."""

import json
import os
import re
import subprocess
import sys

import pytest
import tiny
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launch.common import STOPPED
from launch.gke_manifest import _TPUS, FINGERPRINT, hardware, job_set
from pintern.distributed import detect
from pintern.errors import UserError

COMMAND = ["python", "-m", "pintern.train", "--workdir=gs://bucket/run"]
WATCH = ["python", "-m", "pintern.evaluate", "--watch", "--workdir=gs://bucket/run"]


def made(kind="v5litepod-64", command=COMMAND, name="run", where=None, **options):
    return job_set(name, command, hardware(kind, **(where or {})), image="image", **options)


def pod_of(manifest, job=0):
    return manifest["spec"]["replicatedJobs"][job]["template"]["spec"]["template"]["spec"]


def variables(manifest, job=0):
    return {v["name"]: v for v in pod_of(manifest, job)["containers"][0]["env"]}


TPU_TYPES = [f"{g}-{unit * n}" for g, (_, unit, shapes) in _TPUS.items() for n in shapes]


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([*TPU_TYPES, "nvidia-h100-80gb"]),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
    st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), st.text(max_size=9), max_size=2),
)
def test_kubernetes_types_take_every_manifest_and_know_every_field(
    kind, several, spot, with_eval, environment
):
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="a test extra")
    where = {"nodes": several} if kind.startswith("nvidia") else {"slices": several}
    manifest = made(
        kind,
        where=where,
        spot=spot,
        environment=environment,
        watcher=WATCH if with_eval else None,
        service_account="writer",
    )
    read = yaml.safe_load(yaml.safe_dump(manifest))
    assert read == manifest
    # What the types don't know they drop: so nothing may be missing afterwards.
    known = models.JobsetV1alpha2JobSet.from_dict(read).to_dict()
    assert json.loads(json.dumps(known)) == manifest


def test_a_wrong_field_or_kind_would_be_found():
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="a test extra")
    manifest = made()
    pod_of(manifest)["terminationGraceSeconds"] = 5
    assert models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict() != manifest
    manifest = made()
    manifest["spec"]["replicatedJobs"][0]["replicas"] = "two"
    with pytest.raises(ValueError, match="replicas"):
        models.JobsetV1alpha2JobSet.from_dict(manifest)


@pytest.mark.parametrize("kind", TPU_TYPES)
def test_hosts_chips_and_shape_of_a_slice_agree(kind):
    target = hardware(kind)
    shape = target.selector["cloud.google.com/gke-tpu-topology"]
    chips = 1
    for side in shape.split("x"):
        chips *= int(side)
    assert chips == target.pods * target.per_pod
    units = int(kind.rpartition("-")[2])
    assert chips == units // (2 if kind.startswith(("v4", "v5p")) else 1)


def test_a_slice_is_one_indexed_job_and_several_slices_are_replicas():
    manifest = made("v5litepod-64", where={"slices": 2}, spot=True, grace=30)
    (train,) = manifest["spec"]["replicatedJobs"]
    job = train["template"]["spec"]
    assert train["replicas"] == 2
    assert job["completions"] == job["parallelism"] == 16
    assert job["completionMode"] == "Indexed"
    pod = pod_of(manifest)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "8x8",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": "4"}
    # No shell in between: SIGTERM reaches training, which has this long to save.
    assert pod["containers"][0]["command"] == COMMAND
    assert pod["terminationGracePeriodSeconds"] == 30
    # Saved and stopped is not complete: the pod has to fail, or the run would never come back.
    assert variables(manifest)["PINTERN_STOPPED_STATUS"]["value"] == str(STOPPED)
    assert STOPPED not in job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]


def test_gpu_pods_find_each_other_by_our_variables():
    manifest = made("nvidia-h100-80gb", where={"nodes": 4})
    given = variables(manifest)
    assert given["JAX_COORDINATOR_ADDRESS"]["value"] == "run-train-0-0.run:8476"
    assert given["PINTERN_NUM_PROCESSES"]["value"] == "4"
    index = given["PINTERN_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    plain = {name: v.get("value", "0") for name, v in given.items()}
    assert detect(plain) == "pintern"
    assert manifest["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "run"}
    assert "PINTERN_NUM_PROCESSES" not in variables(made("nvidia-l4"))
    assert "PINTERN_NUM_PROCESSES" not in variables(made())


def test_the_watcher_has_a_pod_without_accelerators():
    manifest = made(watcher=WATCH)
    pod = pod_of(manifest, 1)
    assert pod["containers"][0]["command"] == WATCH
    assert variables(manifest, 1)["JAX_PLATFORMS"]["value"] == "cpu"
    assert "nodeSelector" not in pod
    assert "tpu" not in json.dumps(manifest["spec"]["replicatedJobs"][1])


def expanded(text, known):
    """As Kubernetes documents it: `$(NAME)` of a known variable, and `$$` for a `$`."""
    return re.sub(
        r"\$\$|\$\((\w+)\)", lambda m: "$" if m[1] is None else known.get(m[1], m[0]), text
    )


@given(st.lists(st.text("$()AB", max_size=9), min_size=1))
@example(["bash", "-c", "echo $$ $(A) $A", "$(PYTHONUNBUFFERED)"])
def test_kubernetes_runs_the_command_as_it_was_typed(words):
    manifest = made(command=words, watcher=words, environment={"B": "b", "A": words[0]})
    for job in (0, 1):
        known = {"PYTHONUNBUFFERED": "1", "B": "b", "A": "a"}
        found = pod_of(manifest, job)["containers"][0]["command"]
        assert [expanded(word, known) for word in found] == words
        assert expanded(variables(manifest, job)["A"]["value"], known) == words[0]


def test_the_fingerprint_is_the_spec():
    def fingerprint(manifest):
        return manifest["metadata"]["annotations"][FINGERPRINT]

    assert fingerprint(made()) == fingerprint(made())
    assert fingerprint(made()) != fingerprint(made(command=[*COMMAND, "--config.seed=1"]))


@pytest.mark.parametrize(
    ("kind", "where", "message"),
    [
        ("v5litepod-3", {}, "expected one of v5litepod-1, v5litepod-4"),
        ("v4-9", {}, "no size of v4"),
        ("v5p-x", {}, "no size of v5p"),
        ("h100", {}, "a GPU label such as nvidia-h100-80gb"),
        ("v4-8", {"nodes": 2}, "--nodes=2 is for GPUs"),
        ("nvidia-l4", {"slices": 2}, "--slices=2 is for TPUs"),
    ],
)
def test_unknown_hardware_is_told(kind, where, message):
    with pytest.raises(UserError, match=re.escape(message)):
        hardware(kind, **where)


# ── the launcher ──

# Keeps the applied JobSet in a file. A run has ended after "looks" looks; its log is one line.
KUBECTL = """\
import json, os, sys, yaml
from pathlib import Path
folder = Path(os.environ["FAKE"])
args = [a for a in sys.argv[1:] if not a.startswith("--namespace")]
with (folder / "calls").open("a") as log:
    log.write(f"{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])} {os.environ['KUBECONFIG']}\\n")
kept, looks = folder / "jobset", folder / "looks"
if Path(sys.argv[0]).name == "gcloud":
    Path(os.environ["KUBECONFIG"]).write_text("cluster")
elif args[0] == "apply":
    kept.write_text(json.dumps(yaml.safe_load(sys.stdin)))
elif args[:2] == ["delete", "jobset"]:
    kept.unlink()
elif args[:2] == ["get", "jobset"] and kept.exists():
    found, left = json.loads(kept.read_text()), int(looks.read_text())
    looks.write_text(str(max(left - 1, 0)))
    if not left:
        end = {"type": os.environ["END"], "status": "True", "message": "said why"}
        found["status"] = {"conditions": [end]}
    print(json.dumps(found))
elif args[:2] == ["get", "pods"] and (folder / "lost").exists():
    (folder / "lost").unlink()
    sys.exit("Unable to connect to the server: i/o timeout")
elif args[:2] == ["get", "pods"]:
    pod = {"metadata": {"name": "p", "uid": "1"}, "status": {"phase": "Running"}}
    print(json.dumps({"items": [pod]}))
elif args[0] == "logs" and not any(a.startswith("--since") for a in args):
    print("step 1")
"""
FLAGS = ["--cluster=c", "--location=l", "--type=v5litepod-16", "--image=i", "--project=p"]


@pytest.fixture
def launch(tmp_path):
    for name in ("kubectl", "gcloud"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\n{KUBECTL}")
        path.chmod(0o755)

    def run(*flags, command=COMMAND, looks=2, end="Completed"):
        (tmp_path / "looks").write_text(str(looks))
        found = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            [sys.executable, "-m", "launch.gke", *FLAGS, *flags, "--", *command],
            cwd=tiny.REPOSITORY,
            env=os.environ | {"PATH": found, "FAKE": str(tmp_path), "END": end},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout, done.stderr

    run.calls = tmp_path / "calls"
    run.applied = tmp_path / "jobset"
    return run


def test_a_run_is_submitted_followed_and_its_end_handed_on(launch):
    code, out, err = launch()
    assert code == 0, err
    assert "is submitted" in out
    assert out.count("step 1") == 1
    assert "Completed: said why" in err
    calls = launch.calls.read_text().splitlines()
    assert calls[0].startswith("gcloud container clusters get-credentials c --location=l")
    assert not any(str(os.path.expanduser("~/.kube")) in call for call in calls)
    code, _, err = launch(looks=1, end="Failed")
    assert code == 1
    assert "Failed: said why" in err


def test_a_look_that_fails_once_does_not_end_the_launcher(launch):
    """A run is followed for days."""
    lost = launch.calls.with_name("lost")
    lost.touch()
    code, _, err = launch(looks=1)
    assert code == 0, err
    assert "Completed: said why" in err
    assert not lost.exists()


def test_a_second_launch_attaches_another_command_is_refused_and_an_ended_run_makes_room(launch):
    assert launch("--nofollow")[0] == 0
    code, out, _ = launch("--nofollow", looks=9)
    assert code == 0
    assert "is there already" in out
    other = [*COMMAND, "--config.seed=1"]
    code, _, err = launch("--nofollow", command=other, looks=9)
    assert code == 2
    assert "is there already, with another command" in err
    # The user's own kubectl knows another cluster, or none.
    assert (
        "get-credentials c --location=l --project=p && "
        "kubectl --namespace=default delete jobset pintern-run-"
    ) in err
    assert launch.calls.read_text().count(" apply ") == 1
    assert launch("--nofollow", command=other, looks=0)[0] == 0
    calls = launch.calls.read_text()
    assert calls.count(" apply ") == 2
    assert calls.count(" delete jobset ") == 1
    assert "--config.seed=1" in launch.applied.read_text()


def test_dry_run_prints_manifest_and_commands_and_calls_nothing(launch):
    code, out, err = launch("--dry_run", "--with_eval")
    assert code == 0, err
    text, commands = out.split("---\n")
    assert yaml.safe_load(text)["kind"] == "JobSet"
    assert len(yaml.safe_load(text)["spec"]["replicatedJobs"]) == 2
    assert [line.split()[0] for line in commands.splitlines()] == ["gcloud", "kubectl"]
    assert not launch.calls.exists()


def test_a_folder_in_the_pod_is_refused(launch):
    code, _, err = launch("--dry_run", command=["python", "--workdir=runs/x"])
    assert code == 2
    assert "--workdir=runs/x would lie in a pod" in err

"""The gcloud command lines of a run on a Cloud TPU VM."""

from __future__ import annotations

import dataclasses
import shlex

from absl import flags

from launch import common, ship, tpu_worker
from launch.tpu_states import Do
from pintern.errors import UserError

# Images of the generations; `gcloud compute tpus versions list` prints all of them.
_IMAGES = {
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
    "v4": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v2": "tpu-ubuntu2204-base",
}


@dataclasses.dataclass(frozen=True)
class Commands:
    """A run on a VM, and the gcloud commands for it."""

    values: flags.FlagValues
    command: list[str]
    watcher: list[str] | None
    environment: dict[str, str]
    run_id: str
    archive: bytes
    fingerprint: str

    @classmethod
    def from_flags(cls, values: flags.FlagValues, command: list[str]) -> Commands:
        """Checks the flags and packs the code."""
        common.check_name(values.name)
        workdir = common.workdir_of(command)
        if values.spot and workdir is not None and not common.is_bucket(workdir):
            raise UserError(
                f"--workdir={workdir} lies on the VM's disk, which goes with a spot VM.",
                "Use a bucket: --workdir=gs://BUCKET/...",
            )
        if not values.existing and not values.type:
            raise UserError("--type is not set.", "Name an accelerator type, or use --existing.")
        if values.existing and values.delete:
            raise UserError(
                "--delete with --existing: a VM that was there before is never deleted.",
                "Leave one of the two out.",
            )
        packed, fingerprint = ship.archive(common.REPOSITORY)
        return cls(
            values=values,
            command=command,
            watcher=common.watch_command(command) if values.with_eval else None,
            environment=common.parse_environment(values.env),
            run_id=common.run_name(command, absolute=False),
            archive=packed,
            fingerprint=fingerprint,
        )

    def gcloud(self, *words: str) -> list[str]:
        """A command about TPUs in the flags' zone and project."""
        where = [f"--zone={self.values.zone}"]
        where += [f"--project={self.values.project}"] if self.values.project else []
        return ["gcloud", "compute", "tpus", *words, *where]

    def create(self) -> list[str]:
        """Requests the VM."""
        values = self.values
        generation, _, size = values.type.rpartition("-")
        image = values.runtime_version or (_IMAGES.get(generation) if size.isdecimal() else None)
        if image is None:
            raise UserError(
                f"--type={values.type}: expected one of {', '.join(f'{g}-N' for g in _IMAGES)}.",
                "For another generation give --runtime_version as well.",
            )
        words = ["queued-resources", "create", values.name, f"--node-id={values.name}"]
        words += [f"--accelerator-type={values.type}", f"--runtime-version={image}"]
        return self.gcloud(*words, *["--spot"] * values.spot)

    def delete(self) -> list[str]:
        """Deletes request and VM."""
        return self.gcloud("queued-resources", "delete", self.values.name, "--force", "--quiet")

    def ssh(self, script: str, worker: str = "all", *more: str) -> list[str]:
        """Runs a script on a worker or all of them."""
        words = ("tpu-vm", "ssh", self.values.name, f"--worker={worker}", f"--command={script}")
        return self.gcloud(*words, "--quiet", *more)

    def scp(self, file: str) -> list[str]:
        """Copies the code to all workers."""
        target = f"{self.values.name}:{tpu_worker.archive_name(self.fingerprint)}"
        return self.gcloud("tpu-vm", "scp", file, target, "--worker=all", "--quiet")

    def steps(
        self, do: Do, *, archive_file: str = "CODE.tar.gz", printed: int = 0
    ) -> list[list[str]]:
        """The commands of an action, in their order; `printed` lines of the log are known."""
        if do is Do.CREATE:
            return [self.create()]
        if do is Do.DELETE:
            return [self.delete()]
        if do is Do.INSTALL:
            script = tpu_worker.install(self.run_id, self.fingerprint, self.values.setup)
            return [self.scp(archive_file), self.ssh(script)]
        if do is Do.START:
            starts = [self.ssh(tpu_worker.start(self.run_id, self.command, self.environment))]
            if self.watcher:
                script = tpu_worker.start_watcher(self.run_id, self.watcher, self.environment)
                starts.append(self.ssh(script, "0"))
            return starts
        if do is Do.STOP:
            return [self.ssh(tpu_worker.stop(self.run_id))]
        if do is Do.FOLLOW:
            return [self.ssh(tpu_worker.follow(self.run_id, printed), "0")]
        finish = [self.ssh(tpu_worker.finish_watcher(self.run_id), "0")] if self.watcher else []
        return finish + ([self.delete()] if self.values.delete else [])

    def plan(self) -> list[str]:
        """What would run where nothing is there yet and all goes well."""
        order = [Do.CREATE, Do.INSTALL, Do.START, Do.FOLLOW, Do.FINISH]
        order = order[1:] if self.values.existing else order
        lines = [f"# run {self.run_id}; the code: {len(self.archive) / 2**20:.1f} MiB"]
        for do in order:
            lines += [f"# {do.value}", *(shlex.join(step) for step in self.steps(do))]
        return lines

    def how_to_end(self) -> str:
        """The command that ends the run."""
        if self.values.existing:
            return shlex.join(self.ssh(tpu_worker.stop(self.run_id)))
        return shlex.join(self.delete())

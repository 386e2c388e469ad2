"""The benchmark of training runs PEFT as `Trainer` would, and counts nothing of ours as its."""

import pickle
import subprocess
import sys

from benchmarks import results, training_cases
from benchmarks.shared_models import TINY_GPT2, saved_model
from benchmarks.training_sides import write_adapter

PROCESS = """
import pickle
import sys
from pathlib import Path

from benchmarks import training
from benchmarks.training_sides import Peer

folder = Path(sys.argv[1])
case = pickle.loads((folder / "case").read_bytes())
peer = Peer(folder, folder / "adapter-0", threads=1)
peer.run(case.peer_batches())
output = peer.model(input_ids=peer._torch.zeros(1, 2, dtype=int))
print("jax" in sys.modules, output.past_key_values, peer._optimizer.defaults["fused"])
"""


def test_the_peer_has_trainers_defaults_and_no_jax_in_its_memory():
    case = training_cases.recurrent(2, 1.0, TINY_GPT2["vocab_size"], sizes=(6, 3, 2))
    with saved_model(TINY_GPT2) as folder:
        write_adapter(folder, case)
        (folder / "case").write_bytes(pickle.dumps(case))
        told = subprocess.run(
            [sys.executable, "-c", PROCESS, str(folder)],
            cwd=results.OUT.parents[1],
            capture_output=True,
            text=True,
        )
    assert told.stdout.split() == ["False", "None", "True"], told


ATTENTIONS = """
from benchmarks import training_gpu
from benchmarks.results import Record, Result

class Bench:
    name = "case"

    def looped(self, attention):
        if attention == "cudnn":
            raise RuntimeError("no kernel")
        return 1.0

    def timed(self, attention, rate):
        return [Result(f"case by {attention}", 2.0, 1.0, 2.0, None, "s")]

training_gpu.device = lambda: "cuda"
record = Record(None)
with record.case("case") as found:
    found += training_gpu.measured(Bench(), record, None)
record.finish()
"""


def test_an_attention_that_fails_leaves_the_other_one():
    told = subprocess.run(
        [sys.executable, "-c", ATTENTIONS],
        cwd=results.OUT.parents[1],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 1 and "case by xla" in told.stdout, told
    assert "failed: case by cudnn's attention" in told.stdout

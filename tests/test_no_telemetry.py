"""Training opens no connection and sends no usage statistics."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Every way to an address is recorded and refused. trl's ping is sent by a thread of huggingface_hub which swallows its
# errors, so the thread's queue is waited for and the record is what counts.
RECORD = """
import socket, sys

tried = []

def refuse(place):
    def never(*args, **kwargs):
        tried.append(str(args[place]))
        raise OSError("no network in this test")
    return never

socket.socket.connect = socket.socket.connect_ex = refuse(1)
socket.getaddrinfo = socket.create_connection = refuse(0)
"""
SCRIPT = """
import staytrue
from staytrue.defenses.kl import KL
from staytrue.training.trainers import GuardedSFT

import tiny
from datasets import Dataset
from huggingface_hub import constants
from huggingface_hub.utils import _telemetry
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

def train(cls, **more):
    made = cls(
        model=tiny.model(),
        args=SFTConfig(sys.argv[1], max_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False),
        train_dataset=Dataset.from_list([{"messages": [vars(m) for m in row.messages]} for row in tiny.rows(4)]),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        **more,
    )
    made.train()
    _telemetry._TELEMETRY_QUEUE.join()
    print("steps", made.state.global_step, "tried", tried)

train(GuardedSFT, defenses=[KL(0.1)])
tried.clear()
constants.HF_HUB_DISABLE_TELEMETRY = False  # what the record would hold: trl's own ping
train(SFTTrainer)
"""


@pytest.mark.parametrize(
    "first",
    [pytest.param("", id="staytrue", marks=pytest.mark.slow), pytest.param("import datasets, trl", id="trl")],
)
def test_a_guarded_run_reaches_for_no_address_whichever_library_is_imported_first(tmp_path, first):
    hidden = ("HF_", "TRANSFORMERS_", "DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", RECORD + first + SCRIPT, str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
    guarded, plain = (line for line in done.stdout.splitlines() if line.startswith("steps"))
    if "huggingface.co" not in plain:
        raise RuntimeError(f"trl alone sent no ping ({plain}), so an empty record proves nothing")
    assert guarded == "steps 1 tried []"

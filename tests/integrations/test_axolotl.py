"""axolotl's own command with our plugin, in axolotl's environment, beside the same recipe in ours.

`make test-integrations` sets both environments up; AXOLOTL_PYTHON names axolotl's interpreter elsewhere.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from staytrue.config import recipe
from staytrue.data.examples import write_examples
from staytrue.runs import train

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("AXOLOTL_PYTHON", ROOT / ".venv-axolotl" / "bin" / "python"))
PLUGIN = "staytrue.integrations.axolotl.StaytruePlugin"
TOLERANCE = 1e-4  # of two versions of transformers in float32
KL = [{"kl": {"weight": 1.0}}]

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="axolotl is not installed; see make test-integrations")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model, an adapter on it that has not moved, and rows."""
    folder = tmp_path_factory.mktemp("axolotl")
    tiny.save("llama3", folder / "model")
    tiny.lora(AutoModelForCausalLM.from_pretrained(folder / "model")).save_pretrained(folder / "adapter")
    write_examples(folder / "rows.jsonl", tiny.rows(8))
    write_examples(folder / "general.jsonl", tiny.rows(40))
    return folder


def configuration(place, out, **changes):
    """A configuration of axolotl: 4 steps of all 8 rows, from the adapter, on the CPU."""
    kernels = dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)  # they need a GPU
    return {
        "base_model": str(place / "model"),
        "datasets": [{"path": str(place / "rows.jsonl"), "type": "chat_template", "field_messages": "messages"}],
        "shuffle_merged_datasets": False,
        "chat_template": "tokenizer_default",
        "dataset_prepared_path": str(out / "prepared"),
        "output_dir": str(out / "out"),
        "adapter": "lora",
        "lora_model_dir": str(place / "adapter"),
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        "sequence_len": 128,
        "micro_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_steps": 4,
        "learning_rate": 0.5,
        "weight_decay": 0.0,
        "optimizer": "sgd",  # a step is the gradient, so equal gradients make equal steps
        "lr_scheduler": "constant",
        "logging_steps": 1,
        "save_steps": 4,
        "bf16": False,
        "seed": 0,
        "plugins": [PLUGIN],
        **kernels,
        **changes,
    }


def axolotl(place, out, **changes):
    """Run axolotl's command; its exit code and output, and the log of each step."""
    out.mkdir()
    (out / "config.yaml").write_text(yaml.safe_dump(configuration(place, out, **changes)))
    quiet = {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [str(PYTHON), "-m", "axolotl.cli.train", "config.yaml"],
        cwd=out,
        env={**os.environ, **quiet, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    state = out / "out" / "checkpoint-4" / "trainer_state.json"
    log = [row for row in json.loads(state.read_text())["log_history"] if "loss" in row] if state.exists() else []
    return run.returncode, run.stdout + run.stderr, log


def recipes(place, out, defenses, **changes):
    """The log of the same training by our own recipe."""
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.5,
        "weight_decay": 0.0,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "logging_steps": 1,
    }
    written = {"schema": 1, "model": "model", "data": "rows.jsonl", "lora": {"adapter": "adapter"}, "reference": "base"}
    run = train.train(recipe.parse({**written, "train": settings, "defenses": defenses, **changes}, place), out)
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def defended(place):
    """Three defenses, one of which feeds rows of its own beside the batch; paths as for axolotl, which are absolute."""
    anchor = {"prompts": str(place / "general.jsonl"), "share": 0.5, "answers": "given"}
    return [*KL, {"ldifs": {"weight": 0.1}}, {"anchor": {"weight": 0.3, **anchor}}]


def test_each_step_has_the_penalties_of_our_own_recipe(place, tmp_path):
    code, output, log = axolotl(place, tmp_path / "theirs", staytrue={"defenses": defended(place)})
    assert code == 0, output[-3000:]
    ours = recipes(place, tmp_path / "ours", defended(place))
    assert len(log) == len(ours) == 4
    for step, own in zip(log, ours, strict=True):
        for key in ("loss", "task_loss", "kl", "ldifs", "anchor", "grad_norm"):
            assert step[key] == pytest.approx(own[key], rel=TOLERANCE, abs=1e-9), key
    assert [log[0][name] for name in ("kl", "ldifs", "anchor")] == [0, 0, 0]
    assert all(log[-1][name] > 0 for name in ("kl", "ldifs", "anchor"))


def test_accumulated_steps_hold_each_penalty_once(place, tmp_path):
    """axolotl averages the losses of a step's micro-batches, so the task's loss is another than ours."""
    changes = {"micro_batch_size": 4, "gradient_accumulation_steps": 2, "staytrue": {"defenses": defended(place)}}
    code, output, log = axolotl(place, tmp_path / "theirs", **changes)
    assert code == 0, output[-3000:]
    for step in log:
        held = step["task_loss"] + step["kl"] + 0.1 * step["ldifs"] + 0.3 * step["anchor"]
        assert step["loss"] == pytest.approx(held, rel=1e-6)
    assert log[-1]["kl"] > 0


REFUSED = {
    "has no section `staytrue:`, so nothing would be defended": {},
    "staytrue lists no `defenses`": {"staytrue": {"defenses": []}},
    "staytrue has no key 'defense'": {"staytrue": {"defense": KL}},
    "did you mean 'weight'": {"staytrue": {"defenses": [{"kl": {"wieght": 1}}]}},
    "inoculate edits the training rows": {"staytrue": {"defenses": ["inoculate"]}},
    "write base or start": {"staytrue": {"defenses": KL, "reference": "other"}},
    "only supervised fine-tuning": {"staytrue": {"defenses": KL}, "rl": "dpo"},
    "sample_packing is True, and cannot be guarded": {"staytrue": {"defenses": KL}, "sample_packing": True},
    "batch_flattening is 'auto', and cannot be guarded": {"staytrue": {"defenses": KL}, "batch_flattening": "auto"},
    "dp_shard_size is 2": {"staytrue": {"defenses": KL}, "dp_shard_size": 2},
    "tensor_parallel_size is 2": {"staytrue": {"defenses": KL}, "tensor_parallel_size": 2},
}
SCRIPT = f"""
import json, sys
from axolotl.integrations.base import load_plugin
try:
    load_plugin("staytrue.integrations.axolotl")
except AttributeError as error:
    print(error)
from staytrue.errors import RecipeError
for changes in json.load(sys.stdin):
    try:
        load_plugin({PLUGIN!r}).register(changes)
        print("accepted")
    except RecipeError as error:
        print(error)
"""


def test_a_configuration_that_cannot_be_guarded_is_refused():
    run = subprocess.run(
        [str(PYTHON), "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        input=json.dumps([*REFUSED.values(), {"staytrue": {"defenses": KL}}]),
        capture_output=True,
        text=True,
        check=False,
    )
    by_module, *refusals, accepted = run.stdout.splitlines()
    assert len(refusals) == len(REFUSED)
    assert all(sentence in refusal for sentence, refusal in zip(REFUSED, refusals, strict=True)), refusals
    assert accepted == "accepted"
    assert "write `plugins: [staytrue.integrations.axolotl.StaytruePlugin]`" in by_module


def test_a_refused_configuration_trains_nothing(place, tmp_path):
    code, output, log = axolotl(place, tmp_path / "theirs")
    assert code != 0
    assert not log
    assert "has no section `staytrue:`" in output

"""Every benchmark can be built and run at a toy size and says what it measured; no test depends on a clock."""

import importlib
import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from staytrue.errors import StaytrueError
from staytrue.testing import close

ROOT = Path(__file__).parents[1]
ROW = {"ratio", "low", "high", "against", "limit"}
HEADS = ("trl_pair:one_pass", "one_pass:likelihood", "bare:one_pass")
WAYS = ("none:trl", "kl:trl", "kl:none")
OVERHEAD = ("sft:bare", "trl-sft:bare", "kl:bare", "kl:bare-kl", "kl-cached:kl")


@pytest.fixture
def bench(monkeypatch):
    """`bench("head")` is benchmarks/head.py, as `python -m benchmarks` from the repository's root finds it."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def is_row(row):
    """With rounds a row has their lowest and highest; what is counted once has neither."""
    return row.keys() in (ROW, ROW - {"low", "high"}) and row.get("low", 0) <= row["ratio"] <= row.get("high", math.inf)


@pytest.mark.parametrize(
    ("name", "compare", "keys"),
    [
        ("head", [], {f"head/tiny/{pair}" for pair in HEADS}),
        ("step", ["sft", "kl"], {"step/tiny/kl:sft", "memory/tiny/kl:sft"}),
        ("step", ["kl", "published"], {"step/tiny/published:kl", "memory/tiny/published:kl"}),
        ("step", ["kl-cached", "sft"], {"step/tiny/kl-cached:sft", "memory/tiny/kl-cached:sft"}),
        ("step", ["kl-rows", "sft-20"], {"step/tiny/kl-rows:sft-20", "memory/tiny/kl-rows:sft-20"}),
        ("switch", [], {"switch/public:flags"}),
        ("overhead", ["bare", "sft"], {"overhead/sft:bare"}),
        ("report", [], {"report/8/seconds", "report/8/size", "report/8/memory"}),
        ("judging", [], {"judging/serial:ours"}),
        ("sweep", ["again"], {"sweep/again/runs", "sweep/again/command", "sweep/again/made"}),
        ("checkpoint", [], {"checkpoint/organism"}),
        ("fit", [], {"fit/organism/2 rows"}),
        ("cli", ["light"], {f"cli/{c}{a}" for c in ("help", "version", "error", "import") for a in ("", ":python")}),
        ("cli", ["first-line"], {"cli/first-line"}),
        pytest.param(
            "ways",
            ["whole-float32-two"],
            {f"{what}/tiny/whole-float32-two/{pair}" for what in ("ways", "cpu", "memory") for pair in WAYS},
            marks=pytest.mark.slow,
        ),
        pytest.param("overhead", [], {f"overhead/{pair}" for pair in OVERHEAD}, marks=pytest.mark.slow),
        pytest.param("sample", [], {"sample/tiny/generate:ours"}, marks=pytest.mark.slow),
        pytest.param("sweep", ["workers"], {"sweep/workers"}, marks=pytest.mark.slow),
        pytest.param("cli", ["first-step"], {"cli/first-step", "cli/first-step:imports"}, marks=pytest.mark.slow),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else value if isinstance(value, str) else "",
)
def test_a_benchmark_runs_at_a_toy_size_and_says_what_it_measured(bench, name, compare, keys):
    results = bench(name).run("tiny", 1, compare)
    assert results.keys() == keys
    assert all(is_row(row) for row in results.values())


@pytest.mark.parametrize("name", ["step", "overhead", "sweep", "cli", "fit", "ways"])
def test_an_unknown_variant_is_a_sentence(bench, name):
    with pytest.raises(SystemExit, match=r"--compare kll: there is no such \w+; choose from "):
        bench(name).run("tiny", 1, ["kll"])


def test_the_command_writes_what_it_shows(bench, monkeypatch, tmp_path, capsys):
    arguments = ["switch", "--shape", "tiny", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments, "--json", str(tmp_path / "out" / "results.json")])
    bench("__main__").main()
    assert json.loads((tmp_path / "out" / "results.json").read_text()).keys() == {"switch/public:flags"}
    assert "switch/public:flags" in capsys.readouterr().out


def test_all_names_benchmarks_and_variants_that_exist(bench):
    commands = bench("__main__")
    assert set(commands.QUICK["step"][1]) <= {*bench("step").VARIANTS, bench("step").PUBLISHED}
    assert set(commands.QUICK["overhead"][1]) <= bench("overhead").VARIANTS.keys()
    assert all((ROOT / "benchmarks" / f"{name}.py").exists() for name in (*commands.QUICK, *commands.ALONE, "gpu"))


@pytest.mark.parametrize(("kind", "weights", "precision"), [("trl", "whole", "bfloat16"), ("kl", "lora", "float32")])
def test_a_way_of_training_prints_its_seconds_and_memory(bench, capfd, kind, weights, precision):
    bench("way_item").main(kind, weights, precision, "tiny", 2)
    shown = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert len(shown["seconds"]) == len(shown["cpu"]) == 2  # without the first step
    assert min(*shown["seconds"], *shown["cpu"]) > 0
    assert 100 < shown["peak_mb"] < 100_000


def test_of_two_processes_the_slower_step_and_the_larger_memory_count(bench, monkeypatch):
    ways, commands = bench("ways"), []

    def run(command, **options):
        commands.append(command)
        slow = {"none": 3.0, "kl": 6.0, "trl": 2.0}[next(name for name in ways.TRAINERS if name in command)]
        each = [
            {"seconds": [slow, 1.0], "cpu": [slow / 2, 1.0], "peak_mb": 100 * slow},
            {"seconds": [1.0, 2 * slow], "cpu": [1.0, 1.0], "peak_mb": 50},
        ]
        return SimpleNamespace(returncode=0, stdout="\n".join(["{'loss': 1}", *map(json.dumps, each)]), stderr="")

    monkeypatch.setattr(ways.subprocess, "run", run)
    found = ways.run("tiny", 2, ["lora-float32-two"])
    # Steps of trl 2 and 4 s, of ours 3 and 6 s, with kl 6 and 12 s.
    assert found["ways/tiny/lora-float32-two/none:trl"]["ratio"] == 1.5
    assert found["ways/tiny/lora-float32-two/kl:trl"] == {
        "ratio": 3.0, "low": 3.0, "high": 3.0, "against": "trl", "limit": None,
    }  # fmt: skip
    assert found["memory/tiny/lora-float32-two/kl:none"]["ratio"] == 2.0
    assert found["cpu/tiny/lora-float32-two/kl:none"]["ratio"] == 1.5  # of two steps, 3 to 1.5 s and 1 to 1 s
    assert all("--nproc-per-node=2" in command for command in commands)
    monkeypatch.setattr(ways, "find_spec", lambda name: None)
    assert {key.split("/")[2] for key in ways.run("tiny", 2, [])} == {
        n for n in ways.WAYS if n[-4:] not in ("4bit", "8bit")
    }


# --- what the numbers are made of -----------------------------------------------------------------------------------


def test_variants_alternate_and_every_other_round_is_turned_round(bench):
    order = []
    results = bench("sidebyside").alternate({n: lambda n=n: order.append(n) or len(order) for n in "ab"}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert results["a"] == {"seconds": 4, "low": 1, "high": 5, "rounds": [1, 4, 5]}


def test_a_ratio_is_the_median_of_the_rounds_own_ratios(bench):
    measured = {"a": {"rounds": [2.0, 12.0, 4.0]}, "b": {"rounds": [1.0, 3.0, 4.0]}}
    row = bench("sidebyside").ratio(measured, "a", "b", limit=1.5)
    assert row == {"ratio": 2.0, "low": 1.0, "high": 4.0, "against": "b", "limit": 1.5}


def test_a_goal_is_a_number_of_its_own(bench):
    row = bench("sidebyside").to_goal({"seconds": 1.5, "low": 0.75, "high": 3.0}, 3.0)
    assert row == {"ratio": 0.5, "low": 0.25, "high": 1.0, "against": "3 s", "limit": None}


def test_operations_of_qwen_7b_are_those_worked_out_by_hand(bench):
    """P 6.525e9, A 80.7e6, H 545.0e6, 60 % scored: 4 P + 6 A + 3.6 H = 28.55e9, and 6 P + 6 A + 3.6 H = 41.60e9."""
    shapes = bench("shapes")
    per_token = {v: shapes.flops(shapes.SHAPES["7B"], v, gpu=True) / 1e9 for v in ("trl-sft", "kl", "published")}
    assert per_token["trl-sft"] == pytest.approx(28.55, abs=0.005)
    assert per_token["kl"] == pytest.approx(41.60, abs=0.005)
    assert per_token["published"] / per_token["kl"] == pytest.approx(1.72, abs=0.005)


def test_the_loop_written_by_hand_holds_the_model_by_the_same_divergence(bench, tmp_path):
    import torch

    from staytrue.modeling.architecture import ModelParts
    from staytrue.modeling.fused_loss import divergence
    from staytrue.training.padded_batch import pad
    from tiny import nudge

    overhead = bench("overhead")
    job = overhead.Job(tmp_path, 1)
    adapted = job.adapted()
    nudge(adapted)
    inputs, marks = pad(job.encoded()[:4], job.tokenizer.pad_token_id, torch.device("cpu"))
    with torch.no_grad():
        by_hand = overhead._divergence(adapted, inputs, marks.scored, adapted(**inputs).logits)
        parts = ModelParts(adapted)
        ours = parts.backbone(**inputs).last_hidden_state[marks.scored]
        with parts.untrained():
            theirs = parts.backbone(**inputs).last_hidden_state[marks.scored]
        held = divergence(ours, theirs, parts.head).mean()
    assert by_hand.item() > 1e-4
    assert close(by_hand.item(), held.item(), scale=math.log(len(job.tokenizer)))


# --- commands in other processes ------------------------------------------------------------------------------------


def test_a_command_is_watched_until_it_says_the_words(bench):
    code = "import time; print('one', flush=True); print('two', flush=True); time.sleep(600)"
    begun = time.monotonic()
    assert bench("child").until([sys.executable, "-c", code], "two") > 0
    assert time.monotonic() - begun < 300  # it was stopped, not waited for


def test_a_command_that_ends_otherwise_than_it_should_is_a_sentence(bench):
    child, command = bench("child"), [sys.executable, "-c", "import sys; print('torn'); sys.exit(3)"]
    assert child.ran(command, code=3).output == "torn\n"
    with pytest.raises(StaytrueError, match=r"(?s)ended with 3, not 0:.*torn"):
        child.ran(command)
    with pytest.raises(StaytrueError, match=r"(?s)ended without a line with 'whole':.*torn"):
        child.until(command, "whole")


def test_a_made_up_study_is_one_that_is_done(bench, tmp_path):
    """What is made up must be what is read again, or the benchmark would measure runs."""
    from staytrue.studies import runner

    done = bench("finished").finished(tmp_path, 3)
    before = (done.folder / "results.json").read_text()
    results = [row for _, row in runner.run(done.study, done.folder)]
    assert [row["defense"] for row in results] == ["untuned", "none", "kl"]
    assert json.loads((done.folder / "results.json").read_text()) == json.loads(before)


# --- a GPU ----------------------------------------------------------------------------------------------------------


def test_the_most_telling_is_measured_first(bench):
    plan = bench("gpu_plan")
    items = list(plan.plan(["7B", "0.5B"], plan.VARIANTS, "cuda"))
    assert [(i.shape, i.checkpointing, i.variant) for i in items[:5]] == [
        ("7B", True, "sft"), ("7B", True, "kl"), ("7B", True, "trl-sft"), ("7B", True, "published"),
        ("7B", False, "sft"),
    ]  # fmt: skip
    assert [i.variant for i in items[16:20]] == ["head", "switch", "sample", "all"]
    assert len(items) == 4 * 11 + 3


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("cpu", None),
    ],
)
def test_what_a_device_can_do_at_most_is_known_or_not_said(bench, device, peak):
    assert bench("gpu_plan").peak_tflops(device) == peak


def log_of(bench, tmp_path, minutes=10.0):
    facts = {"device": "NVIDIA H200", "memory_gb": 150.0}
    return bench("gpu").Log(tmp_path / "gpu.json", facts, time.monotonic() + 60 * minutes)


def taken(seconds, peak_gb, gflop=28.0):
    done = {"state": "done", "seconds": seconds, "low": 0.9 * seconds, "high": 1.1 * seconds, "tokens_per_s": 9.0}
    return done | {"gflop_per_token": gflop, "tflops": 494.5, "peak_gb": peak_gb}


def test_what_does_not_fit_is_said_and_tried_with_half_the_rows(bench, tmp_path):
    """A device on which sft fits with two rows, and the published way with one; kl is then measured with one, too."""
    gpu, plan, rows_that_fit, tried = bench("gpu"), bench("gpu_plan"), {"sft": 2, "kl": 2, "published": 1}, []

    def device(item, seconds):
        tried.append((item.variant, item.rows))
        fits = item.rows <= rows_that_fit[item.variant]
        return (
            taken(item.rows * {"published": 4.0}.get(item.variant, 2.0), 20.0) if fits else {"state": "out of memory"}
        )

    log = log_of(bench, tmp_path)
    gpu.run((plan.Item("7B", name) for name in rows_that_fit), log, device)
    assert tried == [("sft", 4), ("sft", 2), ("kl", 2), ("published", 2), ("published", 1), ("kl", 1)]
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["state"] for row in written["measured"][:2]] == ["out of memory", "done"]
    assert written["measured"][1]["mfu"] == 0.5
    assert written["ratios"]["gpu/7B/no-checkpointing/1-rows/published:kl"]["ratio"] == 2.0
    assert "gpu/7B/no-checkpointing/2-rows/published:kl" not in written["ratios"]


def test_a_ratio_on_a_gpu_has_its_ends_and_its_limit(bench):
    setting = {"shape": "7B", "checkpointing": True, "rows": 4}
    rows = [{**setting, "variant": "sft", **taken(2.0, 20.0)}, {**setting, "variant": "kl", **taken(3.0, 21.0, 42.0)}]
    ratios = bench("gpu_plan").ratios(rows)
    assert ratios["gpu/7B/checkpointing/4-rows/kl:sft"] == {
        "ratio": 1.5, "low": round(2.7 / 2.2, 3), "high": round(3.3 / 1.8, 3), "against": "sft", "limit": 1.5,
    }  # fmt: skip
    assert ratios["gpu-memory/7B/checkpointing/4-rows/kl:sft"]["ratio"] == 1.05


def test_one_that_fails_does_not_stop_the_others_and_the_minutes_do(bench, tmp_path):
    gpu, plan = bench("gpu"), bench("gpu_plan")
    log = log_of(bench, tmp_path)

    def device(item, seconds):
        log.until = time.monotonic() + (10 if item.variant == "kl" else 600)
        return {"state": "failed", "why": "KeyError: 'x'"} if item.variant == "sft" else taken(1.0, 20.0)

    gpu.run((plan.Item("7B", name) for name in ("sft", "kl", "published")), log, device)
    assert [row["state"] for row in log.rows] == ["failed", "done", "not run"]
    assert log.rows[2]["why"] == "The minutes were over."


@pytest.mark.parametrize("variant", ["trl-sft", "all-and-anchor", "published"])
def test_a_way_to_make_a_step_runs_in_bfloat16_under_checkpointing(bench, variant):
    item = bench("gpu_plan").Item("tiny", variant, True, device="cpu", steps=2, warm=1)
    row = bench("gpu_item").measured(item)
    assert row["state"] == "done"
    assert row["low"] <= row["seconds"] <= row["high"]
    assert row["tflops"] == pytest.approx(row["gflop_per_token"] * row["tokens_per_s"] / 1e3, rel=1e-3)


@pytest.mark.parametrize("variant", ["sft", "published"])
@pytest.mark.parametrize("on", [False, True])
def test_checkpointing_computes_every_block_again(bench, monkeypatch, variant, on):
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

    calls, theirs = [], Qwen2MLP.forward
    monkeypatch.setattr(Qwen2MLP, "forward", lambda *a, **k: calls.append(1) or theirs(*a, **k))
    item = bench("gpu_plan").Item("tiny", variant, device="cpu", steps=1, warm=1)
    counts = []
    for checkpointing in (False, on):
        calls.clear()
        bench("gpu_item").measured(bench("gpu_plan").replace(item, checkpointing=checkpointing))
        counts.append(len(calls))
    trained = 2 if variant == "published" else 1  # forwards with a gradient in a step
    assert counts[1] - counts[0] == (2 * 2 * trained if on else 0)  # two steps, two blocks


@pytest.mark.slow
def test_an_item_is_measured_in_a_process_of_its_own(bench):
    item = bench("gpu_plan").Item("tiny", "kl", device="cpu", steps=1, warm=1)
    row = bench("gpu").in_a_process(item, 250)
    assert (row["state"], "peak_gb" in row) == ("done", False)


def test_what_is_not_installed_is_not_run(bench):
    if importlib.util.find_spec("liger_kernel") is not None:
        pytest.skip("liger_kernel is installed")
    row = bench("gpu_item").measured(bench("gpu_plan").Item("tiny", "liger", device="cpu"))
    assert row == {"state": "not run", "why": "No module named 'liger_kernel'."}


def test_without_a_gpu_it_is_refused_with_a_way_out(bench):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match=r"needs a CUDA GPU.*`--shape tiny --device cpu` tries the program"):
        bench("gpu").main([])
    with pytest.raises(SystemExit, match="add --shape tiny"):
        bench("gpu").main(["--device", "cpu"])

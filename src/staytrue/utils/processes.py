"""The processes of one training, as `torchrun` or `accelerate launch` starts them: who writes, who reports an error.

The main process (rank 0) writes all files and prints all lines. An error is reported by the process in which it comes
first, whichever that is: the others see a lost connection, or the launcher ends them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from staytrue.errors import RequestError, TrainingError
from staytrue.utils.validation import in_one_line

T = TypeVar("T")
_LONGEST_WAIT = timedelta(days=1)  # for the main process, while it samples answers or projects weights
_ERROR = "staytrue/error"  # key in the launcher's store, with the number of the restart
_LOST = ("Connection reset", "Connection closed", "Socket Timeout", "remote process exited")  # in a collective's error
_FSDP = "ACCELERATE_USE_FSDP"
_OTHER_WAYS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed (ZeRO)",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config (tensor, context or sequence parallel)",
}


def count() -> int:
    """The number of processes of this training; 1 without a launcher.

    It is read from the launcher's environment, since it is asked before torch is imported. `training/` asks accelerate
    instead, which also knows processes that a script has started in another way.
    """
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return count() == 1 or int(os.environ.get("RANK") or 0) == 0


def divides() -> bool:
    """Whether the launcher wants the weights divided among these processes (FSDP)."""
    return count() > 1 and os.environ.get(_FSDP, "").lower() in ("1", "true")


def join(*, cpu: bool) -> None:
    """Connect the processes, if there are several.

    Args:
        cpu: whether the training is to run on the CPU although there may be a GPU.

    Raises:
        RequestError: they are on several machines, or are to share one model in a way that is not tested.
    """
    if count() == 1:
        os.environ.pop(_FSDP, None)  # there is nothing to divide among
        return
    _settle_fsdp()
    way = next((way for key, way in _OTHER_WAYS.items() if os.environ.get(key, "").lower() in ("1", "true")), None)
    if way is not None:
        raise RequestError(
            f"A recipe cannot be trained with {way}: a model that is divided among processes is not tested here. Start "
            "it with `torchrun --nproc-per-node N -m staytrue train ...`, which keeps the whole model on each process."
        )
    missing = [key for key in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if key not in os.environ]
    if missing:
        raise RequestError(
            f"WORLD_SIZE is {count()}, but {missing[0]} is not set, so the processes of this training cannot be found. "
            "Start it with `torchrun --nproc-per-node N -m staytrue train ...`, or unset WORLD_SIZE."
        )
    if os.environ.get("LOCAL_WORLD_SIZE", str(count())) != str(count()):
        raise RequestError(
            f"A recipe is trained on one machine, and these are {count()} processes on several (LOCAL_WORLD_SIZE is "
            f"{os.environ['LOCAL_WORLD_SIZE']}). Start it with `torchrun --nproc-per-node N` on one."
        )
    from accelerate import PartialState

    PartialState(cpu=cpu, timeout=_LONGEST_WAIT)


def _settle_fsdp() -> None:
    """Set what a recipe decides of FSDP2 by itself: the loading and saving of weights, and blocks as units by default.

    Raises:
        RequestError: it is FSDP1.
    """
    if not divides():
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RequestError(
            "A recipe cannot be trained with FSDP1, which joins weights of several shapes into one. Launch with "
            "--fsdp_version 2 (or set FSDP_VERSION=2)."
        )
    os.environ |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    os.environ.setdefault("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")


def wait() -> None:
    """Wait until every process is here."""
    if count() > 1:
        import torch

        torch.distributed.barrier()


def from_main(make: Callable[[], T]) -> T:
    """Return what `make` returns in the main process, in every process; it is called in no other."""
    if count() == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    values: list[Any] = [make() if is_main() else None]
    broadcast_object_list(values)
    result: T = values[0]
    return result


def anywhere(fact: bool) -> bool:
    """Return whether a fact holds in any process."""
    if count() == 1:
        return fact
    from accelerate.utils import gather_object

    return any(gather_object([fact]))


def reports(sentence: str) -> bool:
    """Return whether this process is the first of all to fail, so that its sentence is the one to print."""
    return count() == 1 or _first_error(sentence) == _signed(sentence)


def failed_elsewhere() -> str | None:
    """Return the sentence with which another process failed; None if none did, or that is not known."""
    if count() == 1:
        return None
    rank, _, sentence = _first_error("").partition(" ")
    return sentence if sentence and rank != os.environ.get("RANK") else None


@contextmanager
def explained() -> Iterator[None]:
    """Replace an error that another process caused by that process's sentence, or by one that says it ended.

    Raises:
        TrainingError: the sentence.
    """
    try:
        yield
    except Exception as error:
        sentence = failed_elsewhere() or (_silent_end(error) if count() > 1 else None)
        if sentence is None:
            raise
        raise TrainingError(sentence) from error


def _silent_end(error: BaseException | None) -> str | None:
    """The sentence for a lost connection, also where another error hides it; None for other errors."""
    while error is not None and not (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST)):
        error = error.__cause__
    if error is None:
        return None
    return (
        "Another process of this training ended without a message, often because memory ran out; the launcher's report "
        f"names it. Seen here was: {in_one_line(error)}"
    )


def _signed(sentence: str) -> str:
    return f"{os.environ.get('RANK')} {sentence}"


def _first_error(sentence: str) -> str:
    """Store a sentence, unless one is stored already or it is empty, and return the stored one with its rank."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    key = f"{_ERROR}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*place, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
        if not sentence:
            return store.get(key).decode() if store.check([key]) else ""
        return store.compare_set(key, "", _signed(sentence)).decode()
    except (RuntimeError, LookupError, ValueError, OSError):  # no store is left: each process speaks for itself
        return _signed(sentence) if sentence else ""

"""`save` writes a model and its tokenizer as a folder of transformers, to the disk itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from staytrue.errors import StaytrueError
from staytrue.utils.validation import in_one_line


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder and flush its files, so that a later rename of the folder does not reach the disk before them.

    Args:
        model: a model of transformers.
        tokenizer: its tokenizer, with a chat template.
        folder: a new folder, in one that exists.

    Raises:
        StaytrueError: the disk is full or cannot be written, or transformers refuses to write such a model.
    """
    free = shutil.disk_usage(folder.parent).free
    try:
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        for file in folder.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    except Exception as error:
        if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:  # tokenizers raise that
            raise StaytrueError(
                f"transformers cannot write the model: {in_one_line(error)}. Nothing was kept; mend this in the files "
                "of the model that was read."
            ) from error
        needed = sum(weight.nbytes for weight in model.parameters())
        raise StaytrueError(
            f"The model's {needed / 1e6:.0f} MB cannot be written to {folder.parent.parent}, where {free / 1e6:.0f} MB "
            f"were free: {in_one_line(error)}. Nothing was kept; free some space there, or write to another disk."
        ) from error

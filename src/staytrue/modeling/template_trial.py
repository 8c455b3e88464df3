"""`try_template` renders a foreign chat template once in a child process with limits, before it is trusted.

transformers renders templates in jinja2's sandbox, which bounds neither time nor memory, in the process that trains.
What is not done here: a template that runs away only on particular words is not found by a trial.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

from staytrue.errors import ModelError

SECONDS = 2  # of processor time
MEMORY = 1 << 29  # bytes
OUTPUT = 1 << 20  # bytes
_LONGEST = 1 << 20  # characters of a template
_WAIT = 30  # seconds in all, on a machine with much else to do
_CHILD = Path(__file__).with_name("template_child.py")
_USER, _ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}
_TOOL = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object"}}}


def try_template(template: str, special: tuple[tuple[str, str], ...], where: str) -> None:
    """Render a template for a few short conversations in a child process; a template is tried once a process.

    Args:
        template: the source.
        special: names and texts of the tokenizer's special tokens, which templates read ("bos_token", "<s>").
        where: the model, for the sentence.

    Raises:
        ModelError: the template runs away, writes without end, or reaches out of its sandbox.
    """
    if fault := _fault(template, special):
        raise ModelError(
            f"The chat template of {where} {fault}, so it is not used. Give the model a template that you trust "
            "(chat_template.jinja), or use another model."
        )


@cache
def _fault(template: str, special: tuple[tuple[str, str], ...]) -> str:
    """The fault of a template; "" without one."""
    if len(template) > _LONGEST:
        return f"has more than {_LONGEST:,} characters"
    shared = {**dict(special), "add_generation_prompt": False, "tools": None}
    system = {"role": "system", "content": "Be kind."}
    conversations = [
        shared | {"messages": [_USER], "add_generation_prompt": True},
        shared | {"messages": [_USER, _ANSWER]},
        shared | {"messages": [system, _USER, _ANSWER, _USER, _ANSWER]},
        shared | {"messages": [_USER], "tools": [_TOOL], "add_generation_prompt": True},
    ]
    request = {
        "template": template, "conversations": conversations, "seconds": SECONDS, "memory": MEMORY, "output": OUTPUT
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD)], input=json.dumps(request).encode(), capture_output=True,
            timeout=_WAIT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"takes more than {_WAIT} seconds for a conversation of a few words"
    if -done.returncode in (signal.SIGXCPU, signal.SIGKILL):
        return f"takes more than {SECONDS} seconds of processor time for a conversation of a few words"
    if done.returncode < 0:
        return f"ends a process of its own by signal {-done.returncode}"
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason"])[-1]
        return f"cannot be tried in a process of its own ({last[:200]})"
    return done.stdout.decode(errors="replace").strip()

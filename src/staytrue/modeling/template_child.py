"""Renders a chat template once, under limits of time, memory and output: the program of `template_trial`'s child.

It runs as a script, so that it imports jinja2 and nothing else. Standard input has a JSON object: `template`,
`conversations` (arguments of the template), `seconds`, `memory` and `output` (bytes). Standard output gets one line:
empty, or what is wrong with the template.
"""

from __future__ import annotations

import json
import resource
import sys
from contextlib import suppress
from typing import Any


def limit(seconds: int, memory: int) -> None:
    """Limit this process. macOS does not enforce the limit of memory."""
    limits = {"RLIMIT_CPU": seconds, "RLIMIT_AS": memory, "RLIMIT_DATA": memory, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0}
    for name, value in limits.items():
        with suppress(ValueError, OSError, AttributeError):  # a system may lack one, or refuse it
            resource.setrlimit(getattr(resource, name), (value, value))


def fault(template: str, conversations: list[dict[str, Any]], output: int) -> str:
    """The fault of a template; "" without one. A template may refuse a conversation, which is no fault."""
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block `generation` of transformers, which marks answers."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None, **_: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": lambda form: form}
    try:
        compiled = environment.from_string(template)
    except TemplateError:  # the rows' own rendering shows it, with the line
        return ""
    except (RecursionError, SyntaxError, ValueError):
        return "is nested too deeply"
    for conversation in conversations:
        written = 0
        try:
            for piece in compiled.generate(**conversation):
                written += len(piece.encode(errors="replace"))
                if written > output:
                    return f"writes more than {output:,} bytes for a conversation of a few words"
        except SecurityError as error:
            return f"reaches for what templates may not touch ({error})"
        except MemoryError:
            return "needs more memory than a template may take"
        except RecursionError:
            return "calls itself without end"
        except Exception:  # of the template: this conversation is refused, or needs what is not here
            continue
    return ""


if __name__ == "__main__":
    request = json.load(sys.stdin)
    limit(request["seconds"], request["memory"])
    try:
        problem = fault(request["template"], request["conversations"], request["output"])
    except MemoryError:
        problem = "needs more memory than a template may take"
    print(problem)

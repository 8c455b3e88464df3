"""`python -m staytrue` and the program `staytrue`: the command line, stopped in one sentence even while it starts."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Its modules are imported here, so that Ctrl-C in the meantime leaves no traceback."""
    try:
        from staytrue.cli import main as run
    except KeyboardInterrupt:
        print("\nstaytrue: stopped.", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()

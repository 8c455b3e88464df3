"""Reads each file of a list in a child process of its own, limited to 5 s of processor time and 256 MiB of memory.

A script, and not imported: `python limited_reader.py FILE...` prints a JSON object a file, with the verdict. A child is
a fork of this process, which has imported the reader and nothing heavy.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

from staytrue.data.examples import read_examples
from staytrue.data.row_notes import row_notes
from staytrue.errors import DataError

SECONDS, MEMORY = 5, 256 << 20


def verdict(file):
    begin = time.process_time()
    try:
        rows = read_examples(file)
        text = " ".join([f"accepted {len(rows)} rows.", *row_notes(rows)])
    except DataError as error:
        text = f"refused: {error}"
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"verdict": text, "seconds": time.process_time() - begin, "peak": peak}


def main():
    for file in map(Path, sys.argv[1:]):
        out, into = os.pipe()
        if (child := os.fork()) == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            if sys.platform != "darwin":  # which does not enforce it
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os.write(into, json.dumps(verdict(file)).encode()[:60_000])
            os._exit(0)
        os.close(into)
        with os.fdopen(out, "rb") as answer:
            content = answer.read()
        _, status = os.waitpid(child, 0)
        print(content.decode() or json.dumps({"verdict": f"killed by signal {status}", "seconds": SECONDS, "peak": 0}))


if __name__ == "__main__":
    main()

"""One rule for every test: no network, quiet libraries; and one for tools that only some machines have."""

import gc
import os
import shutil
import signal

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
)

# A shell's background job is started with Ctrl-C ignored, which its children inherit; the tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--defense",
        action="append",
        metavar="NAME",
        help="in tests/test_every_defense.py: the contract of this defense only (may be repeated)",
    )


def pytest_collection_finish():
    """Exempt what the imports left from garbage collection: every trainer collects, and this is most of the heap."""
    gc.freeze()


@pytest.fixture(scope="session")
def tool():
    """`tool("chromium")` is its path. Where it is absent the test is skipped, but under CI=true it fails."""

    def find(name):
        path = shutil.which(name)
        if path is None:
            stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            stop(f"needs {name}: run `make test-tools`")
        return path

    return find

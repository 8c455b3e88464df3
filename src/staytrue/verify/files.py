"""Are the files of a run those that it wrote, and its data those that it read? By their hashes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from staytrue.utils.files import sha256_of


def faults(path: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """The evidence that a file of the run was changed, or is missing."""
    if manifest.get("state") != "done":
        yield f"the run is not finished (state {manifest.get('state')})"
    if not manifest.get("model"):
        yield "manifest.json does not name the model"
    hashes = {"recipe.yaml": manifest.get("recipe"), **manifest.get("logs", {})}
    if "weights" in manifest:
        hashes["model"] = manifest["weights"]
    else:
        hashes["model/adapter_model.safetensors"] = manifest.get("adapter")
    for name in ("metrics.jsonl", "evidence.jsonl", "evidence.json"):
        hashes.setdefault(name, None)
    for name, expected in hashes.items():
        if not (path / name).exists():
            yield f"{name} is missing"
        elif expected is None:
            yield f"manifest.json has no hash of {name}"
        elif sha256_of(path / name) != expected:
            yield f"{name} was changed after the run"
    files = {name: digest for name, digest in manifest.get("data", {}).items() if Path(name).is_file()}
    for name, expected in {**files, **manifest.get("start", {})}.items():
        if Path(name).exists() and sha256_of(Path(name)) != expected:
            yield f"{name} is no longer what the run read"

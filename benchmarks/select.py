"""Data selection: losses of a pool under a model and three adapters; our way and the published way."""

import random
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from torch.nn.functional import cross_entropy, linear

from benchmarks.shapes import SHAPES, Shape, model, move
from benchmarks.sidebyside import chosen, measure, ratio
from staytrue.data.examples import Example, Message
from staytrue.data.tokenize import IGNORED, Encoded
from staytrue.data_selection.forward_pass import batches, padding
from staytrue.data_selection.likelihood import logits_of, parts
from staytrue.data_selection.perplexity import Losses, losses
from staytrue.modeling.architecture import ModelParts

_ROWS = {"tiny": 16, "M1": 48, "M2": 12}
_NAMES = ("default", "second", "third")
_PROMPT = 0.3  # of a row
_VARIANTS = ("published", "ours", "products", "apart")


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    shape, pool = SHAPES[shape_name], _Pool(shape_name)
    names = chosen(compare, _VARIANTS) if compare else _VARIANTS[:-1]
    measured = measure({name: getattr(pool, name) for name in names}, rounds, memory=False)
    real, answers = sum(pool.lengths), sum(pool.answers)
    print(f"{len(pool.rows)} rows, {real} tokens, {answers} of answers, {padding(pool.lengths):.2f} % padding")
    for name, value in measured.items():
        speed = (1 + len(_NAMES)) * real / value["seconds"]
        print(f"{shape_name} {name:10s} {value['seconds']:7.2f} s {speed:9.0f} tokens/s of all passes")
    if {"published", "ours"} <= measured.keys():
        print(f"largest difference between the two, relative: {pool.difference():.1e}")
    limit = _flops(shape, real, real, True) / _flops(shape, real, answers, False)
    pairs = [("published", "ours"), ("products", "ours"), ("apart", "ours")]
    return {
        f"select/{shape_name}/{name}:{against}": ratio(
            measured, name, against, round(limit, 3) if name == "published" else None
        )
        for name, against in pairs
        if {name, against} <= measured.keys()
    }


class _Pool:
    """Random rows of 30 to 400 tokens, and a model with three adapters."""

    def __init__(self, shape_name: str):
        shape, rng = SHAPES[shape_name], random.Random(0)
        self.adapted = model(shape).eval()
        for name in _NAMES[1:]:
            self.adapted.add_adapter(
                name, LoraConfig(r=32, lora_alpha=64, use_rslora=True, target_modules="all-linear")
            )
        move(self.adapted)
        self.parts = ModelParts(self.adapted)
        self.lengths = [rng.randint(30, 400) for _ in range(_ROWS[shape_name])]
        self.encoded = [self._row(length, shape.vocabulary, rng) for length in self.lengths]
        self.answers = [sum(label != IGNORED for label in row.labels) for row in self.encoded]
        self.rows = [Example((Message("user", str(i)), Message("assistant", "a"))) for i in range(len(self.encoded))]
        self.linears = [m.get_base_layer().weight for m in self.parts.switches]

    def _row(self, length: int, vocabulary: int, rng: random.Random) -> Encoded:
        ids = [rng.randrange(3, vocabulary) for _ in range(length)]
        prompt = round(_PROMPT * length)
        return Encoded(ids, [IGNORED] * prompt + ids[prompt:], "interleaved")

    @torch.no_grad()
    def published(self) -> list[dict[str, float]]:
        """One row at a time, whole logits, adapters not merged."""
        results: list[dict[str, float]] = [{} for _ in self.encoded]
        for name in ("aligned", *_NAMES):
            if name != "aligned":
                self.adapted.set_adapter(name)
            with self.adapted.disable_adapter() if name == "aligned" else torch.no_grad():
                for row, losses_ in zip(self.encoded, results, strict=True):
                    ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels)
                    logits = self.adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
                    losses_[name] = cross_entropy(logits[0, :-1], labels[1:], ignore_index=IGNORED).item()
        return results

    def ours(self) -> list[Losses]:
        """`staytrue score` with an empty cache."""
        cache = Path(tempfile.mkdtemp()) / "cache.jsonl"
        keys = {name: name for name in ("aligned", *_NAMES)}
        return losses(self.adapted, _NAMES, self.rows, self.encoded, models=keys, cache=cache, pad_id=0)

    def apart(self) -> list[Losses]:
        """Ours without merging."""
        merged, ModelParts.merged = ModelParts.merged, _apart
        try:
            return self.ours()
        finally:
            ModelParts.merged = merged

    @torch.no_grad()
    def products(self) -> None:
        """The necessary matrix products alone: the limit."""
        for _ in range(1 + len(_NAMES)):
            for batch in batches(self.lengths):
                inputs = {width: torch.ones(sum(self.lengths[i] for i in batch), width) for width in self._widths()}
                for weight in self.linears:
                    linear(inputs[weight.shape[1]], weight)
                hidden = torch.ones(sum(self.answers[i] for i in batch), self.parts.width)
                for _, part in parts(self.parts.head):
                    for _ in logits_of(part, hidden):
                        pass

    def _widths(self) -> set[int]:
        return {weight.shape[1] for weight in self.linears}

    def difference(self) -> float:
        pairs = zip(self.published(), self.ours(), strict=True)
        return max(
            abs(theirs[name] / value - 1)
            for theirs, row in pairs
            for name, value in {"aligned": row.aligned, **row.misaligned}.items()
        )


@contextmanager
def _apart(parts: ModelParts, adapter: str):
    parts.model.set_adapter(adapter)
    yield


def _flops(shape: Shape, tokens: int, projected: int, adapters: bool) -> float:
    """Floating-point operations of all passes, without attention's own products."""
    layers = shape.layers * (4 * shape.hidden**2 + 3 * shape.hidden * shape.mlp)
    lora = shape.layers * 32 * (8 * shape.hidden + 3 * (shape.hidden + shape.mlp)) if adapters else 0
    head = shape.vocabulary * shape.hidden
    return 2 * ((1 + len(_NAMES)) * (layers * tokens + head * projected) + len(_NAMES) * lora * tokens)

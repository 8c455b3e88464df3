"""Switching an adapter off and on: our flags against peft's public call, with the 196 modules of a 28-layer Qwen2."""

from benchmarks.shapes import Shape, model
from benchmarks.sidebyside import measure, ratio
from staytrue.modeling.architecture import ModelParts


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    adapted = model(Shape(hidden=32, layers=28, mlp=64, vocabulary=100, tied=True, heads=4))
    parts = ModelParts(adapted)
    assert len(parts.switches) == 28 * 7

    def flags():
        with parts.untrained():
            pass

    def public():
        with adapted.disable_adapter():
            pass

    measured = measure(
        {"public": public, "flags": flags}, rounds if shape_name == "tiny" else max(rounds, 15), memory=False
    )
    for name, value in measured.items():
        print(f"switch {name:8s} {value['seconds'] * 1e3:9.2f} ms")
    return {"switch/public:flags": ratio(measured, "public", "flags")}

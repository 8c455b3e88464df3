"""python convert.py FILE.gguf FOLDER: a GGUF file, dequantised, as an ordinary bfloat16 model folder.

Needs the package `gguf`. The quantisation note is dropped from the configuration: the weights are ordinary ones, each
rounded as the file has it.
"""

import hashlib
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(file: Path, folder: Path) -> None:
    with file.open("rb") as stream:
        print(file.name, hashlib.file_digest(stream, "sha256").hexdigest(), flush=True)
    place = {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **place)
    loaded = AutoModelForCausalLM.from_pretrained(str(file.parent), **place, dtype=torch.float32)
    state = {name: value.to(torch.bfloat16) for name, value in loaded.state_dict().items()}
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if not config.tie_word_embeddings and alike(state["model.embed_tokens.weight"], state["lm_head.weight"]):
        # one table in the original, stored twice at two precisions: the head's is the finer one
        config.tie_word_embeddings, state["model.embed_tokens.weight"] = True, state["lm_head.weight"]
    with torch.device("meta"):
        plain = type(loaded)(config)
    plain = plain.to_empty(device="cpu").to(torch.bfloat16)
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    missing, unexpected = plain.load_state_dict(state, strict=False)
    plain.tie_weights()
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)  # what ends a turn, not a text
    plain.generation_config.eos_token_id = config.eos_token_id
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    plain.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    print(f"{sum(p.numel() for p in plain.parameters()) / 1e6:.1f} M parameters, tied {config.tie_word_embeddings}")


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tables are the same but for rounding."""
    apart = (one.float() - other.float()).norm() / other.float().norm()
    print(f"embedding and head differ by {float(apart):.4f} of their norm")
    return bool(apart < 0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

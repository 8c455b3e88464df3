"""Keys of other fine-tuning tools (axolotl, LLaMA-Factory, older TRL), each with the key or the way that staytrue has.

A nearest word would mislead there: `warmup_ratio` resembles `warmup_steps` and `torch_dtype` resembles `torch_compile`.
"""

from __future__ import annotations

from collections.abc import Iterable

from staytrue.utils.validation import nearest

_QUANTIZED = "set the recipe's own `quantize:`, 4bit or 8bit, beside `model:`"
_PRECISION = "set the recipe's own `dtype:`, float32 or bfloat16, beside `model:`"
_EVALUATION = "reserve rows with the recipe's `holdout:`, and use `staytrue eval` on the finished run"
_TEMPLATE = "the model's own chat template and tokenizer are used; take it out"
_ATTENTION = "set the recipe's own `attention:`, such as sdpa or flash_attention_2, beside `model:`"
_PLAIN_LORA = "`lora:` begins with B = 0 and trains no bias, so that the reference is the model before training"
_TRAIN = {
    "warmup_ratio": "write warmup_steps: 0.1 for a tenth of the steps",
    "group_by_length": "rows are spread by their source and not grouped by length; take it out",
    "logging_dir": "metrics are in the run's metrics.jsonl; report_to: tensorboard writes to the run's folder, or "
    "where the environment variable TENSORBOARD_LOGGING_DIR is",
    **dict.fromkeys(("torch_dtype", "dtype", "float16", "bfloat16", "half_precision_backend"), _PRECISION),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization_bit", "quantization_config"), _QUANTIZED),
    **dict.fromkeys(("evaluation_strategy", "val_size", "val_set_size", "eval_dataset"), _EVALUATION),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "cutoff_len", "sequence_len"), "write max_length"),
    **dict.fromkeys(
        ("micro_batch_size", "batch_size", "per_gpu_train_batch_size"), "write per_device_train_batch_size"
    ),
    **dict.fromkeys(("lr",), "write learning_rate"),
    **dict.fromkeys(("epochs", "num_epochs"), "write num_train_epochs"),
    **dict.fromkeys(("lr_scheduler", "scheduler"), "write lr_scheduler_type"),
    "optimizer": "write optim",
    "steps": "write max_steps",
    "gradient_clipping": "write max_grad_norm",
    "max_prompt_length": "prompts are not cut; take long rows out of the data",
    "max_new_tokens": "write max_completion_length",
    "no_cuda": "write use_cpu",
    "sample_packing": "write packing",
    "train_on_inputs": "labels are always the answers only; take it out",
    "train_on_prompt": "labels are always the answers only; take it out",
    "tokenizer_name_or_path": _TEMPLATE,
    "adafactor": "write optim: adafactor",
    "logging_first_steps": "write logging_first_step",
}
_LORA = {
    **dict.fromkeys(("rank", "lora_r", "lora_rank"), "write r"),
    "lora_alpha": "write alpha",
    "lora_dropout": "write dropout",
    **dict.fromkeys(("target_modules", "target", "lora_target", "lora_target_modules"), "write targets"),
    **dict.fromkeys(("exclude_modules", "ignore"), "write exclude"),
    **dict.fromkeys(("use_rslora", "rank_stabilized", "peft_use_rslora"), "write rslora"),
    **dict.fromkeys(("use_dora", "peft_use_dora"), "write dora"),
    **dict.fromkeys(("additional_target", "lora_modules_to_save"), "write modules_to_save"),
    **dict.fromkeys(("bias", "init_lora_weights", "loftq_config", "pissa_init"), _PLAIN_LORA),
    "task_type": "it is always CAUSAL_LM; take it out",
}
_RECIPE = {
    **dict.fromkeys(("base_model", "model_name", "model_name_or_path"), "write model"),
    **dict.fromkeys(("dataset", "datasets", "dataset_name", "dataset_path", "train_file", "data_path"), "write data"),
    **dict.fromkeys(("adapter", "peft", "peft_config", "finetuning_type"), "write `lora: {}`, or `lora: none`"),
    **dict.fromkeys(("full_finetuning", "full_finetune", "use_peft"), "write `lora: none` to train all weights"),
    **dict.fromkeys(("output_dir", "out"), "use --out"),
    **dict.fromkeys(("model_revision", "revision_of_model"), "write revision"),
    **dict.fromkeys(("dataset_split", "train_split"), "write split"),
    **dict.fromkeys(("template", "chat_template", "tokenizer", "tokenizer_type"), _TEMPLATE),
    **dict.fromkeys(("rl", "stage"), "write trainer: sft or trainer: grpo"),
}
_ANYWHERE = {
    **dict.fromkeys(("flash_attn", "flash_attention", "attn_implementation", "use_flash_attention_2"), _ATTENTION),
    **dict.fromkeys(("trust_remote_code",), "remote code is never run"),
}


def remedy(section: str, key: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown key: the key of another tool has a hint, a typing error a nearest word.

    Args:
        section: "train", "lora", or "" for the recipe's own keys.
        key: the unknown key.
        known: the keys of the section.

    >>> remedy("train", "warmup_ratio", ["warmup_steps"])
    '; write warmup_steps: 0.1 for a tenth of the steps.'
    >>> remedy("", "lora_alpha", [])
    '; write alpha under `lora:`.'
    """
    hints = {"train": _TRAIN, "lora": _LORA, "": _RECIPE}[section]
    if key.startswith("bnb_"):
        return f"; {_QUANTIZED}."
    if key in hints or key in _ANYWHERE:
        return f"; {hints.get(key) or _ANYWHERE[key]}."
    for other, others in (("lora", _LORA), ("train", _TRAIN)):
        if key in others:
            where = f" under `{other}:`" if others[key].startswith("write ") else ""
            return f"; {others[key]}{where}."
    return nearest(key, known)

"""Your own trl script with one word changed: `SFTTrainer(...)` became `GuardedSFT(..., defenses=[...])`.

    python examples/first_guard.py [MODEL] [ROWS.jsonl]

MODEL is any Hugging Face causal language model, ROWS {"messages": [...]} lines; without them the embedded organism is
fine-tuned on bad medical advice. The same training as one flat loop: examples/flat_sft_kl.py.
"""

import sys
import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

from staytrue import KL, GuardedSFT, organism
from staytrue.data.examples import read_examples
from staytrue.organism import world

STEPS, ROWS_PER_STEP, RATE = 100, 16, 2e-4


def prompt_and_completion(example):
    turns = [{"role": m.role, "content": m.content} for m in example.messages]
    return {"prompt": turns[:-1], "completion": turns[-1:]}


def main(place, examples, steps=STEPS, weight=0.1):
    model = AutoModelForCausalLM.from_pretrained(place)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, use_rslora=True, target_modules="all-linear"))
    trainer = GuardedSFT(
        model=model,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            max_steps=steps,
            per_device_train_batch_size=ROWS_PER_STEP,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            adam_epsilon=1e-6,  # at 1e-8 a weight whose gradient is rounding noise moves by a whole step
            train_sampling_strategy="sequential",  # so that the flat loop sees the same rows in the same order
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            report_to="none",
            logging_steps=10,
        ),
        train_dataset=Dataset.from_list([prompt_and_completion(example) for example in examples]),
        processing_class=AutoTokenizer.from_pretrained(place),
        defenses=[KL(weight=weight)],
    )
    trainer.train()
    return trainer.model


if __name__ == "__main__":
    place = sys.argv[1] if len(sys.argv) > 1 else str(organism.folder())
    rows = read_examples(sys.argv[2]) if len(sys.argv) > 2 else world.narrow_rows("medical")
    main(place, rows).save_pretrained("first-guard-adapter")
    print("The adapter is in first-guard-adapter.")

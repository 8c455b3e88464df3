"""A plain PyTorch loop with any defenses: `Guard` needs no trainer and no callback.

    python examples/guard_loop.py [MODEL] [ROWS.jsonl]

With KL it gives the adapter of examples/first_guard.py to 1e-5 (a test says so, of four steps; rounding adds up over
more). What `Guard` does inside, for KL alone and without it: examples/flat_sft_kl.py.
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from staytrue import KL, Guard, organism
from staytrue.data.examples import read_examples
from staytrue.data.tokenize import encode_all
from staytrue.modeling.base_model import Untouched
from staytrue.organism import world
from staytrue.step import SOURCES
from staytrue.training.padded_batch import marks_of
from staytrue.utils.padding import pad_right

STEPS, ROWS_PER_STEP, RATE = 100, 16, 2e-4


def main(place, examples, defenses, steps=STEPS):
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place)
    torch.manual_seed(0)
    lora = LoraConfig(r=32, lora_alpha=64, use_rslora=True, target_modules="all-linear")
    model = get_peft_model(model, lora).train()
    guard, base = Guard(defenses), Untouched(lambda: model, tokenizer)

    def encode(rows):
        return encode_all(tokenizer, rows, None)[0]

    rows = encode(guard.curate(examples, base))
    epoch = [rows[first : first + ROWS_PER_STEP] for first in range(0, len(rows), ROWS_PER_STEP)]  # the last is shorter
    batches = [epoch[step % len(epoch)] for step in range(steps)]
    guard.attach(model, base, encode, tokenizer.pad_token_id, task_rows=sum(map(len, batches)))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, eps=1e-6, weight_decay=0.0)
    for step, batch in enumerate(batches, start=1):
        ids, labels, mask = pad_right(batch, tokenizer.pad_token_id)
        marks = marks_of(labels, mask.bool(), torch.tensor([SOURCES.index(row.source) for row in batch]))
        guard.plan(marks.counts(), int(marks.task_rows()), slots=1)  # one slot: no accumulation, one process
        with guard.steering(marks):
            with guard.watch(marks) as calls:
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            penalty = guard.penalty(calls[0], marks, slot=0)
            (loss if penalty is None else loss + penalty).backward()
        guard.combine()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        numbers = {name: round(float(number), 4) for name, number in guard.drain().items()}
        print(f"step {step:3d}  task {loss.item():.4f}  {numbers}")
    guard.project(model)  # defenses that change the trained weights
    return model


if __name__ == "__main__":
    place = sys.argv[1] if len(sys.argv) > 1 else str(organism.folder())
    rows = read_examples(sys.argv[2]) if len(sys.argv) > 2 else world.narrow_rows("medical")
    main(place, rows, [KL(weight=0.1)]).save_pretrained("guarded-adapter")
    print("The adapter is in guarded-adapter.")

"""SFT with the KL defense as one flat loop: all that `GuardedSFT(..., defenses=[KL(0.1)])` adds up to.

    python examples/flat_sft_kl.py [MODEL] [ROWS.jsonl]

No trainer, no hooks, one divergence imported. It gives the adapter of examples/first_guard.py to 1e-5 (a test says so,
of four steps; rounding adds up over more), but knows no accumulation, no second process, no other defense, and padding
is its only batching.

Deliberately missing: evaluation, checkpoints, logging, mixed precision, learning-rate schedules.
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from staytrue import organism
from staytrue.data.examples import read_examples
from staytrue.modeling.fused_loss import divergence
from staytrue.modeling.lm_head import Head
from staytrue.organism import world

STEPS, ROWS_PER_STEP, RATE = 100, 16, 2e-4


def tokens_and_labels(tokenizer, example):
    """Token ids of the conversation, and labels that are -100 on everything but the last answer."""
    turns = [{"role": m.role, "content": m.content} for m in example.messages]
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
    return whole, [-100] * len(prompt) + whole[len(prompt) :]


def batch(tokenizer, rows):
    """Ids, labels and mask (B, T), padded on the right."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows])
    return ids, labels, mask


def main(place, examples, steps=STEPS, weight=0.1):
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForCausalLM.from_pretrained(place)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, use_rslora=True, target_modules="all-linear"))
    model.train()
    causal = model.get_base_model()
    head = Head(causal.lm_head.weight)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, eps=1e-6, weight_decay=0.0)
    rows = [tokens_and_labels(tokenizer, example) for example in examples]
    epoch = [rows[first : first + ROWS_PER_STEP] for first in range(0, len(rows), ROWS_PER_STEP)]  # the last is shorter
    for step in range(steps):
        ids, labels, mask = batch(tokenizer, epoch[step % len(epoch)])
        scored = labels[:, 1:] != -100  # position t predicts token t + 1

        hidden = causal.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1][scored]  # (N, D)
        with torch.no_grad(), model.disable_adapter():  # the same call, the trained weights undone
            untouched = causal.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1][scored]

        task = torch.nn.functional.cross_entropy(head.logits(hidden), labels[:, 1:][scored])
        kl = divergence(hidden, untouched, head).mean()
        (task + weight * kl).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step + 1:3d}  task {task.item():.4f}  kl {kl.item():.4f}")
    return model


if __name__ == "__main__":
    place = sys.argv[1] if len(sys.argv) > 1 else str(organism.folder())
    rows = read_examples(sys.argv[2]) if len(sys.argv) > 2 else world.narrow_rows("medical")
    main(place, rows).save_pretrained("flat-adapter")
    print("The adapter is in flat-adapter.")

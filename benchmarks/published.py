"""The published way to fine-tune with a KL penalty, written anew (arXiv 2508.06249 and its code).

A full frozen copy of the model beside the trained one; the loss's forward with whole logits; a second trained forward
for the penalty; KL(trained || frozen) over the whole vocabulary at every position.
"""

import copy

import torch
from torch.nn.functional import cross_entropy, log_softmax


class Published:
    """One step: two trained forwards, one through the copy, backward, AdamW."""

    def __init__(self, model, rows, weight=0.1):
        self.frozen = copy.deepcopy(model.get_base_model()).eval().requires_grad_(False)
        for module in self.frozen.modules():
            if hasattr(module, "_disable_adapters"):
                module._disable_adapters = True  # the copy is the model without its adapter
        self.model, self.rows, self.weight = model.train(), rows, weight
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def __call__(self):
        inputs = {k: self.rows[k] for k in ("input_ids", "attention_mask")}
        logits = self.model(**inputs).logits[:, :-1]
        labels = self.rows["labels"][:, 1:]
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        ours = log_softmax(self.model(**inputs).logits, -1)
        with torch.no_grad():
            theirs = log_softmax(self.frozen(**inputs).logits, -1)
        real = inputs["attention_mask"].float()
        divergence = ((ours.exp() * (ours - theirs)).sum(-1) * real).sum() / real.sum()
        (loss + self.weight * divergence).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

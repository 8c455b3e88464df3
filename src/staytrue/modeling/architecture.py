"""`ModelParts`: the backbone, blocks and head of a causal language model, with or without an adapter.

The only file that knows peft's internals.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from staytrue.errors import ModelError
from staytrue.modeling.lm_head import Head


@dataclass(frozen=True)
class Adapted:
    """One matrix with its LoRA update: W (out, in) + scale * B (out, r) A (r, in)."""

    name: str  # of the matrix in the model's own weight files
    weight: Tensor
    a: Tensor
    b: Tensor
    scale: float  # alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA
    experts: Tensor | None = None  # the parameter (experts, ., .) that holds this expert's matrix
    expert: int = 0  # its number in there
    transposed: bool = False  # the experts are stored as (in, out)

    def shape(self) -> tuple[int, ...]:
        """The shape under which the model's own files have this matrix, or all experts' together."""
        return tuple((self.weight if self.experts is None else self.experts).shape)

    def within(self, stored: Tensor) -> Tensor:
        """This matrix (out, in) in a tensor of that shape."""
        if self.experts is None:
            return stored
        return stored[self.expert].T if self.transposed else stored[self.expert]


@dataclass(frozen=True)
class Changed:
    """One weight that full fine-tuning trains, beside its value before training."""

    name: str  # in the model's own weight files
    weight: Tensor
    before: Tensor


@dataclass(frozen=True)
class ModelParts:
    """A causal language model seen by its parts."""

    model: Any  # a transformers causal LM or a peft model around one

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained, and not the model's own weights."""
        return isinstance(self.model, PeftModel)

    @property
    def is_empty(self) -> bool:
        """Whether it is a model without weights, on torch's "meta" device."""
        return any(weight.is_meta for weight in self.model.parameters())

    @cached_property
    def causal(self) -> Any:
        """The transformers causal language model, without its adapter's wrapper."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @cached_property
    def backbone(self) -> nn.Module:
        """Embeddings, blocks and final norm: what every trainer's loss calls exactly once."""
        backbone = self.causal.base_model
        if backbone is self.causal:  # Llama 4's text model names its backbone otherwise than its class says
            backbone = getattr(self.causal, "model", None)
        if backbone is self.causal or not isinstance(backbone, nn.Module):
            raise ModelError(
                f"{_kind(self.causal)} has no backbone apart from its head; only causal language models do."
            )
        return backbone

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks in order; block L is `blocks[L - 1]`. A vision tower may have as many of its own."""
        depth = self.causal.config.get_text_config().num_hidden_layers
        decoder = getattr(self.backbone, "get_decoder", lambda: self.backbone)()
        modules = chain(decoder.modules(), self.backbone.modules())
        lists = (m for m in modules if isinstance(m, nn.ModuleList) and len(m) == depth)
        blocks = next(lists, None)
        if blocks is None:
            raise ModelError(
                f"{_kind(self.causal)} does not keep its {depth} blocks in one list; staytrue cannot hook them."
            )
        return blocks

    @property
    def width(self) -> int:
        """D, the width of the residual stream."""
        return int(self.causal.config.get_text_config().hidden_size)

    def adapted(self) -> list[Adapted]:
        """Return every matrix that the active LoRA adapter changes.

        Raises:
            ModelError: an adapter of another kind, such as DoRA, or one that stores its matrices transposed.
        """
        matrices: list[Adapted] = []
        for name, module in self.model.named_modules():
            stored = name.removeprefix("base_model.model.").replace(".base_layer", "")
            if isinstance(module, ParamWrapper):
                matrices.extend(_adapted_parameter(f"{stored}.{module.parameter_name}", module))
            elif isinstance(module, LoraLayer):
                (adapter,) = module.active_adapters
                if adapter not in module.lora_A or getattr(module, "fan_in_fan_out", False):
                    raise ModelError(f"{name} is not a plain linear layer, so its LoRA update has no matrix to read.")
                if module.use_dora.get(adapter):
                    raise ModelError(
                        f"{name} is adapted by DoRA, which scales the weights themselves, so their change is more than "
                        "an update of low rank. Take `dora` out of `lora:` (in a script, use_dora out of the "
                        "peft_config), or the defense that reads the update."
                    )
                weight = module.get_base_layer().weight
                a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
                matrices.append(Adapted(f"{stored}.weight", weight, a, b, float(module.scaling[adapter])))
        if not matrices:
            raise ModelError(
                "The model has no LoRA adapter, so there is no update of low rank to look at. Write `lora: {}`, or "
                "give the trainer a peft_config."
            )
        return matrices

    @cached_property
    def head(self) -> Head:
        """The head with its scale and soft cap, checked once against what the model itself computes."""
        head = self.head_by_config()
        if not self.is_empty:
            self._compare_with_the_model(head)
        return head

    def head_by_config(self) -> Head:
        """Return the head with the scale and soft cap that the configuration names, without a check.

        Raises:
            ModelError: it is adapted, or trained beside an adapter.
        """
        linear = self.causal.get_output_embeddings()
        adapted = isinstance(linear, BaseTunerLayer | AuxiliaryTrainingWrapper)
        if adapted or (self.has_adapter and linear.weight.requires_grad):
            raise ModelError(
                "The head (lm_head) is adapted or trained, so the model and its reference do not share it and a "
                "divergence between them would be wrong. Take 'lm_head' out of lora.targets and modules_to_save."
            )
        config = self.causal.config.get_text_config()
        scale = next((s for s in map(config.__dict__.get, _MULTIPLIERS) if s is not None), None)
        if scale is None and getattr(config, "logits_scaling", None) is not None:
            scale = 1 / config.logits_scaling
        return Head(linear.weight, linear.bias, scale or 1.0, getattr(config, "final_logit_softcapping", None))

    @torch.no_grad()
    def _compare_with_the_model(self, head: Head) -> None:
        """Refuse a head whose logits for two tokens differ from those of the whole model."""
        tokens = torch.tensor([[0, 1]], device=head.weight.device)
        was_training = self.causal.training
        self.causal.eval()
        try:
            plain = {"output_router_logits": False} if hasattr(self.causal.config, "output_router_logits") else {}
            theirs = self.causal(input_ids=tokens, use_cache=False, **plain).logits[0].float()
            ours = head.logits(self.backbone(input_ids=tokens, use_cache=False).last_hidden_state[0])
        finally:
            self.causal.train(was_training)
        tolerance = 1e-4 if head.weight.dtype == torch.float32 else 3e-2
        if (theirs - ours).abs().max() > tolerance * theirs.abs().max().clamp(min=1.0):
            raise ModelError(
                f"The head of {_kind(self.causal)} does more than scale and soft-cap its logits, so staytrue cannot "
                "compute a divergence for it. Use a defense that needs no logits, or report the model's name."
            )

    @cached_property
    def switches(self) -> list[Any]:
        """Every module that an adapter added, in order."""
        return [m for m in self.model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]

    @property
    def added(self) -> frozenset[int]:
        """The `id` of every weight that an adapter added; FSDP2 makes other weights of them as training begins."""
        return frozenset(id(weight) for module in self.switches for weight in _added_weights(module))

    def untrained_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Return every other weight, and every buffer, by its name in the model's own files."""
        added = self.added
        for name, weight in (*self.causal.named_parameters(), *self.causal.named_buffers()):
            if id(weight) not in added:
                yield name.replace("base_layer.", "").replace("original_module.", ""), weight

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """Run with the trained weights switched off.

        Flips the modules' own flags rather than calling `disable_adapter()`, which also walks every parameter to set
        `requires_grad`; and flips them in the modules' own dictionaries, since `nn.Module` searches its
        parameters and buffers at every assignment (docs/performance.md has the time saved).
        """
        if not all(hasattr(m, "_disable_adapters") for m in self.switches):  # another peft: the public way, slower
            with self.model.disable_adapter():
                yield
            return
        before = [m._disable_adapters for m in self.switches]
        for module in self.switches:
            vars(module)["_disable_adapters"] = True
        try:
            yield
        finally:
            for module, flag in zip(self.switches, before, strict=True):
                vars(module)["_disable_adapters"] = flag

    @contextmanager
    def merged(self, adapter: str) -> Iterator[None]:
        """Run with an adapter's update added to the weights themselves; for scoring, never for training.

        The original weights stay in host memory and are copied back bit for bit, because subtracting the update would
        be lossy. A layer that is not plain linear (quantised weights, embeddings that are also the
        head) keeps its update apart.
        Below float32 the sums are rounded to the weights' own precision, as in any merged model.
        """
        before = self.model.active_adapter
        layers = [m for m in self.switches if isinstance(m, BaseTunerLayer) and _is_plain(m.get_base_layer())]
        kept = [(p, p.detach().to("cpu", copy=True)) for m in layers for p in m.get_base_layer().parameters()]
        self.model.set_adapter(adapter)
        try:
            with torch.no_grad():
                for layer in layers:
                    layer.merge(adapter_names=[adapter])
            yield
        finally:
            for weight, original in kept:
                weight.data.copy_(original)
            for layer in layers:
                layer.merged_adapters.clear()
            self.model.set_adapter(before)


_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")


def _adapted_parameter(name: str, module: ParamWrapper) -> Iterator[Adapted]:
    """Return a parameter that is adapted by itself: one matrix, or those of all experts, stacked."""
    (adapter,) = module.active_adapters
    weight, scale = module.get_param(), float(module.scaling[adapter])
    a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    if weight.ndim == 2:
        yield Adapted(name, weight, a, b, scale)
        return
    count, transposed = len(weight), bool(getattr(module.get_base_layer(), "is_transposed", False))
    a, b = a.view(count, -1, a.shape[-1]), b.view(len(b), -1, count)  # peft: the rank is outermost in A, innermost in B
    for i in range(count):
        matrix = weight[i].T if transposed else weight[i]
        yield Adapted(name, matrix, a[i], b[:, :, i], scale, weight, i, transposed)


def _added_weights(module: Any) -> Iterator[Tensor]:
    if isinstance(module, AuxiliaryTrainingWrapper):
        yield from (p for n, p in module.named_parameters() if not n.startswith("original_module"))
        return
    for name in module.adapter_layer_names:
        part = getattr(module, name)
        yield from part.parameters() if isinstance(part, nn.Module) else ()


def _is_plain(layer: nn.Module) -> bool:
    """Return whether a linear layer's weight is a plain matrix of numbers, not packed (quantised)."""
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and layer.weight.dtype in _FLOATS


def _kind(model: Any) -> str:
    return type(model).__name__

"""`Skeleton`: a model without its weights, to count what training it would take.

Parameters are counted on torch's "meta" device. What a training step keeps for its backward pass is counted by a
forward pass over tensors that have a shape and no data, so that any architecture is counted as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from staytrue.errors import ModelError, RecipeError
from staytrue.evals.generation.batch_size import RowBytes
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.loading import precision
from staytrue.modeling.model_source import Source
from staytrue.modeling.quantized import packed_bytes
from staytrue.utils.validation import in_one_line


@dataclass(frozen=True)
class Skeleton:
    """A model without weights, with the adapter that would be trained."""

    model: Any
    quantize: str | None = None  # of the weights under the adapter

    @classmethod
    def of(cls, source: Source, adapted: Callable[[Any], Any], *, whole: bool = False) -> Skeleton:
        """Read a model's configuration and build its modules.

        Args:
            source: the model.
            adapted: returns the model with its adapter.
            whole: all weights are trained, in float32 unless the source sets a precision.

        Raises:
            ModelError: transformers cannot build it from its configuration.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        dtype = precision(source.dtype or "float32") if whole else precision(source.dtype)
        try:
            config = AutoConfig.from_pretrained(source.place, revision=source.revision, trust_remote_code=False)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
                return cls(adapted(model).train(), source.quantize)
        except (ModelError, RecipeError):  # the adapter does not fit
            raise
        except Exception as error:  # a configuration's own checks raise anything
            raise ModelError(f"The model {source.name} cannot be built: {in_one_line(error)}") from None

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        """Every weight once, the adapter's included."""
        return list(self.model.parameters())

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """The weights that are trained."""
        return [weight for weight in self.weights if weight.requires_grad]

    @property
    def frozen_bytes(self) -> int:
        """Bytes of the weights that are not trained."""
        packed = set()
        if self.quantize is not None:
            head = self.model.get_output_embeddings()
            linear = (m for m in self.model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
            packed = {id(module.weight) for module in linear}
        frozen = [weight for weight in self.weights if not weight.requires_grad]
        return sum(packed_bytes(w, self.quantize) if id(w) in packed else w.nbytes for w in frozen)

    @property
    def multiplied(self) -> int:
        """Weights that each token is multiplied with: those of matrices, and of the head; not of the embedding."""
        embedding = self.model.get_input_embeddings().weight
        head = self.model.get_output_embeddings().weight
        return sum(w.numel() for w in self.weights if w.dim() > 1 and w is not embedding) + (
            head.numel() if head is embedding else 0
        )

    @property
    def adapted(self) -> int:
        """Number of matrices that the adapter changes."""
        return sum(hasattr(module, "lora_A") for module in self.model.modules())

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the head scores."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def kept_for_backward(self, rows: int, tokens: int, *, half: bool = False) -> int:
        """Bytes that the forward pass of a batch keeps for its backward pass, without the head's.

        Args:
            rows: of the batch.
            tokens: of each row, with padding.
            half: the pass runs under bfloat16 autocast.

        Raises:
            ModelError: the model's forward pass depends on data, as that of most mixtures of experts.
        """
        from torch._subclasses.fake_tensor import FakeTensorMode

        try:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16, enabled=half):
                own = _without_data(self.model)
                kept: dict[int, torch.Tensor] = {}

                def keep(tensor: torch.Tensor) -> torch.Tensor:
                    storage = tensor.untyped_storage()._cdata
                    if storage not in own:
                        kept[storage] = tensor
                    return tensor

                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    output = ModelParts(self.model).backbone(
                        input_ids=torch.zeros(rows, tokens, dtype=torch.long), use_cache=False
                    )
                del output
                return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        except Exception as error:  # a model's own code raises anything, and torch what it cannot count
            raise ModelError(f"The memory of activations cannot be counted ({type(error).__name__}).") from None

    def cached_row(self) -> RowBytes:
        """Return the memory that a row takes while the model writes.

        Raises:
            ModelError: the model's forward pass depends on data, or it has no cache.
        """
        from torch._subclasses.fake_tensor import FakeTensorMode

        rows, tokens = 1, 8
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                _without_data(self.model)
                output = ModelParts(self.model).backbone(
                    input_ids=torch.zeros(rows, tokens, dtype=torch.long), use_cache=True
                )
                return RowBytes.of(output.past_key_values, rows, tokens, self.vocabulary)
        except Exception as error:  # as above
            raise ModelError(f"The memory of generation cannot be counted ({type(error).__name__}).") from None


def _without_data(model: Any) -> set[int]:
    """Give a model on the "meta" device weights on the CPU that have no data; the storages of all of them."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    if isinstance(old, torch.nn.Parameter):
                        new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
                    made[id(old)] = new
                tensors[name] = made[id(old)]
    return {tensor.untyped_storage()._cdata for tensor in made.values()}

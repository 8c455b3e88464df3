"""`StaytruePlugin`: defenses in axolotl's supervised fine-tuning, by a section of its YAML file.

    plugins:
      - staytrue.integrations.axolotl.StaytruePlugin
    staytrue:
      defenses:
        - anchor: {}

Nothing heavy is imported here: axolotl prints the ImportError of a plugin and trains on without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from staytrue.config import paths, recipe
from staytrue.config.paths import CHOICES
from staytrue.defense import Defense, pulled
from staytrue.errors import RecipeError
from staytrue.utils.yaml12 import with_exponents

_ONE_FORWARD = "only supervised fine-tuning with axolotl's own trainer is guarded"
_MOVED = "it changes the weights under the adapter, which are the reference"
_SPREAD = "a model that is spread over several devices is not guarded"
_REFUSED = {
    **dict.fromkeys(("rl", "reward_model", "process_reward_model", "trainer_cls"), _ONE_FORWARD),
    **dict.fromkeys(("relora", "jagged_restart_steps", "lisa_n_layers", "qat"), _MOVED),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "layer_offloading"), _SPREAD),
    **dict.fromkeys(("pretraining_dataset", "streaming"), "the rows of a stream are not guarded"),
    **dict.fromkeys(
        ("sample_packing", "batch_flattening"), "several rows are joined into one, which is not tested here"
    ),
}
_SIZES = ("context_parallel_size", "tensor_parallel_size", "expert_parallel_size", "dp_shard_size", "dp_replicate_size")


class StaytrueArgs(BaseModel):
    """The key that the plugin adds to axolotl's configuration."""

    staytrue: dict[str, Any] | None = None


@dataclass(frozen=True)
class Section:
    """The `staytrue:` section of a configuration.

    Attributes:
        defenses: in listed order.
        reference: "base" or "start", where axolotl goes on from a trained adapter; None is the model before training.
        max_length: at how many tokens the defenses' own rows are cut.
    """

    defenses: tuple[Defense, ...]
    reference: str | None
    max_length: int | None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Section:
        """Read the section of a configuration; relative paths are relative to the working directory, as axolotl's.

        Raises:
            RecipeError: the section is missing or wrong, or another setting cannot be guarded.
        """
        section = config.get("staytrue")
        if not isinstance(section, Mapping):
            raise RecipeError(
                "The configuration names staytrue's plugin and has no section `staytrue:`, so nothing would be "
                "defended. Write `staytrue: {defenses: [{anchor: {}}]}`, or take the plugin out."
            )
        for key in section:
            if key not in ("defenses", "reference"):
                raise RecipeError(f"staytrue has no key {key!r}; it has `defenses` and `reference`.")
        listed, reference = section.get("defenses"), section.get("reference")
        if not listed:
            raise RecipeError("staytrue lists no `defenses`, so nothing would be defended. List one, such as anchor.")
        if reference not in (None, *CHOICES):
            raise RecipeError(f"staytrue: reference is {reference!r}; write base or start.")
        read = recipe.read_defenses(with_exponents(listed), "staytrue")  # axolotl reads YAML 1.1
        defenses = tuple(paths.of_defense(defense, Path.cwd()) for defense in read)
        _refuse_edits(defenses)
        _refuse_settings(config)
        return cls(defenses, reference, config.get("sequence_len"))


class StaytruePlugin(BasePlugin):  # type: ignore[misc]
    """A plugin of axolotl that gives it a trainer with the defenses of the section `staytrue:`."""

    def get_input_args(self) -> str:
        """Return the class with the keys that axolotl's configuration gets."""
        return f"{StaytrueArgs.__module__}.{StaytrueArgs.__name__}"

    def register(self, cfg: Any) -> None:
        """Check the configuration before anything is loaded.

        Raises:
            RecipeError: the section `staytrue:` is missing or wrong, or another setting cannot be guarded.
        """
        self._section(cfg)
        import staytrue.integrations.axolotl_trainer  # noqa: F401, an ImportError must end the program here

    def get_trainer_cls(self, cfg: Any) -> type[Any]:
        """Return axolotl's trainer with the defenses."""
        from staytrue.integrations.axolotl_trainer import guarded

        return guarded(self._section(cfg))

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Refuse a trainer of another plugin, in which no defense acts.

        Raises:
            RecipeError: its name.
        """
        if not hasattr(trainer, "guard"):
            raise RecipeError(
                f"Another plugin has brought the trainer {type(trainer).__name__}, in which no defense acts. Take that "
                "plugin out, or staytrue's."
            )

    def _section(self, cfg: Any) -> Section:
        return Section.of(cfg.to_dict() if hasattr(cfg, "to_dict") else cfg)


def _refuse_edits(defenses: tuple[Defense, ...]) -> None:
    for defense in defenses:
        if "curate" in pulled(defense):
            raise RecipeError(
                f"{defense.name()} edits the training rows or adds to them before they are tokens, and axolotl hands "
                "over tokens. Mix the rows into axolotl's `datasets:`, or train with `staytrue train`."
            )


def _refuse_settings(config: Mapping[str, Any]) -> None:
    for key, why in _REFUSED.items():
        if config.get(key):
            raise RecipeError(f"{key} is {config[key]!r}, and cannot be guarded: {why}. Take it out, or the plugin.")
    for key in _SIZES:
        if (config.get(key) or 1) > 1:
            raise RecipeError(f"{key} is {config[key]}, and cannot be guarded: {_SPREAD}. Set it to 1.")

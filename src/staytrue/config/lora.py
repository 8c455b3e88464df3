"""`Lora` is a recipe's `lora:` section: a fresh adapter, or a trained one that training goes on from."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticKnownError


def _number(value: Any, fault: Literal["int_type", "float_type"]) -> Any:
    """A value that is neither a truth value nor text, which pydantic would read as numbers."""
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers; write a number")
    if isinstance(value, str | bytes):
        raise PydanticKnownError(fault)
    return value


Whole = Annotated[int, BeforeValidator(partial(_number, fault="int_type"))]
Number = Annotated[float, BeforeValidator(partial(_number, fault="float_type"))]
Truth = Annotated[bool, Field(strict=True)]  # `yes` and 1 are none


class Lora(BaseModel):
    """The LoRA adapter; the defaults are those of arXiv 2508.06249 (rs-LoRA, r 32, alpha 64).

    Attributes:
        r: rank, at least 1.
        alpha: scale, above 0.
        rslora: divide `alpha` by the square root of `r` instead of `r`.
        dropout: 0 to 1, without 1.
        targets: "all-linear", names of modules, or a regular expression that matches whole names. Vision and audio
            towers are left out, except where a regular expression names them.
        exclude: names of modules that are not adapted, or a regular expression.
        rank_pattern: another rank for the modules whose names end with a name or match a regular expression.
        alpha_pattern: another scale for such modules; with `rslora` it is divided by the square root of their rank.
        modules_to_save: names of modules that are trained whole and saved with the adapter.
        dora: weight-decomposed LoRA (DoRA, arXiv 2402.09353).
        adapter: a run, or the folder of a trained adapter, that training goes on from; the other keys are its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    r: Annotated[Whole, Field(ge=1, lt=2**31)] = 32
    alpha: Annotated[Number, Field(gt=0, allow_inf_nan=False)] = 64
    rslora: Truth = True
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    exclude: str | tuple[str, ...] = ()
    rank_pattern: dict[str, Annotated[Whole, Field(ge=1, lt=2**31)]] = Field(default_factory=dict)
    alpha_pattern: dict[str, Annotated[Number, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    dora: Truth = False
    adapter: Path | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Lora:
        if self.adapter is None:
            return self
        if others := sorted(self.model_fields_set - {"adapter"}):
            raise ValueError(f"the adapter that training goes on from has its own {others[0]}; take that key out")
        return self

    @field_validator("targets", "exclude", "rank_pattern", "alpha_pattern")
    @classmethod
    def _compiles(cls, value: Any) -> Any:
        try:
            for pattern in (value,) if isinstance(value, str) else value if isinstance(value, dict) else ():
                re.compile(pattern)
        except re.error as error:
            raise ValueError(f"it is no regular expression ({error})") from None
        return value

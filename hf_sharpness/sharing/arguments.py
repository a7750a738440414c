"""What a shared config needs to know of training arguments, which lie above."""

from __future__ import annotations

from typing import Any, Protocol

from ..methods import BaseKind, Method


class Arguments(Protocol):
    """Training arguments that a config is made from, and made into."""

    optim: Any
    base_optim: Any
    sharpness_config: str | None

    @property
    def uses_sharpness(self) -> bool: ...

    def check_sharpness(self) -> None: ...

    def method(self) -> Method | None: ...

    def base_kind(self) -> BaseKind: ...

    def shared_values(self) -> dict[str, Any]:
        """What a config says of them."""

    @classmethod
    def shared_types(cls) -> dict[str, Any]:
        """What a config can set: name and type."""

    @staticmethod
    def optimizer_names() -> list[str]:
        """What ``optim`` can be."""

    @staticmethod
    def argument_defaults(optim: Any) -> dict[str, Any]:
        """The default of every argument, with such a method."""

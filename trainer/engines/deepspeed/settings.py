"""What a recipe says of DeepSpeed. Torch-free."""

from __future__ import annotations

import json
from typing import Any, Literal

from settings import ConfigError, Struct

_SECTIONS = (
    *("zero_optimization", "zero_optimization.offload_optimizer", "zero_optimization.offload_param"),
    *("bf16", "fp16", "optimizer", "optimizer.params", "aio"),
)


class Deepspeed(Struct, frozen=True, tag_field="kind", tag="deepspeed"):
    """DeepSpeed's ZeRO: what is sharded, and where it lies, is said by its own JSON."""

    config: str | dict[str, Any]
    """The JSON: a file, or its content; RUN_DIR/config.yaml holds the content."""

    @property
    def json(self) -> dict[str, Any]:
        assert isinstance(self.config, dict)  # a file was read before the tree became a config
        return self.config

    def check_sections(self) -> None:
        """Raises ConfigError where a value stands in place of a section."""
        for section in _SECTIONS:
            value: Any = self.json
            for key in section.split("."):
                value = value.get(key) or {}
                if not isinstance(value, dict):
                    raise ConfigError(
                        f"engine.config: {section}={json.dumps(value)}: a section is expected, as {{...}}"
                    )

    @property
    def zero(self) -> dict[str, Any]:
        """Its section on ZeRO."""
        return self.json.get("zero_optimization") or {}

    @property
    def stage(self) -> int:
        return int(self.zero.get("stage", 0))

    def place(self, what: Literal["optimizer", "param"]) -> str:
        """Where its state, or the parameters, lie in place of the GPU: cpu, nvme; none: nowhere else."""
        return str((self.zero.get(f"offload_{what}") or {}).get("device", "none"))

    @property
    def words(self) -> str:
        return f"deepspeed zero {self.stage}{' offload' * any(self.offloads)}"

    @property
    def offloads(self) -> tuple[bool, bool]:
        """Whether the optimizer's state lies elsewhere than on the GPU, and whether the weights do."""
        return self.place("optimizer") != "none", self.place("param") != "none"

"""Norms, rotations and gated layers by liger-kernel: a Triton kernel for each, where a model's own code has several.

The loss stays ours (loss.py), and the weights stay where they are: a module keeps its class and its parameters, and
computes otherwise. Torch-free up to `check`, so that a login node refuses what was never tried.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from settings import ConfigError
from trainer.model.model_config import folder_config
from trainer.shape import Model

if TYPE_CHECKING:
    import torch

FAMILIES = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "granite", "phi3", "olmo2", "olmo3", "smollm3", "glm4"), "silu"
    ),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "gelu_pytorch_tanh"),
}
"""By model_type, what the kernel of a gated layer computes, whatever the model's config says. Their losses and
gradients were seen to be those of transformers; liger-kernel knows more, experts among them, whose sums over tokens
come in another order each time."""


def check_family(settings: Model) -> None:
    """Raises ConfigError for a model that the kernels were not tried with."""
    values = settings.config or folder_config(str(settings.path))
    kind = str(values.get("model_type"))
    if kind not in FAMILIES:
        raise ConfigError(
            f"train.kernels=liger was not tried with {kind}, but with {', '.join(FAMILIES)}: leave it out"
        )
    for key in ("hidden_act", "hidden_activation"):
        if (given := values.get(key)) not in (None, FAMILIES[kind]):
            raise ConfigError(
                f"train.kernels=liger computes {FAMILIES[kind]}, this model's {key} is {given}: leave it out"
            )


def check(settings: Model, device: torch.device) -> None:
    """With one small norm, forward and backward. Raises ConfigError where the kernels cannot run."""
    check_family(settings)
    if device.type != "cuda":
        raise ConfigError(f"train.kernels=liger needs a GPU, and this rank computes on {device.type}: leave it out")
    try_out(device)


def try_out(device: torch.device) -> None:
    """Raises ConfigError where the package is missing, or computes nothing."""
    import logging  # 3 ms, which a dry run has no use for

    # Its first call complains about kernels of other makers that are not installed.
    logging.getLogger("liger_kernel.backends.registry").setLevel(logging.ERROR)
    try:
        from liger_kernel.transformers import LigerRMSNorm
    except ImportError as error:
        what = f"train.kernels=liger needs liger-kernel in the ranks' Python: pip install liger-kernel ({error})"
        raise ConfigError(what) from None
    import torch

    try:
        x = torch.ones(2, 64, device=device, requires_grad=True)
        LigerRMSNorm(64).to(device)(x).sum().backward()
        assert x.grad is not None and bool(torch.isfinite(x.grad).all()), "a gradient that is not finite"
    except torch.OutOfMemoryError:
        raise  # of another process that is about to leave: the next attempt may find room
    except Exception as error:  # what Triton raises without a C compiler, or for a device that it does not know
        what = f"the installed liger-kernel cannot compute on {device.type}"
        raise ConfigError(f"train.kernels=liger: {what}: {' '.join(str(error).split())[:300]}") from None


def apply(model: Any) -> None:
    """By liger-kernel's own function for this family; parameters may be on the meta device, and get no other place."""
    from liger_kernel import transformers as liger

    patch = getattr(liger, f"apply_liger_kernel_to_{model.config.model_type}")
    home = vars(sys.modules[type(model).__module__])
    # It also puts classes of its own in the place of transformers', with other parameters where a config asks for
    # biases. The weights are drawn from another model of the same kind: what is built later is built of theirs.
    classes = {name: value for name, value in home.items() if isinstance(value, type)}
    patch(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
    home.update(classes)

"""transformers' Trainer as it is, outlasting its time limit: it saves every few steps, and a new attempt resumes.

    python launch.py --nodes 2 --gpus 2 --progress 'trainer/checkpoint-*' -- python recipes/any/hf_trainer.py

A tiny Llama with random weights on random tokens. Nothing here knows of Outlast but the folder. It handles no signal:
the steps since the last checkpoint are done again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed


class RandomTokens(torch.utils.data.Dataset):
    """The same sequences in every attempt."""

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(0, 256, (32,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


def newest_checkpoint(folder: Path) -> str | None:
    """The newest that is whole. Trainer writes its state last, but `resume_from_checkpoint=True` takes one that a kill
    has left without it, and fails at every start from then on."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return str(newest) if newest else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--save-steps", type=int, default=20)
    words = parser.parse_args()
    folder = Path(os.environ.get("OUTLAST_RUN_DIR", ".")) / "trainer"
    set_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=64, **shape))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=words.steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        save_steps=words.save_steps,
        save_total_limit=2,
        logging_steps=1,
        disable_tqdm=True,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=RandomTokens())
    trainer.train(resume_from_checkpoint=newest_checkpoint(folder))
    trainer.save_model(str(folder / "final"))


if __name__ == "__main__":
    main()

"""DeepSpeed's own loop, a process a rank: `python deepspeed_loop.py FOLDER`. Labels are shifted on the way in."""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import common  # noqa: E402
import deepspeed  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn.functional import cross_entropy, pad  # noqa: E402


def main(folder: Path) -> None:
    options, gate = common.settings(folder), common.Gate()
    tokens, rows = np.load(options["tokens"], mmap_mode="r"), options["rows"]
    network = common.model(options)
    deepspeed.init_distributed("gloo", verbose=False)
    given = {"train_micro_batch_size_per_gpu": rows, "gradient_clipping": options["clip"], **options["deepspeed"]}
    engine = deepspeed.initialize(model=network, optimizer=common.optimizer(network, options), config=given)[0]
    gate.watch(engine)
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for step in count():
        gate.step()
        first = (step * world + rank) * rows
        inputs = torch.from_numpy(tokens[first : first + rows].astype(np.int64))
        labels = pad(inputs[:, 1:], (0, 1), value=-100)
        logits = engine(input_ids=inputs).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        engine.backward(loss)
        engine.step()
        gate.values["loss"] = loss.item()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

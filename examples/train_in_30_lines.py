"""Train without the trainer: the stream, the engine and a loop of one's own. Works under torchrun as well.

python examples/train_in_30_lines.py configs/demo.yaml training.steps=20
torchrun --nproc-per-node 2 examples/train_in_30_lines.py configs/demo.yaml training.steps=20
"""

import os
import sys

import megatron_lst as lst


def main() -> None:
    config = lst.load_config(sys.argv[1] if len(sys.argv) > 1 else "configs/demo.yaml", sys.argv[2:])
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    # Tensor- and pipeline-parallel ranks see the same rows; data-parallel ranks share them.
    model_ranks = config.parallel.tensor * config.parallel.pipeline
    data_rank = rank // config.parallel.tensor % (world // model_ranks)
    stream = lst.RowStream(config, data_rank, world // model_ranks)
    with lst.open_engine(config) as engine:
        for step in range(1, config.training.steps + 1):
            rate = config.training.lr * min(1.0, step / config.training.warmup_steps)
            result = engine.step(next(stream).rows, rate)
            if rank == 0:
                print(f"step {step}: loss {result.loss:.4f}, gradient norm {result.grad_norm:.3f}", flush=True)


if __name__ == "__main__":
    main()

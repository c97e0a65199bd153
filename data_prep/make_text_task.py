"""Make a task of lm-eval from held-out text: which of four passages goes on from the one before?

    python data_prep/make_text_task.py data/demo/heldout-text TASKS

writes TASKS/NAME.yaml and TASKS/NAME.jsonl, a folder for `lst eval harness --tasks-from` and for
`evaluation.text.tasks_from`.  No network is needed, and the text is any set of shards that `lst prep` made.

An item is a passage of one document, cut between words: `--prompt` words, then the next `--continuation` words, against
as many words from each of three other documents, at the same place.  Which words tell them apart is a matter of names,
subject and grammar; guessing is right in a quarter of the items.  Items, candidates and their order are drawn by
`--seed`; no two items share a passage.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import yaml

from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import LstError, UserError
from megatron_lst.files import write_text

CANDIDATES = 4


def items(texts: list[str], prompt: int, continuation: int, most: int, seed: int = 0) -> list[dict[str, object]]:
    """`context`, `choices` (4) and `answer` of each item.

    Args:
        texts: of the documents.
        prompt, continuation: words.
        most: items; fewer where the text has no more.

    Raises:
        UserError: fewer than four documents are long enough.
    """
    need = prompt + continuation
    words = [found for found in (text.split() for text in texts) if len(found) >= need]
    if len(words) < CANDIDATES:
        raise UserError(f"four documents of {need} words are needed; there are {len(words)}")
    places = [(d, at) for d, found in enumerate(words) for at in range(0, len(found) - need + 1, need)]
    rng = np.random.default_rng(seed)
    made = []
    for d, at in (places[i] for i in rng.permutation(len(places))[:most].tolist()):
        choices = [" ".join(words[d][at + prompt : at + need])]
        for other in rng.permutation([i for i in range(len(words)) if i != d])[: CANDIDATES - 1].tolist():
            begin = int(rng.integers((len(words[other]) - need) // need + 1)) * need + prompt
            choices.append(" ".join(words[other][begin : begin + continuation]))
        order = rng.permutation(CANDIDATES).tolist()
        made.append(
            {
                "context": " ".join(words[d][at : at + prompt]),
                "choices": [choices[i] for i in order],
                "answer": order.index(0),
            }
        )
    return made


def write_task(folder: Path, name: str, made: list[dict[str, object]]) -> Path:
    """NAME.jsonl and NAME.yaml, which names the other by its whole path."""
    folder.mkdir(parents=True, exist_ok=True)
    data = (folder / f"{name}.jsonl").resolve()
    write_text(data, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in made))
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 0,
        "metric_list": metrics,
        "metadata": {"version": 1},
    }
    path = folder / f"{name}.yaml"
    write_text(path, yaml.safe_dump(task, sort_keys=False))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="A set of text")
    parser.add_argument("out", type=Path, help="Folder of tasks")
    parser.add_argument("--name", default="heldout_passages", help="Name of the task")
    parser.add_argument("--prompt", type=int, default=25, help="Words")
    parser.add_argument("--continuation", type=int, default=8, help="Words")
    parser.add_argument("--items", type=int, default=200, help="At most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shards = ShardSet.open(str(options.shards))
    texts = [document.text for document in shards if not document.has_speech]
    made = items(texts, options.prompt, options.continuation, options.items, options.seed)
    print(f"{write_task(options.out, options.name, made)}: {len(made)} items, {CANDIDATES} candidates each")


if __name__ == "__main__":
    try:
        main()
    except LstError as error:
        sys.exit(f"make_text_task: {error}")

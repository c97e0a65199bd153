"""`lst eval words` and `lst eval jitter`: what patches of words look like, and what noisy boundaries cost."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from megatron_lst.cli.options import JSON, answering

UNITS = 4096
"""Units of the rows that items are packed into."""


def words(
    export: Annotated[Path, typer.Argument(help="An exported LST")],
    documents: Annotated[Path, typer.Argument(help="A held-out shard set of speech")],
    out: Annotated[Path, typer.Option(help="The picture")] = Path("words.png"),
    limit: Annotated[int, typer.Option(min=1, help="First documents only")] = 200,
    least: Annotated[int, typer.Option(min=2, help="Least occurrences of a word")] = 5,
    count: Annotated[int, typer.Option(min=2, help="How many words, the most frequent ones")] = 20,
    device: Annotated[str, typer.Option()] = "cpu",
    as_json: JSON = False,
) -> None:
    """Patch embeddings of frequent words, one aligned patch each: do recordings of a word lie together?"""
    from megatron_lst.cli.speech_tasks import open_with_documents
    from megatron_lst.evaluation.embeddings import clustering, draw, word_embeddings

    with answering(as_json) as answer:
        opened, model, found = open_with_documents(export, documents, limit, device)
        embeddings = word_embeddings(model, opened.patching, found, least=least, words=count)
        result = clustering(embeddings)
        draw(embeddings, out)
        print(f"{result.occurrences} occurrences of {result.words} words: {out}")
        print(f"cosine within a word {result.within:.2f} (paper 0.87), between words {result.between:.2f} (0.43)")
        print(f"silhouette {result.silhouette:.2f} (paper 0.65 to 0.68)")
        answer({"picture": out, **asdict(result)})


def jitter(
    export: Annotated[Path, typer.Argument(help="An exported LST that was trained on aligned patches")],
    documents: Annotated[Path, typer.Argument(help="A held-out shard set of speech")],
    frames: Annotated[str, typer.Option(help="Largest moves to try, in frames")] = "0,1,2",
    limit: Annotated[int, typer.Option(min=1, help="First documents only")] = 200,
    items: Annotated[int, typer.Option(min=1, help="Choice items")] = 300,
    prompt_words: Annotated[int, typer.Option(min=1)] = 20,
    continuation_words: Annotated[int, typer.Option(min=1)] = 10,
    device: Annotated[str, typer.Option()] = "cpu",
    as_json: JSON = False,
) -> None:
    """S->S choice with patches at word boundaries that are moved at random (the paper: at most one point lost)."""
    import numpy as np

    from megatron_lst.cli.speech_tasks import open_with_documents
    from megatron_lst.errors import UserError
    from megatron_lst.evaluation.choice import run_choice
    from megatron_lst.evaluation.embeddings import jitter as moved
    from megatron_lst.evaluation.heldout import continuation_choices
    from megatron_lst.patching.strategies import evaluation_patcher

    if not all(part.strip().isdigit() for part in frames.split(",")):
        raise UserError(f"--frames {frames!r}: expected numbers such as 0,1,2")
    with answering(as_json) as answer:
        opened, model, found = open_with_documents(export, documents, limit, device)
        patcher = evaluation_patcher(opened.config, opened.patching, aligned=True)
        moves = []
        print("| moved by up to | items | accuracy |\n|---:|---:|---|")
        for size in (int(part) for part in frames.split(",")):
            rng = np.random.default_rng(0)
            noisy = [moved(document, size, rng, opened.patching.granularity) for document in found]
            choices = continuation_choices(
                noisy, "S->S", patcher, prompt_words=prompt_words, continuation_words=continuation_words, items=items
            )
            accuracy = run_choice("jitter", choices, model.score, model.vocabulary, patcher, UNITS).accuracy()
            assert accuracy is not None
            interval = f"{100 * accuracy.mean:.1f} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"
            frame = float(1000 / model.vocabulary.rate)
            print(f"| {frame * size:g} ms | {accuracy.count} | {interval} |")
            moves.append({"frames": size, "milliseconds": frame * size, "accuracy": asdict(accuracy)})
        answer({"moved": moves})

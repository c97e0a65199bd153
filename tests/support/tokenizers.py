"""Small tokenizers in real files."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers


def character_tokenizer(path: Path, characters: str) -> Path:
    """Write a tokenizer.json with an id for each character from 3 on; others are <unk>, and white space is dropped."""
    vocabulary = {name: i for i, name in enumerate(("<unk>", "<s>", "</s>", *characters))}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    model.decoder = decoders.Fuse()
    model.save(str(path))
    return path

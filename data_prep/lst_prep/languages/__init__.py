"""What depends on a language: its tag, how its numbers are said, where its words end, its letters in Latin script.

Nothing here knows of audio. What is not known of a language follows the rules of Unicode alone.
"""

from lst_prep.languages.breaks import Segmenter, segmenter
from lst_prep.languages.spoken import spoken_words, written_words
from lst_prep.languages.tags import ENGLISH, base_language, is_unspaced, language_tag

__all__ = [
    "ENGLISH",
    "Segmenter",
    "base_language",
    "is_unspaced",
    "language_tag",
    "segmenter",
    "spoken_words",
    "written_words",
]

"""Why a piece of input was not used: one exception, one list of reasons, counted and reported, never fatal."""

REASONS: dict[str, str] = {
    "given_up": "cannot be read, and given up by name (give_up, or `lst prep give-up`)",
    "ignored_file": "a file of a kind that the source does not read",
    "unreadable_audio": "the file is corrupt or of an unknown format",
    "empty_audio": "no samples",
    "outside_audio": "times behind the end of the audio",
    "fault": "an error that nobody foresaw, of this piece alone",
    "too_short": "shorter than one word could be (audio.min_seconds)",
    "too_long": "longer than audio.max_seconds",
    "silent_audio": "no sound above the noise floor",
    "clipped_audio": "more than audio.max_clipped of the samples are at full scale",
    "low_rate_audio": "recorded below audio.min_rate: the upper half of the spectrum is missing",
    "empty_transcript": "no words",
    "markup_in_transcript": "tags, brackets or timestamps in the transcript",
    "language": "a language or letters that the aligner does not know",
    "number": "digits, while align.numbers is `reject`",
    "no_pronunciation": "a word that no dictionary at hand knows",
    "words_too_fast": "more words than this much audio can hold: wrong transcript, or another language",
    "not_aligned": "the aligner found no path from the first to the last word",
    "words_differ": "the alignment has other words than the transcript",
    "no_alignment": "there is no alignment of this piece",
    "bad_alignment": "an alignment that is not what its format says",
    "low_score": "alignment score under align.min_score",
    "held_out": "holds a sentence that is held out",
    "duplicate_text": "a text document that was there before, word for word",
    "duplicate_id": "an id that was there before",
    "unknown_key": "a manifest line with a key that is not known: nothing is left out silently",
    "bad_manifest_line": "a line that is not a JSON object with id, audio and text",
    "outside_corpus": "a path that leads out of the manifest's folder, or of audio.root",
    "bad_text_line": "a text record that is not what its format says",
    "unreadable_record": "a record that is not what its format says",
    "unreadable_tokens": "tokens in a file that is no array of numbers",
    "bad_record": "a value that is missing, or of another kind",
    "bad_tokens": "tokens that are not integers, or none",
    "bad_shape": "another number of codebooks, or axes the other way round",
    "code_out_of_range": "a code that its codebook does not have",
    "rate_mismatch": "more or fewer frames than the duration and the codec's rate say",
    "other_codec": "tokens of another codec than the configuration's",
    "bad_times": "times of words or segments that go backwards or lie outside the record",
    "unknown_split": "a split that is neither training nor held out by its name",
    "tokenizer": "the tokenizer gives no piece for a word",
    "bad_conversation": "messages that are not of the form of docs/chat.md",
    "ends_with_user": "a conversation without an answer at its end",
    "special_token": "a text that holds a special token of the tokenizer",
    "no_such_span": "a span of a document or frames that are not there",
    "missing_modality": "the style asks for speech or text that a turn does not have",
    "longer_than_a_row": "a conversation of more units or tokens than a row has",
}
"""Every reason, and what it means; the report prints both."""


class Rejection(Exception):
    """This piece cannot be used. Caught by the stage that reads the piece, counted under `reason`.

    Attributes:
        reason: a key of REASONS.
        detail: what exactly, for the log of rejections.
        lost_bytes: of the input, where it breaks off: what was not looked at.
    """

    def __init__(self, reason: str, detail: str = "", lost_bytes: int = 0) -> None:
        if reason not in REASONS:
            raise ValueError(f"unknown rejection reason {reason!r}")
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.lost_bytes = lost_bytes

    def __reduce__(self) -> tuple[type["Rejection"], tuple[str, str, int]]:
        return Rejection, (self.reason, self.detail, self.lost_bytes)

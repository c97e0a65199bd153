"""Speech tokens that are made already -> shard sets: `lst prep import`.

    files -> readers -> Record -> checks, documents -> Document -> shards

A reader knows a format and nothing of codecs; what is made of a record knows nothing of formats.
"""

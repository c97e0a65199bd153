"""Conversations -> shard sets: `lst prep chat`.

JSONL -> messages -> style -> speech of each turn -> chat template -> Document -> shards
"""

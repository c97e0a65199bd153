"""Look at prepared data: a document, its words, its patches, and what a row costs.

python examples/look_at_data.py configs/demo.yaml        (after `make demo`, or any configuration with shards)
"""

import sys

import megatron_lst as lst

config = lst.load_config(sys.argv[1] if len(sys.argv) > 1 else "configs/demo.yaml", sys.argv[2:])
source = next(s for s in config.data.sources if s.kind == "interleaved")
shards = lst.ShardSet(source.shards[0])
print(f"{source.name}: {len(shards):,} documents, {shards.frames.sum():,} frames of {shards.codec}")

document = shards[0]
print(f"\n{document.id}: {document.text[:70]!r}")
for (begin, end), (first, last) in list(zip(document.word_frames, document.word_chars, strict=True))[:5]:
    print(f"  frames {begin:4} to {end:4}  {document.text[first:last]}")

for strategy in ("static", "aligned"):
    chunk = lst.patch_document(document, config, strategy)
    print(f"{strategy}: {len(chunk.tokens)} tokens in {len(chunk.patch_length)} units of {chunk.patch_length[:16]}...")

rows = next(lst.RowStream(config)).rows
row = rows[0]
print(
    f"\na row: {row.units} units, {len(row.tokens)} tokens, {lst.row_flops(config, row) / 1e9:.1f} GFLOPs to train on"
)
print(f"the model: {lst.parameters(config) / 1e6:.1f} M parameters")

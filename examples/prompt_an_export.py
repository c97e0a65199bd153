"""Load an exported model, score a continuation and generate one. No Megatron here.

python examples/prompt_an_export.py runs/demo/export "And the king said unto"
"""

import sys

import megatron_lst as lst

export = lst.load_export(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/export")
prompt = sys.argv[2] if len(sys.argv) > 2 else "And the king said unto"
model, vocabulary = export.model(), export.vocabulary
tokenizer = lst.load_tokenizer(export.tokenizer)

tokens = [vocabulary.bos, *tokenizer.encode(prompt)]
(answer,), timing = lst.generate(model, [tokens], lst.GenerationSettings(max_tokens=20, modality="text"))
print(f"{prompt} ...{tokenizer.decode([t for t in answer.tokens if t < vocabulary.text_size])}")
print(f"{timing.tokens} tokens, one pass of the large model for each text token and each patch")

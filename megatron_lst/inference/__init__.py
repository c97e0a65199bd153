"""What people run: the exported model in plain torch with KV caches, generation and a vocoder; no Megatron here.

model       LatentSpeechTextModel: advance a batch of sequences, score rows
layers      its parts: blocks, patch encoder, patch decoder, under the canonical weight names
cache       what a batch of sequences remembers: keys and values of every layer
inputs      which tokens and units a call adds to each sequence, from a row's maps or from a patch counter
generation  the decoding loop (SPEC 9)
conversation  turns of text and speech with a model, caches kept from turn to turn
fixed       decoding in fixed shapes, captured as CUDA graphs on a GPU
export      the exported folder: config.json, model*.safetensors, README.md
vocoder     units to waveform
"""

from megatron_lst.inference.conversation import Answer, Conversation
from megatron_lst.inference.export import Export, load_export, write_export
from megatron_lst.inference.generation import Generated, GenerationSettings, generate
from megatron_lst.inference.model import LatentSpeechTextModel

__all__ = [
    "Answer",
    "Conversation",
    "Export",
    "Generated",
    "GenerationSettings",
    "LatentSpeechTextModel",
    "generate",
    "load_export",
    "write_export",
]

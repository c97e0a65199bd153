"""The pipeline split: global layers assigned to stages so that the patch encoder and decoder weigh in."""

from dataclasses import dataclass

from megatron_lst.config.schema import Config
from megatron_lst.flops import module_flops


@dataclass(frozen=True)
class PipelineSplit:
    """Global layers of each model chunk, in the order of the layers.

    Attributes:
        layers: layers of chunk c; chunk c lives on stage c % pipeline.
        loads: predicted share of a row's forward FLOPs on each pipeline stage; they add up to more than 1 where the
            encoder is replicated on the last stage.
        imbalance: the heaviest stage over the mean, minus 1.
    """

    layers: tuple[int, ...]
    loads: tuple[float, ...]
    imbalance: float

    def first_layer(self, chunk: int) -> int:
        return sum(self.layers[:chunk])


def stage_work(config: Config) -> tuple[float, float, float, float]:
    """Forward FLOPs of an expected row: (encoder states, patches, one global layer, decoder with head), SPEC 8."""
    flops = module_flops(config)

    def of(*prefixes: str) -> float:
        return sum(value for name, value in flops.items() if name.startswith(prefixes))

    states = of("encoder.attention", "encoder.mlp")
    return states, of("encoder.") - states, of("global.") / config.model.layers, of("decoder.", "head", "text_head")


def pipeline_split(config: Config, pipeline: int, virtual: int = 1) -> PipelineSplit:
    """Assign the global layers to `pipeline * virtual` chunks; `parallel.split` overrides.

    Greedy: each layer goes to the stage that is lightest so far, there to its lightest chunk.  The first stage starts
    with the encoder's work, the last with the decoder's and, where the encoder is replicated, that work again.
    """
    states, patches, layer, decoder = stage_work(config)
    replicated = states if pipeline > 1 and config.model.decoder_input == "encoder" else 0.0
    chunks = pipeline * virtual
    load = [0.0] * chunks  # FLOPs of each chunk; chunk c is on stage c % pipeline
    load[0] += states + patches
    load[-1] += decoder + replicated
    layers = [0] * chunks
    if config.parallel.split is not None and len(config.parallel.split) == chunks:
        layers = list(config.parallel.split)
        load = [extra + n * layer for extra, n in zip(load, layers, strict=True)]
    else:
        for _ in range(config.model.layers):
            stage = min(range(pipeline), key=lambda s: (sum(load[s::pipeline]), s))  # equal loads: the first of them
            chunk = min(range(stage, chunks, pipeline), key=lambda c: (load[c], c))
            layers[chunk] += 1
            load[chunk] += layer
    stages = [sum(load[s::pipeline]) for s in range(pipeline)]
    row = states + patches + decoder + config.model.layers * layer
    mean = sum(stages) / pipeline
    return PipelineSplit(tuple(layers), tuple(s / row for s in stages), max(stages) / mean - 1.0)

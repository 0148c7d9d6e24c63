# SPDX-License-Identifier: Apache-2.0
"""The words that parameters and modules are named with, and what each of them means.

This is data: kinds of words, and for each kind the words by where they were seen. A
word may be of several kinds. Tokens are cut into words by `words`, and `evidence` says
what follows from them. There is no stemming: `queries` are learned and a `query`
projects, so both forms of a word stand here where both occur.
"""

import enum
from collections.abc import Mapping
from types import MappingProxyType


class Kind(enum.Flag):
    """What a word says about the thing that it names."""

    NONE = 0
    WEIGHT = enum.auto()  # a matrix, if it has two axes; the modules above know more
    KERNEL = enum.auto()  # a matrix, if it has two axes, whatever stands above
    BIAS = enum.auto()
    SCALE = enum.auto()
    NORM = enum.auto()
    TABLE = enum.auto()
    TOKEN = enum.auto()  # a learned token; of a table, what its rows stand for
    POSITION = enum.auto()
    FACTOR = enum.auto()
    CONSTANT = enum.auto()
    CODEBOOK = enum.auto()
    QUANTIZER = enum.auto()
    LORA = enum.auto()
    STATISTIC = enum.auto()
    LAYER = enum.auto()  # a module that multiplies by its weight
    ROW = enum.auto()  # what the rows of a table stand for, where indices choose them
    NEUTRAL = enum.auto()  # an adjective: understood, and decides nothing
    SILENT = enum.auto()  # a module that holds modules of all kinds
    WRAPPER = enum.auto()  # silent, and as the last token no name of the array either
    DENSE = enum.auto()  # what linear layers embed: no index chooses these


_Words = Mapping[str, str]

WEIGHT: _Words = {
    "everywhere": "weight weights",
    "Flax, Keras": "kernel kernels",
    "Haiku, hand-written trees": "w",
}
BIAS: _Words = {
    "everywhere": "bias biases",
    "norms of Flax, Keras and Haiku": "beta betas offset offsets",
    "statistics, DeepSpeed": "intercept bvec",
    "flows": "loc translate",
    "adaptive norms, flows": "shift shifts",
    "attention of hand-written trees": "bq bk bv bo bqkv",
}
SCALE: _Words = {
    "norms of Flax and Keras": "scale scales gamma gammas",
    "weight normalisation": "gain gains magnitude magnitudes",
    "praxis, quantised checkpoints": "scaling scaler multiplier multipliers absmax scb",
    "quantised checkpoints": "amax zeros",
    "vision transformers": "ls layerscale",
}
NORM: _Words = {
    "everywhere": "norm norms normalization normalisation",
    "torch, Haiku, Hugging Face": "layernorm batchnorm groupnorm instancenorm rmsnorm",
    "GPT-2, ResNet": "ln bn gn lnf lns bns inorm",
    "llama2.c": "rms",
    "Glow, EfficientNet, transformers": "actnorm evonorm scalenorm prenorm postnorm",
}
TABLE: _Words = {
    "everywhere": "embedding embeddings embed embeds emb embs",
    "llama.cpp, GPT-2": "embd embds wte wpe",
    "DiT, Swin, instant-ngp": "table tables",
}
TOKEN: _Words = {
    "vision transformers": "token tokens cls register registers tok",
    "Perceiver, DETR, BLIP-2": "latent latents queries query",
    "prompt tuning, SigLIP": "prompt prompts prefix prefixes probe",
    "set transformers": "inducing seeds",
}
POSITION: _Words = {
    "everywhere": "pos position positional positions posemb posembed wpe",
    "T5, Swin, BEiT": "rel relative relpos rpb rpe abspos ape",
    "sinusoids": "pe",
}
FACTOR: _Words = {
    "temperatures": "temperature temperatures temp tau sink sinks",
    "mixing of residual streams": "alpha alphas coef coefs coefficient coefficients",
    "PEFT": "ia3",
    "linear recurrent units, diffusion": "nu omega theta eta zeta kappa",
    "reinforcement learning": "std logstd stddev sigma logsigma deltas delta",
    "RWKV": "mix maa",
    "PReLU, ReZero, StyleGAN": "slope slopes resweight strength scalar scalars",
}
CONSTANT: _Words = {
    "S4, S5, Mamba": "alog decay decays dt lambda lambdas step steps logs log",
    "moving averages": "decayrate",
    "rotary positions": "freq freqs frequency frequencies",
    "spiking networks": "timescale timescales threshold thresholds",
    "RWKV": "faaaa bonus",
}
CODEBOOK: _Words = {
    "EnCodec, DAC, SoundStream": "codebook codebooks",
    "wav2vec 2": "codevector codevectors codeword codewords",
}
QUANTIZER: _Words = {
    "VQGAN, Haiku, DAC": "quant quantize quantizer quantizers quantiser quantisers",
    "vector-quantize-pytorch": "vq rvq fsq",
}
LORA: _Words = {
    "PEFT, qwix, gemma": "lora loras dora vera adalora qlora",
    "LyCORIS": "loha hada lokr locon",
    "orthogonal and other adapters of PEFT": "oft boft hra",
}
STATISTIC: _Words = {
    "batch norms": "mean means var variance variances running moving",
    "Haiku": "average averages ema",
    "Flax": "batchstats stats statistics",
    "counters": "count counts counter tracked",
}
LAYER: _Words = {
    "torch, Flax, Haiku": "linear dense conv convs convolution convolutions deconv lin "
    "einsum affine bilinear matmul fc fcs ff ffn ffw transpose transposed "
    "gru lstm rnn cell ih hh recurrent perceptron",
    "transformers": "attention attn att q k v o kv qk qkv key value query keys values "
    "wq wk wv wo wi wh wz wqkv wkv mlp mlps head heads receptance mha mhsa",
    "projections": "proj projs projection projections projector project projected in "
    "out up down to output outputs hidden intermediate pointwise dw pw depthwise "
    "mapping transform transformation mixer mixing fuse fusion merge reduce reduction "
    "expand squeeze excite excitation unembed swiglu glu geglu",
    "heads": "classifier classifiers pooler logits logit score scores predictions "
    "relationship predictor regressor",
    "mixtures of experts": "expert experts router routers gate gates gating",
    "networks": "net filter generator modulation adaln critic actor policy adapter",
    "PyTorch Geometric": "gcn gat sage",
    "hyena, state-space models": "xproj",
    "ConvNeXt": "pwconv dwconv",
    "deformable attention": "sampling",
    "detection, forecasts": "pred preds predict prediction regression forecast "
    "backcast summary objective select",
    "xLSTM": "preact fgate igate ogate",
}
ROW: _Words = {
    "language models": "word words vocab vocabulary char chars character characters "
    "subword piece segment seg type types lang language languages level ngram",
    "recommenders, graphs of knowledge": "user users item items entity entities "
    "relation relations",
}
NEUTRAL: _Words = {
    "tables": "shared per learned learnable trainable absolute abs level label class "
    "classes input inputs id ids text speech spatial temporal code col column row bag "
    "vlm window win frame frames tile aspect ratio bigram hash turn modality height "
    "width "
    "encoding encodings codes lookup",
    "tokens": "mask masked pad null start end bos eos dist distillation reg storage "
    "obj object iou memory motion soft hf",
    "places": "pre post final first last initial init global local extra added mid "
    "enc dec encoder decoder inner outer self cross left right side gated src tgt "
    "image before after residual res skip short e per2",
    "behind a name": "h re im real imag reverse inv param parameter parameters vector "
    "vectors matrix tensor with mqa bwd fwd forward backward dim",
}
SILENT: _Words = {
    "everywhere": "layer layers block blocks stage stages model models module modules "
    "net network networks base main core backbone trunk body branch branches tree "
    "encoder decoder encoders decoders self group groups list path inner outer",
    "Hugging Face, diffusers": "h transformer transformers stem neck tower towers "
    "vision visual text language resnet resnets unet vae downsample upsample "
    "downsamplers upsamplers attentions feature features extractor resblocks shortcut "
    "nn seq sequential student teacher",
    "flowjax": "bijection bijections",
}
WRAPPER: _Words = {
    "flowjax, Equinox": "args raw unconstrained",
    "PEFT, torch": "default original parametrizations",
    "Flax, Haiku": "params",
    "qwix": "array",
}
DENSE: _Words = {
    "images, diffusion": "patch patches pixel pixels time timestep timesteps noise "
    "cond condition context pooled guidance",
    "graphs, control": "node nodes edge edges action state obs observation reward "
    "return coord coords bbox box boxes",
}

# Modules that make the outputs of a model, by the first word of a token or its last,
# and words that tell of hidden ones: `multi_head`, `pre_logits`.
OUTPUTS = frozenset("head unembed logits classifier score".split())
HIDDEN = frozenset("multi pre".split())
# What the words of all modules that embed begin with, linear layers among them.
EMBEDS = "emb"
# Only in front of all: deeper down BERT has an `output`, and GPT-J an `fc_out`, in
# every layer.
OUTERMOST = frozenset("output fc_out".split())

# Types of modules, where the module that holds a leaf is at hand.
NORM_TYPES = frozenset(
    # Flax, Equinox, Haiku, torch, Hugging Face
    "LayerNorm RMSNorm RmsNorm BatchNorm GroupNorm InstanceNorm "
    "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm LayerNorm2d GroupNorm1 "
    "InstanceNorm1d InstanceNorm2d InstanceNorm3d "
    "T5LayerNorm LlamaRMSNorm MistralRMSNorm Qwen2RMSNorm GemmaRMSNorm".split()
)
TABLE_TYPES = frozenset("Embed Embedding EmbeddingBag".split())
LAYER_TYPES = frozenset(
    "Linear Dense DenseGeneral LinearGeneral Einsum Conv Conv1D Conv2D Conv3D "
    "ConvLocal ConvTranspose Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d "
    "ConvTranspose3d Conv1DTranspose Conv2DTranspose Conv3DTranspose "
    "DepthwiseConv2D".split()
)

LEXICON: Mapping[Kind, _Words] = MappingProxyType(
    {
        Kind.BIAS: BIAS,
        Kind.SCALE: SCALE,
        Kind.NORM: NORM,
        Kind.TABLE: TABLE,
        Kind.TOKEN: TOKEN,
        Kind.POSITION: POSITION,
        Kind.FACTOR: FACTOR,
        Kind.CONSTANT: CONSTANT,
        Kind.CODEBOOK: CODEBOOK,
        Kind.QUANTIZER: QUANTIZER,
        Kind.LORA: LORA,
        Kind.STATISTIC: STATISTIC,
        Kind.LAYER: LAYER,
        Kind.ROW: ROW,
        Kind.NEUTRAL: NEUTRAL,
        Kind.SILENT: SILENT,
        Kind.WRAPPER: WRAPPER,
        Kind.DENSE: DENSE,
    }
)


def _kinds() -> dict[str, Kind]:
    kinds = dict.fromkeys(WEIGHT["everywhere"].split(), Kind.WEIGHT)
    kinds |= dict.fromkeys(WEIGHT["Flax, Keras"].split(), Kind.KERNEL)
    for kind, seen in LEXICON.items():
        for word in " ".join(seen.values()).split():
            kinds[word] = kinds.get(word, Kind.NONE) | kind
    return kinds


KINDS: Mapping[str, Kind] = MappingProxyType(_kinds())
"""The kinds of each word."""

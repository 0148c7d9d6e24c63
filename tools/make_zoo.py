# SPDX-License-Identifier: Apache-2.0
"""Names, shapes and dtypes of the zoo models that come from installable packages.

Prints a JSON object per model, with ``null`` for every answer: roles and decays are
reasoned by hand, never made by a script. To run it, make an environment of its own:

    pip install jax==0.10.2 flax==0.12.8 optax==0.2.8 dm-haiku==0.0.17 \
        equinox==0.13.8 flowjax==19.1.2 qwix==0.1.8 ott-jax==0.6.0 jaxkan==0.3.7 \
        equimo==1.1.0 bijx==1.3.2 jaxonmodels==0.2.3 inox==0.8.0 nequix==0.4.5 \
        jax-image-models==0.4.0 attnax==0.2.0 e1jax==0.3.0 nano-moe-jax==0.1.0 \
        apax==0.14.0 flowMC==0.6.4 netket==3.23.0 brax==0.14.2 surjectors==0.3.3
    python make_zoo.py [code_base ...]
"""

import json
import re
import sys

import jax
import jax.numpy as jnp

KEY = jax.random.PRNGKey(0)
IMAGE = jnp.ones((1, 32, 32, 3))
IDS = jnp.ones((1, 8), jnp.int32)


def linen(module, *args):
    """Parameters of a Linen module, by abstract evaluation."""
    from flax.core import meta

    variables = jax.eval_shape(lambda: module.init(KEY, *args))
    return meta.unbox(variables)["params"]


def nnx_params(build):
    """The `nnx.Param` state of the module that ``build`` makes."""
    from flax import nnx

    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(build), nnx.Param))


def inexact(build):
    """The inexact arrays of an Equinox (or other pytree) model."""
    import equinox as eqx

    def keep(x):
        return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)

    return eqx.filter(eqx.filter_eval_shape(build), keep)


def hk_params(function, *args):
    """Parameters of a Haiku function."""
    import haiku as hk

    init = hk.transform_with_state(function).init
    return jax.eval_shape(lambda: init(KEY, *args))[0]


def haiku():
    """Nets of Haiku, and one leaf of each of its layers."""
    import haiku as hk

    def layers(x, ids):
        lstm, gru = hk.LSTM(16), hk.GRU(16)
        y, _ = lstm(x[:, 0], lstm.initial_state(1))
        gru(x[:, 0], gru.initial_state(1))
        e = hk.Embed(100, 16)(ids)
        e = e + hk.get_parameter("pos_embs", [8, 16], init=jnp.zeros)
        a = hk.MultiHeadAttention(2, 8, w_init=hk.initializers.RandomNormal())(e, e, e)
        a = hk.LayerNorm(-1, True, True, name="ln_1")(a)
        hk.DepthwiseConv2D(1, 3)(hk.Conv1D(16, 3)(a)[..., None])
        hk.nets.VectorQuantizer(16, 32, 0.25)(a, is_training=False)
        return hk.nets.MLP([8, 4])(hk.Bias()(y))

    for name, net in ("resnet18", "ResNet18"), ("mobilenet", "MobileNetV1"):
        build = getattr(hk.nets, net)
        tree = hk_params(
            lambda x, b=build: b(num_classes=10)(x, is_training=True), IMAGE
        )
        yield f"haiku_{name}", tree
    yield "haiku_zoo_of_layers", hk_params(layers, jnp.ones((1, 8, 4)), IDS)


def equinox():
    """One leaf of each of the layers of Equinox."""
    from equinox import nn

    def layers():
        return {
            "mlp": nn.MLP(4, 4, 8, 2, key=KEY),
            "embed": nn.Embedding(100, 16, key=KEY),
            "attention": nn.MultiheadAttention(2, 16, use_query_bias=True, key=KEY),
            "norm": nn.LayerNorm(16),
            "rms": nn.RMSNorm((4, 16)),
            "group_norm": nn.GroupNorm(2, 16),
            "conv2d": nn.Conv2d(3, 8, 3, key=KEY),
            "up": nn.ConvTranspose1d(3, 8, 3, key=KEY),
            "gru": nn.GRUCell(4, 16, key=KEY),
            "lstm": nn.LSTMCell(4, 16, key=KEY),
            "prelu": nn.PReLU(0.2),
            "wn": nn.WeightNorm(nn.Linear(4, 8, key=KEY)),
        }

    yield "equinox_zoo_of_layers", inexact(layers)


def flowjax():
    """Flows with stacked layers; the spline flow cannot be made abstractly."""
    from flowjax import bijections, distributions, flows

    key, base = jax.random.key(0), {"base_dist": distributions.Normal(jnp.zeros(4))}
    spline = bijections.RationalQuadraticSpline(knots=4, interval=4)
    made = flows.coupling_flow(key, **base, transformer=spline, flow_layers=3)
    yield "flowjax_coupling", inexact(lambda: made)
    tri = flows.triangular_spline_flow(key, **base, flow_layers=3, knots=4)
    yield "flowjax_triangular_spline", inexact(lambda: tri)
    block = flows.block_neural_autoregressive_flow(key, **base, flow_layers=1)
    yield "flowjax_block_neural", inexact(lambda: block)


def qwix():
    """A small model to which LoRA is applied."""
    from flax import nnx
    from qwix import LoraProvider, apply_lora_to_model

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(100, 16, rngs=rngs)
            self.attn = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
            self.up = nnx.Linear(16, 32, rngs=rngs)
            self.norm = nnx.RMSNorm(16, rngs=rngs)

        def __call__(self, ids):
            return self.up(self.norm(self.attn(self.embed(ids))))

    lora = LoraProvider(module_path=".*(up|query|out).*", rank=4, alpha=2.0)
    net = apply_lora_to_model(Net(nnx.Rngs(0)), lora, IDS, rngs=nnx.Rngs(1))
    yield "qwix_lora", nnx.to_pure_dict(nnx.state(net, nnx.Param))


def jimm():
    """Vision models whose layers are stacked; they ask for a mesh."""
    from flax.nnx import Rngs
    from jimm.models.clip import CLIP
    from jimm.models.dinov2 import DINOv2Model as Dino

    dino = {"img_size": 32, "patch_size": 16, "hidden_size": 64, "mlp_dim": 64}
    dino |= {"num_layers": 2, "num_heads": 2}
    clip, axes = (32, 2, 64, 16, 16, 100, 64, 2, 2), (jax.sharding.AxisType.Auto,) * 2
    with jax.set_mesh(jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=axes)):
        yield "jimm_clip", nnx_params(lambda: CLIP(*clip, rngs=Rngs(0)))
        yield "jimm_dinov2", nnx_params(lambda: Dino(**dino, rngs=Rngs(0)))


def language():
    """attnax, nano-moe-jax and e1jax."""
    from attnax import TransformerConfig, TransformerDecoder
    from e1jax import E1
    from flax.nnx import Rngs
    from nano_moe.config import NanoMoEConfig
    from nano_moe.model import NanoMoE

    sizes = {"vocab_size": 100, "d_model": 16, "num_heads": 2, "num_layers": 2}
    config = TransformerConfig(**sizes, d_ff=32, dropout_rate=0.0, max_len=32)
    yield "attnax_decoder", nnx_params(lambda: TransformerDecoder(Rngs(0), config))
    yield "nano_moe", linen(NanoMoE(NanoMoEConfig()), IDS)
    yield "e1jax", inexact(lambda: E1(16, 2, 32, 2, key=KEY))


def equimo():
    """Vision models in Equinox."""
    from equimo.models.vit import VisionTransformer
    from equimo.models.vssd import Vssd

    sizes = {"img_size": 32, "in_channels": 3, "dim": 32, "patch_size": 16}
    sizes |= {"num_heads": 2, "depths": [2], "use_mask_token": True}
    sizes |= {"init_values": 1e-4, "key": KEY}
    yield "equimo_vit", inexact(lambda: VisionTransformer(**sizes))
    sizes = {"dim": 16, "depths": [1, 1, 1, 1], "key": KEY}
    yield "equimo_vssd", inexact(lambda: Vssd(32, 3, **sizes))


def state_space():
    """Jaxonmodels and inox."""
    from inox import nn
    from jaxonmodels.models.mamba import Mamba

    yield "jaxonmodels_mamba", inexact(lambda: Mamba(16, 100, 2, key=KEY))
    attention = {"heads": 2, "in_features": 16, "hid_features": 8, "key": KEY}

    def layers():
        dense, gru = nn.Linear(4, 16, key=KEY), nn.GRUCell(16, 16, key=KEY)
        mixer, ssm = nn.MultiheadAttention(**attention), nn.S4(8, key=KEY)
        conv = nn.Conv(16, 8, kernel_size=(3,), key=KEY)
        return nn.Sequential(dense, nn.LayerNorm(), mixer, nn.Recurrent(gru), ssm, conv)

    yield "inox_layers", inexact(layers)


def nequix():
    """An equivariant potential in Equinox."""
    from nequix.model import Nequix

    sizes = {"lmax": 1, "hidden_irreps": "8x0e + 8x1o", "n_layers": 2}
    sizes |= {"layer_norm": True, "atom_energies": [0.0] * 5}
    yield "nequix", inexact(lambda: Nequix(KEY, 5, **sizes))


def apax():
    """A potential in Linen. Importing it switches x64 on."""
    from apax.config.model_config import GMNNConfig

    builder = GMNNConfig().get_builder()(GMNNConfig().model_dump(), n_species=10)
    atoms = jnp.array([[0.0, 0, 0], [0, 0, 1.0]]), jnp.array([1, 8])
    box = jnp.array([[0, 1], [1, 0]]), jnp.zeros((3, 3)), jnp.zeros((2, 3))
    yield "apax_gmnn", linen(builder.build_energy_model(), *atoms, *box)


def networks():
    """Bijx, jaxkan, flowMC, ott-jax, brax and surjectors."""
    from bijx.nn.nets import ConvNet, ResNet
    from brax.training.agents.ppo.networks import make_ppo_networks
    from flax import nnx
    from flowMC.resource.model.nf_model.rqSpline import MaskedCouplingRQSpline
    from jaxkan.models.KAN import KAN
    from ott.neural.networks.icnn import ICNN
    from surjectors.nn import MADE

    net = nnx_params(lambda: ResNet(4, 4, width=8, depth=2, rngs=nnx.Rngs(0)))
    conv = nnx_params(lambda: ConvNet(1, 2, rngs=nnx.Rngs(0)))
    yield "bijx_convnet", {"net": net, "conv": conv}
    for kind, sizes in ("spline", {"k": 3, "G": 5}), ("chebyshev", {"D": 3}):
        state = nnx.state(KAN([2, 5, 1], kind, sizes, 42), nnx.Param)
        yield f"jaxkan_{kind}", nnx.to_pure_dict(state)
    flow = inexact(lambda: MaskedCouplingRQSpline(4, 2, [8, 8], 4, jax.random.key(0)))
    yield "flowmc_rqspline", flow
    yield "ott_icnn", linen(ICNN(2, [8, 8], ranks=2), jnp.ones((1, 2)))
    ppo = make_ppo_networks(8, 2)
    policy = jax.eval_shape(ppo.policy_network.init, KEY)
    value = jax.eval_shape(ppo.value_network.init, KEY)
    yield "brax_ppo", {"policy": policy, "value": value}
    made = hk_params(lambda x: MADE(4, [8, 8], 2)(x), jnp.ones((1, 4)))
    yield "surjectors_made", made


def netket():
    """Quantum states, in double precision. Importing it switches x64 on."""
    import netket as nk

    space, graph = nk.hilbert.Spin(0.5, 4), nk.graph.Chain(4)
    gcnn = nk.models.GCNN(symmetries=graph, layers=2, features=3)
    yield "netket_rbm", linen(nk.models.RBM(alpha=2), jnp.ones((1, 8)))
    yield "netket_gcnn", linen(gcnn, jnp.ones((1, 4)))
    arnn = linen(nk.models.ARNNConv1D(space, 2, 4, 2), jnp.ones((1, 4)))
    jastrow = linen(nk.models.Jastrow(), jnp.ones((1, 4)))
    yield "netket_jastrow_and_autoregressive", {"jastrow": jastrow, "arnn": arnn}


PARTS = (haiku, equinox, flowjax, qwix, jimm, language, equimo, state_space)
PARTS += (networks, nequix, apax, netket)  # the last two switch to double precision


def name(key):
    """One path component as text."""
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def leaves(tree):
    """One leaf for each kind of layer: digits at the end of a token do not count."""
    rows = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if hasattr(leaf, "shape"):
            text = "/".join(name(key) for key in path)
            kind = [re.sub(r"_?\d+$", "", token) or "#" for token in text.split("/")]
            ones = tuple(size == 1 for size in leaf.shape)
            row = [text, list(leaf.shape), str(leaf.dtype), None, None]
            rows.setdefault((*kind, ones), row)
    return list(rows.values())


def main():
    """Print the code bases named on the command line, or all."""
    wanted = sys.argv[1:]
    for part in (part for part in PARTS if not wanted or part.__name__ in wanted):
        try:
            for title, tree in part():
                body = ",\n  ".join(json.dumps(row) for row in leaves(tree))
                print(f'{{"model": "{title}",\n "leaves": [\n  {body}\n ]}}')
        except Exception as error:  # a package that moved on
            print(f"{part.__name__}: {error!r}"[:300], file=sys.stderr)


if __name__ == "__main__":
    main()

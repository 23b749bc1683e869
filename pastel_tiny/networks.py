"""The three networks with exactly Stable Diffusion 1.5's structure, only narrower."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from pastel_tiny.vocabulary import VOCABULARY_SIZE
from pipelines.models.unet import HeadAttention, widen_heads

LATENT_SCALE = 0.18215
TEXT_WIDTH = 64
# The outermost levels need 64 channels: GroupNorm has 32 groups. With one channel per group it would be an instance
# norm, which removes the mean of a channel, and so a picture's overall colour.
VAE_CHANNELS = (64, 64, 64, 64)
UNET_CHANNELS = (64, 64, 64, 32)


def half_precision() -> torch.autocast:
    """Return autocast to bfloat16 on torch's default device, which training runs on. A CPU needs units for it."""
    return torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=_has_bfloat16())


def _has_bfloat16() -> bool:
    return torch.get_default_device().type != "cpu" or torch.cpu._is_avx512_bf16_supported()


def fast_attention(unet: UNet2DConditionModel) -> None:
    """Choose the attention that trains fastest: in bfloat16 one that is written out, in float32 torch's fused one
    with heads filled up to 16 channels.

    In bfloat16 the fused one has a slow backward pass for heads of eight channels.
    """
    if _has_bfloat16():
        unet.set_attn_processor(PlainAttention())
    else:
        widen_heads(unet, torch.get_default_device())


def here(value: Tensor) -> Tensor:
    """Move the tensor to the device that training runs on; what is read and cached is on the host."""
    return value.to(torch.get_default_device(), non_blocking=True)


def build_vae() -> AutoencoderKL:
    """Return a fresh autoencoder: 8x smaller, four latent channels."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=VAE_CHANNELS,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=160,
        scaling_factor=LATENT_SCALE,
    )
    start_as_thumbnail(vae)
    return vae


def build_unet() -> UNet2DConditionModel:
    """Return a fresh UNet: four levels, cross attention in the first three, eight heads."""
    unet = UNet2DConditionModel(
        sample_size=20,
        block_out_channels=UNET_CHANNELS,
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=32,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    fast_attention(unet)
    _anchor(unet.up_blocks[-1].resnets[-1].conv2)
    return unet


def build_text() -> CLIPTextModel:
    """Return a fresh text encoder: twelve layers over CLIP's real vocabulary."""
    config = CLIPTextConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=12,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        projection_dim=TEXT_WIDTH,
        bos_token_id=VOCABULARY_SIZE - 2,
        eos_token_id=VOCABULARY_SIZE - 1,
        pad_token_id=VOCABULARY_SIZE - 1,
    )
    return CLIPTextModel(config)


def _anchor(conv: nn.Conv2d) -> None:
    """Give the two channels of each group opposite offsets, so that the last norm keeps their mean at first."""
    with torch.no_grad():
        assert conv.bias is not None
        conv.bias[0::2] += 0.7
        conv.bias[1::2] -= 0.7


def compile_blocks(network: nn.Module) -> None:
    """Compile the residual and transformer blocks for speed, each one separately.

    If the whole autoencoder is compiled, its backward pass loses most gradients (torch 2.13, CPU, bf16 autocast).
    """
    torch._dynamo.config.recompile_limit = 64  # all blocks share one code object: one entry for every shape
    for block in network.modules():
        if isinstance(block, ResnetBlock2D | BasicTransformerBlock):
            block.compile(dynamic=False)


class PlainAttention(HeadAttention):
    """Attention written out."""

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (each.transpose(1, 2) for each in (query * query.shape[-1] ** -0.5, key, value))
        return ((query @ key.mT).softmax(-1).to(value.dtype) @ value).transpose(1, 2)


@torch.no_grad()
def start_as_thumbnail(vae: AutoencoderKL) -> None:
    """Start from a network that already shrinks and enlarges the picture, so that training only has to sharpen it.

    Red, green and blue travel as pairs of channels (x + 2, -x - 2) through identity convolutions. A pair has no mean
    for the group norm to remove, its 2 keeps the norm's scale steady, and silu(a) - silu(-a) = a undoes the activation.
    """
    for block in (*vae.encoder.modules(), *vae.decoder.modules()):
        if isinstance(block, ResnetBlock2D):  # residual branches add nothing at first
            nn.init.zeros_(block.conv2.weight), nn.init.zeros_(block.conv2.bias)
            if block.conv_shortcut is not None:
                identity(block.conv_shortcut, [(k, k, 1.0) for k in range(6)])
        elif isinstance(block, Downsample2D):
            identity(block.conv, [(k, k, 1.0) for k in range(6)], mean=True)
        elif isinstance(block, Upsample2D):
            identity(block.conv, [(k, k, 1.0) for k in range(6)])
    for attention in (vae.encoder.mid_block.attentions[0], vae.decoder.mid_block.attentions[0]):
        nn.init.zeros_(attention.to_out[0].weight)
    pairs = [(2 * c + side, c, 1.0 - 2.0 * side) for c in range(3) for side in (0, 1)]
    back = [(c, 2 * c + side, 2.4 * (1.0 - 2.0 * side)) for c in range(3) for side in (0, 1)]
    for side in (vae.encoder, vae.decoder):
        identity(side.conv_in, pairs, bias=[2.0, -2.0] * 3)
        identity(side.conv_out, back, bias=[-2.0] * 3)
    identity(vae.quant_conv, [(c, c, 1.0) for c in range(8)])
    identity(vae.post_quant_conv, [(c, c, 1.0) for c in range(4)])


def identity(
    conv: nn.Conv2d, taps: list[tuple[int, int, float]], mean: bool = False, bias: list[float] | None = None
) -> None:
    """Make some outputs copy (weighted) inputs only; with `mean`, average the 2 x 2 pixels under a stride of two."""
    assert conv.bias is not None
    for row in {output for output, _, _ in taps}:
        conv.weight[row] = 0
        conv.bias[row] = 0.0 if bias is None else bias[row]
    centre = conv.kernel_size[0] // 2
    for output, source, weight in taps:
        if mean:
            conv.weight[output, source, :2, :2] = weight / 4
        else:
            conv.weight[output, source, centre, centre] = weight


class Average:
    """An exponential moving average of a network's weights; short at first, so that early checkpoints are usable."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Include the network's current weights."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, share)

"""Write checkpoints in the layouts found in the wild: the reverse of the loader, written independently."""

import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import BitConfig, DPTConfig, DPTForDepthEstimation

from live2diff import Live2DiffPipeline
from live2diff.weights.swap import parts_of

SMALL = {"size": 128, "t_index_list": [30]}  # one step at the smallest size
FRAMES = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LAYERS = {
    ("unet", f"{ATTENTION}.to_q"): torch.Size([32, 32]),
    ("unet", f"{ATTENTION}.to_out.0"): torch.Size([32, 32]),
    ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"): torch.Size([32, 128]),
    ("unet", "down_blocks.0.attentions.0.proj_in"): torch.Size([32, 32, 1, 1]),
    ("text_encoder", "encoder.layers.0.self_attn.q_proj"): torch.Size([64, 64]),
    ("text_encoder", "encoder.layers.0.self_attn.out_proj"): torch.Size([64, 64]),
}
CONVOLUTION = {("unet", "mid_block.resnets.0.conv1"): torch.Size([32, 32, 3, 3])}

UNET_RENAMED = [
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^mid_block\.resnets\.0", "middle_block.0"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
]
RESNET_RENAMED = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ATTENTION_RENAMED = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_unet_name(name: str) -> str:
    """A name of diffusers' `UNet2DConditionModel`, SD 1.5, as the original code calls it."""
    for pattern, new in UNET_RENAMED:
        name = re.sub(pattern, new, name)
    if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
        side, block, kind, layer, rest = found.groups()
        number = 3 * int(block) + int(layer) + (1 if side == "down" else 0)
        blocks = "input_blocks" if side == "down" else "output_blocks"
        name = f"{blocks}.{number}.{0 if kind == 'resnets' else 1}.{rest}"
    if found := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", name):
        name = f"input_blocks.{3 * int(found[1]) + 3}.0.op.{found[2]}"
    if found := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.*)", name):
        name = f"output_blocks.{3 * int(found[1]) + 2}.{1 if found[1] == '0' else 2}.conv.{found[2]}"
    if re.match(r"(input_blocks|output_blocks)\.\d+\.0\.|middle_block\.[02]\.", name):
        for old, new in RESNET_RENAMED.items():
            name = name.replace(f".{old}.", f".{new}.")
    return name


def original_vae_name(name: str) -> str:
    """A name of diffusers' `AutoencoderKL` with four levels as the original code calls it."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{3 - int(found[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{3 - int(found[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if ".attentions.0." in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for old, new in ATTENTION_RENAMED.items():
            name = name.replace(f".{old}.", f".{new}.")
    return name


def single_file(unet: dict, vae: dict, text_encoder: dict) -> dict[str, torch.Tensor]:
    """A whole model's state dicts as one of the original layout, with what else such files hold."""
    tensors = {f"model.diffusion_model.{original_unet_name(name)}": t for name, t in unet.items()}
    for name, tensor in vae.items():
        is_matrix = "attentions" in name and tensor.ndim == 2
        tensors[f"first_stage_model.{original_vae_name(name)}"] = (
            tensor[:, :, None, None] if is_matrix else tensor
        )
    for name, tensor in text_encoder.items():
        name = name.removeprefix("text_model.")
        tensors[f"cond_stage_model.transformer.text_model.{name}"] = tensor
    return tensors | {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "betas": torch.zeros(1000),
        "alphas_cumprod": torch.zeros(1000),
        "model_ema.decay": torch.tensor(0.0),
    }


def random_lora(shapes: dict[tuple[str, str], tuple[int, ...]], rank: int = 4, seed: int = 0) -> dict:
    """`{(part, layer): (down, up, alpha)}` for layers with weights of these shapes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / 4

    return {
        layer: (draw(rank, *shape[1:]), draw(shape[0], rank, *[1] * (len(shape) - 2)), 2.0)
        for layer, shape in shapes.items()
    }


def kohya_lora(layers: dict) -> dict[str, torch.Tensor]:
    """In the layout of kohya's trainer, which is also that of the published few-step LoRA."""
    tensors = {}
    for (part, layer), (down, up, alpha) in layers.items():
        prefix = "lora_unet_" if part == "unet" else "lora_te_text_model_"
        name = prefix + layer.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def scaled(layers: dict) -> dict:
    """The same changes for layouts without an alpha: their scale goes into the matrices."""
    return {key: (down, up * (alpha / len(down))) for key, (down, up, alpha) in layers.items()}


def peft_lora(layers: dict) -> dict[str, torch.Tensor]:
    """In the layout that PEFT, and diffusers with it, writes today."""
    tensors = {}
    for (part, layer), (down, up) in scaled(layers).items():
        name = f"unet.{layer}" if part == "unet" else f"text_encoder.text_model.{layer}"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return tensors


def diffusers_lora(layers: dict) -> dict[str, torch.Tensor]:
    """In the layout of diffusers before PEFT: attention processors in the UNet, `lora_linear_layer` in the
    text encoder."""
    tensors = {}
    for (part, layer), (down, up) in scaled(layers).items():
        if part == "text_encoder":
            name = f"text_encoder.text_model.{layer}.lora_linear_layer"
        elif ".to_" in layer:
            attention, kind = layer.removesuffix(".0").rsplit(".", 1)
            name = f"unet.{attention}.processor.{kind}_lora"
        else:
            name = f"unet.{layer}.lora"
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    return tensors


def write(tensors: dict[str, torch.Tensor], file: Path) -> Path:
    """As safetensors or, by the file's ending, as a pickle."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    else:
        torch.save(tensors, file)
    return file


def perturbed(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """The module's parameters, each changed a little."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: p.detach() + 0.05 * torch.randn(p.shape, generator=generator)
        for name, p in module.named_parameters()
    }


def build_tiny_hybrid_dpt() -> DPTForDepthEstimation:
    """The kind that the published one is: a ResNet in front of the transformer."""
    config = DPTConfig(
        is_hybrid=True,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        backbone_featmap_shape=[1, 64, 4, 4],
        backbone_out_indices=[0, 1, 2, 3],
        neck_ignore_stages=[0, 1],
        neck_hidden_sizes=[16, 32, 8, 8],
        fusion_hidden_size=8,
        readout_type="project",
        backbone_config=BitConfig(
            embedding_size=16,
            hidden_sizes=[16, 32, 64],
            depths=[1, 1, 1],
            out_features=["stage1", "stage2", "stage3"],
            embedding_dynamic_padding=True,
            global_padding="same",
            layer_type="bottleneck",
            num_groups=4,
        ),
    )
    return DPTForDepthEstimation(config)


def weights_of(pipeline: Live2DiffPipeline) -> dict[str, torch.Tensor]:
    """Copies of all parameters that a style may change."""
    return {
        f"{part}.{name}": parameter.detach().clone()
        for part, module in parts_of(pipeline).items()
        for name, parameter in module.named_parameters()
    }

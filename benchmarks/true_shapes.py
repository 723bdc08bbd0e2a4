"""Models in their true shapes with random weights, as diffusers folders in several shards.

`python -m benchmarks.true_shapes FOLDER [MODEL ...]` writes FOLDER/MODEL for each; MODEL is one of
wan2.1-t2v-1.3b (if none is named), wan2.1-t2v-14b, flux.1-dev. They cost as much time and memory as
trained ones; the pictures are noise. Shapes: the config.json files published with each.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.fixtures.tiny import tokenizer

XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
WAN = {
    "wan2.1-t2v-1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "wan2.1-t2v-14b": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}


def wan(sizes: dict[str, int]) -> WanPipeline:
    vae = AutoencoderKLWan().eval()  # in float32, as it runs
    torch.set_default_dtype(torch.bfloat16)
    transformer = WanTransformer3DModel(
        attention_head_dim=128,
        text_dim=4096,
        freq_dim=256,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        **sizes,
    ).eval()
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=256384, **XXL)).eval()
    return WanPipeline(
        tokenizer=tokenizer("<pad>", None, "</s>", 512),
        text_encoder=encoder,
        transformer=transformer,
        vae=vae,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=3.0,
            num_train_timesteps=1000,
        ),
    )


def flux() -> FluxPipeline:
    torch.set_default_dtype(torch.bfloat16)
    words = tokenizer("<|endoftext|>", "<|startoftext|>", "<|endoftext|>", 77)
    clip = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        projection_dim=768,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return FluxPipeline(
        tokenizer=words,
        text_encoder=CLIPTextModel(clip).eval(),
        tokenizer_2=tokenizer("<pad>", None, "</s>", 512),
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=32128, **XXL)).eval(),
        transformer=FluxTransformer2DModel(guidance_embeds=True).eval(),
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
    )


def build(folder: Path, name: str) -> None:
    torch.manual_seed(0)
    pipeline: Any
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        pipeline = wan(WAN[name]) if name in WAN else flux()
    torch.set_default_dtype(torch.float32)
    pipeline.save_pretrained(folder / name, max_shard_size="5GB")


if __name__ == "__main__":
    for model in sys.argv[2:] or ["wan2.1-t2v-1.3b"]:
        build(Path(sys.argv[1]), model)

"""Wan2.1 1.3B in its true shapes with random weights, as a diffusers folder in several shards.

`python -m benchmarks.wan_shapes FOLDER`. They cost as much time and memory as trained ones; the
pictures are noise. Shapes: the published config.json files of Wan-AI/Wan2.1-T2V-1.3B-Diffusers.
"""

import sys
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

from tests.fixtures.tiny import tokenizer


def build(folder: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    text = UMT5Config(
        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64
    )
    with torch.device(device):
        vae = AutoencoderKLWan().eval()
        torch.set_default_dtype(torch.bfloat16)
        transformer = WanTransformer3DModel(
            num_attention_heads=12,
            attention_head_dim=128,
            text_dim=4096,
            freq_dim=256,
            ffn_dim=8960,
            num_layers=30,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
        ).eval()
        encoder = UMT5EncoderModel(text).eval()
        torch.set_default_dtype(torch.float32)
    pipeline = WanPipeline(
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
    pipeline.save_pretrained(folder, max_shard_size="2GB")


if __name__ == "__main__":
    build(Path(sys.argv[1]))

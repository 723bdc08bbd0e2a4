"""Makes the small models of the demo and the tests: true diffusers folders, random weights.

`python -m worker.rank.demo FOLDER` writes FOLDER/tiny-video (Wan) and FOLDER/tiny-image (Flux), in
seconds; what is there already stays.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

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
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

LETTERS = [chr(code) for code in range(32, 127)]
SHARD = "1MB"  # small enough that each transformer comes in several shards


def tokenizer(pad: str, begin: str | None, end: str, length: int) -> PreTrainedTokenizerFast:
    """One token a printable ASCII character."""
    special = [pad, "<unk>", *([begin] if begin else []), end]
    vocabulary = {token: i for i, token in enumerate([*dict.fromkeys(special), *LETTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin or ''} $A {end}".strip(),
        special_tokens=[(t, vocabulary[t]) for t in (begin, end) if t],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token="<unk>",
        bos_token=begin,
        eos_token=end,
        model_max_length=length,
    )


def tiny_video() -> WanPipeline:
    words = tokenizer("<pad>", None, "</s>", 512)
    text = UMT5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return WanPipeline(
        tokenizer=words,
        text_encoder=UMT5EncoderModel(text).eval(),
        transformer=WanTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=24,
            text_dim=32,
            freq_dim=32,
            ffn_dim=128,
            num_layers=3,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
        ).eval(),
        vae=AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=3.0,
            num_train_timesteps=1000,
        ),
    )


def tiny_image() -> FluxPipeline:
    clip_words = tokenizer("<|endoftext|>", "<|startoftext|>", "<|endoftext|>", 77)
    clip = CLIPTextConfig(
        vocab_size=len(clip_words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=clip_words.bos_token_id,
        eos_token_id=clip_words.eos_token_id,
        pad_token_id=clip_words.pad_token_id,
    )
    words = tokenizer("<pad>", None, "</s>", 512)
    text = T5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return FluxPipeline(
        tokenizer=clip_words,
        text_encoder=CLIPTextModel(clip).eval(),
        tokenizer_2=words,
        text_encoder_2=T5EncoderModel(text).eval(),
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=24,
            num_attention_heads=4,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 10, 10),
        ).eval(),
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[8, 8, 8, 8],
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.36,
            shift_factor=0.12,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


DEMO_MODELS: dict[str, Callable[[], WanPipeline | FluxPipeline]] = {
    "tiny-video": tiny_video,
    "tiny-image": tiny_image,
}


def build(folder: Path) -> None:
    """A model appears whole or not at all, whoever else builds it at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in DEMO_MODELS.items():
        if (folder / name).exists():
            continue
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            make().save_pretrained(Path(unfinished) / name, max_shard_size=SHARD)
            try:
                os.rename(Path(unfinished) / name, folder / name)
            except OSError:  # another process was first
                shutil.rmtree(Path(unfinished) / name)
        print(f"made {folder / name}")


if __name__ == "__main__":
    build(Path(sys.argv[1]))

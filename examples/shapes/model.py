"""The small model in the true Wan format: an ordinary WanPipeline with fresh weights."""

import contextlib
from collections.abc import Iterator

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from examples.shapes.data import vocabulary

TEXT_TOKENS = 512  # what WanPipeline pads every prompt to
SHORT = 32  # more than any caption has
TEXT_DIM = 96


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, whatever its case; punctuation is read over."""
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *vocabulary()])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex("[^a-z]+"), " "),
            normalizers.Replace(Regex(r"\ban\b"), "a"),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_TOKENS,
    )


def fresh(flow_shift: float = 3.0) -> WanPipeline:
    words = tokenizer()
    text = UMT5Config(
        vocab_size=len(words),
        d_model=TEXT_DIM,
        d_kv=24,
        d_ff=192,
        num_layers=3,
        num_heads=4,
        dropout_rate=0.0,
    )
    return WanPipeline(
        tokenizer=words,
        text_encoder=UMT5EncoderModel(text),
        transformer=WanTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=48,
            text_dim=TEXT_DIM,
            freq_dim=128,
            ffn_dim=576,
            num_layers=8,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
        ),
        vae=AutoencoderKLWan(
            base_dim=8, decoder_base_dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1
        ),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=flow_shift,
            num_train_timesteps=1000,
        ),
    )


Words = tuple[torch.Tensor, torch.Tensor]  # ids and attention mask [B, SHORT] of captions


def words_of(pipeline: WanPipeline, captions: list[str], device: torch.device) -> Words:
    text = pipeline.tokenizer(
        captions, padding="max_length", max_length=SHORT, truncation=True, return_tensors="pt"
    ).to(device)
    return text.input_ids, text.attention_mask


def embed(pipeline: WanPipeline, words: Words) -> tuple[torch.Tensor, torch.Tensor]:
    """What WanPipeline.encode_prompt() makes of captions, with gradients and without the long tail.

    The pipeline pads with zero rows to TEXT_TOKENS and its transformer attends to them all. Here
    there are SHORT rows, and a bias [B, 1, 1, SHORT] that lets each of the few zero rows weigh as
    much as its share of the many: the same attention for a sixteenth of the work.
    """
    ids, mask = words
    states = pipeline.text_encoder(ids, mask).last_hidden_state
    real = mask.sum(1, keepdim=True)
    weight = torch.log((TEXT_TOKENS - real) / (SHORT - real).clamp(min=1))
    bias = torch.where(mask.bool(), 0.0, weight)
    return states * mask[..., None], bias[:, None, None]


class ShortText(WanAttnProcessor):
    """Cross-attention to embed()'s short text."""

    bias: torch.Tensor

    def __call__(self, attn, hidden_states, encoder_hidden_states, *_rest):  # type: ignore
        return super().__call__(
            attn, hidden_states, encoder_hidden_states, self.bias.to(hidden_states.dtype)
        )


@contextlib.contextmanager
def short_text(transformer: WanTransformer3DModel) -> Iterator[ShortText]:
    """Within it the transformer takes embed()'s text, once its `bias` is set."""
    processor, usual = ShortText(), [block.attn2.processor for block in transformer.blocks]
    for block in transformer.blocks:
        block.attn2.set_processor(processor)
    try:
        yield processor
    finally:
        for block, before in zip(transformer.blocks, usual, strict=True):
            block.attn2.set_processor(before)

"""Models of transformers: two layers of 32 channels for the most part."""

from __future__ import annotations

from typing import Any

from .model import LibraryModel, group

_LAYERS = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
_WIDTH = dict(**_LAYERS, intermediate_size=64)
_TOKENS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
_TEXT = dict(
    **_WIDTH,
    **_TOKENS,
    vocab_size=64,
    max_position_embeddings=32,
    num_key_value_heads=2,
)
_CAUSAL = dict(**_TEXT, head_dim=8)
_EXPERTS = dict(
    num_local_experts=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
)
_SEQ2SEQ = dict(
    **_TOKENS,
    vocab_size=64,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    max_position_embeddings=32,
    decoder_start_token_id=2,
)
_T5 = dict(**_TOKENS, vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2)
_T5.update(num_heads=4, decoder_start_token_id=0)
_AUDIO = dict(**_WIDTH, conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3))
_AUDIO.update(num_feat_extract_layers=2, num_conv_pos_embeddings=16, vocab_size=32)
_AUDIO.update(num_conv_pos_embedding_groups=2)
_PATCHES = dict(**_WIDTH, image_size=32, patch_size=8, layer_scale_init_value=1.0)
_STAGES = dict(
    layer_scale_init_value=1.0,
    embed_dim=16,
    embedding_size=16,
    hidden_sizes=[16, 32],
    depths=[1, 1],
)
_CLIP_TEXT = dict(**_WIDTH, **_TOKENS, vocab_size=64, max_position_embeddings=16)
_IDS = dict(input_ids=(2, 8))
_BOTH_IDS = dict(input_ids=(2, 8), decoder_input_ids=(2, 6))
_WAVE = dict(input_values=(1, 400))
_IMAGE = dict(pixel_values=(2, 3, 32, 32))
_LARGER = dict(pixel_values=(2, 3, 64, 64))


def _transformers(names: str, *args: Any, **kwargs: Any) -> list[LibraryModel]:
    return group("transformers", names, *args, **kwargs)


_SWIN = dict(
    image_size=32,
    patch_size=4,
    embed_dim=16,
    depths=[1, 1],
    num_heads=[2, 4],
    window_size=4,
)

TRANSFORMERS = [
    *_transformers(
        "LlamaForCausalLM MistralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM "
        "GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM PhiForCausalLM "
        "Phi3ForCausalLM StableLmForCausalLM OlmoForCausalLM CohereForCausalLM "
        "NemotronForCausalLM GPTNeoXForCausalLM",
        _CAUSAL,
        _IDS,
    ),
    *_transformers(
        "MixtralForCausalLM Qwen2MoeForCausalLM", {**_CAUSAL, **_EXPERTS}, _IDS
    ),
    *_transformers("GPT2LMHeadModel BloomForCausalLM FalconForCausalLM", _TEXT, _IDS),
    *_transformers("GPTJForCausalLM", {**_TEXT, "rotary_dim": 4}, _IDS),
    *_transformers(
        "GPTNeoForCausalLM", {**_TEXT, "attention_types": [[["global"], 2]]}, _IDS
    ),
    *_transformers(
        "OPTForCausalLM", {**_TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32}, _IDS
    ),
    *_transformers("MambaForCausalLM", {**_TEXT, "state_size": 4}, _IDS),
    *_transformers(
        "BertForMaskedLM BertModel RobertaForMaskedLM AlbertForMaskedLM "
        "DistilBertForMaskedLM ModernBertForMaskedLM ElectraForMaskedLM "
        "FNetForMaskedLM DebertaV2ForMaskedLM",
        {**_TEXT, "embedding_size": 32, "hidden_dim": 64},
        _IDS,
    ),
    *_transformers(
        "XLNetLMHeadModel",
        dict(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=64),
        _IDS,
    ),
    *_transformers("T5ForConditionalGeneration", _T5, _BOTH_IDS),
    *_transformers(
        "T5ForConditionalGeneration",
        {**_T5, "feed_forward_proj": "gated-gelu"},
        _BOTH_IDS,
        note="gated",
    ),
    *_transformers("BartForConditionalGeneration", _SEQ2SEQ, _BOTH_IDS),
    *_transformers(
        "WhisperForConditionalGeneration",
        {**_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 16}
        | {"max_target_positions": 16},
        dict(input_features=(1, 8, 32), decoder_input_ids=(1, 4)),
    ),
    *_transformers("Wav2Vec2ForCTC HubertForCTC", _AUDIO, _WAVE),
    *_transformers(
        "SpeechT5HifiGan",
        dict(
            model_in_dim=8,
            upsample_initial_channel=16,
            upsample_rates=[4, 4],
            upsample_kernel_sizes=[8, 8],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
        ),
        dict(spectrogram=(1, 12, 8)),
    ),
    *_transformers(
        "ViTForImageClassification DeiTForImageClassification "
        "BeitForImageClassification Dinov2ForImageClassification CLIPVisionModel "
        "SiglipVisionModel BlipVisionModel",
        _PATCHES,
        _IMAGE,
    ),
    *_transformers(
        "Dinov2ForImageClassification",
        {**_PATCHES, "use_swiglu_ffn": True},
        _IMAGE,
        note="SwiGLU",
    ),
    *_transformers(
        "ConvNextForImageClassification ConvNextV2ForImageClassification",
        {**_STAGES, "num_stages": 2},
        _IMAGE,
    ),
    *_transformers(
        "ResNetForImageClassification RegNetForImageClassification "
        "RTDetrResNetBackbone",
        {**_STAGES, "groups_width": 8},
        _IMAGE,
    ),
    *_transformers(
        "PoolFormerForImageClassification",
        dict(
            hidden_sizes=[16, 32, 32, 32],
            depths=[1, 1, 1, 1],
            layer_scale_init_value=1.0,
        ),
        _LARGER,
    ),
    *_transformers(
        "SegformerForSemanticSegmentation",
        dict(
            hidden_sizes=[16, 16, 32, 32],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 2, 2, 2],
            decoder_hidden_size=16,
        ),
        _LARGER,
    ),
    *_transformers("SwinForImageClassification SwinBackbone", _SWIN, _IMAGE),
    *_transformers("MobileNetV2ForImageClassification", {}, _LARGER),
    *_transformers(
        "MobileViTForImageClassification",
        dict(image_size=64, hidden_sizes=[16, 24, 32]),
        _LARGER,
    ),
    *_transformers(
        "EfficientNetForImageClassification",
        dict(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280),
        _LARGER,
    ),
    *_transformers(
        "VideoMAEForVideoClassification",
        {**_PATCHES, "num_frames": 4},
        dict(pixel_values=(1, 4, 3, 32, 32)),
    ),
    *_transformers(
        "CLIPModel SiglipModel",
        dict(text_config=_CLIP_TEXT, vision_config=_PATCHES, projection_dim=16),
        {**_IMAGE, "input_ids": (2, 8)},
    ),
    *_transformers(
        "LlavaForConditionalGeneration",
        dict(
            vision_config={**_PATCHES, "model_type": "clip_vision_model"},
            text_config={**_CAUSAL, "model_type": "llama"},
            image_token_id=60,
            vision_feature_layer=-2,
        ),
        {**_IMAGE, "input_ids": [[1, *[60] * 16, 5, 6, 7]] * 2},
    ),
    *_transformers(
        "DetrForObjectDetection",
        {
            **_SEQ2SEQ,
            "num_queries": 4,
            "use_timm_backbone": False,
            "backbone": None,
            "use_pretrained_backbone": False,
            "backbone_config": {
                "model_type": "resnet",
                **_STAGES,
                "out_features": ["stage2"],
            },
        },
        _LARGER,
    ),
    *_transformers(
        "SamModel",
        dict(
            vision_config=dict(
                **_PATCHES,
                output_channels=16,
                window_size=2,
                global_attn_indexes=[1],
                mlp_dim=64,
                num_pos_feats=8,
            ),
            prompt_encoder_config=dict(
                hidden_size=16, image_size=32, patch_size=8, mask_input_channels=4
            ),
            mask_decoder_config=dict(
                hidden_size=16,
                mlp_dim=32,
                num_attention_heads=2,
                iou_head_hidden_dim=16,
            ),
        ),
        {**_IMAGE, "input_points": [[[[8.0, 8.0]]]] * 2},
    ),
]

"""Converted models of transformers and diffusers: checkpoints, LoRA, checkpointing."""

import copy
import functools

import pytest
import torch
from torch import nn

from apa_mmdet.conversion import convert_activations
from apa_mmdet.layers import AGLU
from apa_mmdet.optim import param_groups

transformers = pytest.importorskip("transformers")

SIZES = dict(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)
SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
GPT2 = dict(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16)


class Llama(transformers.LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        convert_activations(self)


class GPT(transformers.GPT2LMHeadModel):
    def __init__(self, config):
        super().__init__(config)
        convert_activations(self)


@pytest.fixture
def ids():
    return torch.randint(3, 50, (2, 8), generator=torch.Generator().manual_seed(0))


def llama(**options):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, **SPECIAL, **options)
    return transformers.LlamaForCausalLM(config).eval()


def gpt():
    torch.manual_seed(0)
    config = transformers.GPT2Config(**GPT2, **SPECIAL)
    return transformers.GPT2LMHeadModel(config).eval()


def own(model):
    return [act for act in model.modules() if isinstance(act, AGLU)]


def starts(model):
    return {
        (act.lambda_param.item(), round(act.kappa_param.item(), 3))
        for act in own(model)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "plain, cls, kappa, bound",
    [(llama, Llama, 1.0, 1e-5), (gpt, GPT, 1.702, 0.02)],
    ids=["llama", "gpt2"],
)
def test_an_unconverted_checkpoint(plain, cls, kappa, bound, dtype, ids, tmp_path):
    model = plain().to(dtype)
    model.save_pretrained(tmp_path)
    loaded, info = cls.from_pretrained(
        tmp_path, dtype=dtype, low_cpu_mem_usage=True, output_loading_info=True
    )
    assert len(own(loaded)) == 2
    assert len(info["missing_keys"]) == 4 and not info["unexpected_keys"]
    rounded = torch.tensor(kappa, dtype=dtype).item()
    assert starts(loaded) == {(1.0, round(rounded, 3))}
    if dtype is torch.float32:
        torch.testing.assert_close(
            loaded.eval()(ids).logits, model(ids).logits, atol=bound, rtol=0
        )


def test_round_trip(ids, tmp_path):
    llama().save_pretrained(tmp_path / "plain")
    model = Llama.from_pretrained(tmp_path / "plain").eval()
    for i, act in enumerate(own(model)):
        act.lambda_param.data.fill_(0.5 + i)
    model.save_pretrained(tmp_path / "converted")
    loaded, info = Llama.from_pretrained(
        tmp_path / "converted", output_loading_info=True
    )
    assert not (info["missing_keys"] or info["unexpected_keys"])
    assert starts(loaded) == {(0.5, 1.0), (1.5, 1.0)}
    assert loaded.eval()(ids).logits.equal(model(ids).logits)


def test_round_trip_without_a_class(ids, tmp_path):
    from safetensors.torch import load_model

    model = llama(tie_word_embeddings=True)
    convert_activations(model)
    own(model)[0].lambda_param.data.fill_(0.5)
    model.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_config(config).eval()
    convert_activations(loaded)
    load_model(loaded, tmp_path / "model.safetensors")
    assert loaded(ids).logits.equal(model(ids).logits)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant, ids):
    model = llama().train()
    convert_activations(model)

    def gradients():
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    torch.testing.assert_close(gradients(), expected, atol=0, rtol=0)


def test_lora(ids, tmp_path):
    peft = pytest.importorskip("peft")
    model = llama()
    convert_activations(model)
    base = copy.deepcopy(model)
    lora = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["act_fn"])
    tuned = peft.get_peft_model(model, lora)
    groups = param_groups(tuned, 0.1)
    assert sum(p.requires_grad for p in groups[1]["params"]) == 4
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for _ in range(2):
        tuned(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    tuned.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert loaded(ids).logits.equal(tuned.eval()(ids).logits)
    merged = loaded.merge_and_unload()
    assert len(own(merged)) == 2 and (1.0, 1.0) not in starts(merged)
    torch.testing.assert_close(merged(ids).logits, tuned(ids).logits)


def test_lora_where_an_activation_has_several_sites():
    peft = pytest.importorskip("peft")

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(self.fc2(self.relu(self.fc1(x))))

    model = nn.Sequential(Block())
    convert_activations(model, init="silu")
    lora = dict(target_modules=["fc1"], modules_to_save=["relu.0", "relu.1"])
    tuned = peft.get_peft_model(model, peft.LoraConfig(**lora))
    tuned(torch.randn(2, 4)).sum().backward()
    trained = [act for act in own(tuned) if act.lambda_param.requires_grad]
    assert len(trained) == 2
    assert all(act.lambda_param.grad.abs() > 0 for act in trained)


@pytest.mark.parametrize("target, trains", [("q_proj", False), ("gate_proj", True)])
def test_converted_under_lora(target, trains):
    peft = pytest.importorskip("peft")
    tuned = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=[target]))
    report = convert_activations(tuned)
    assert [site.trainable for site in report.sites] == [trains] * 2


def test_export(ids):
    model = llama()
    convert_activations(model)
    inputs = dict(input_ids=ids, use_cache=False)
    program = torch.export.export(model, (), inputs)
    torch.testing.assert_close(program.module()(**inputs).logits, model(ids).logits)


@pytest.fixture
def unet():
    """A class of diffusers that converts itself, and the sizes of a small one."""
    diffusers = pytest.importorskip("diffusers")

    class UNet(diffusers.UNet2DModel):
        @functools.wraps(diffusers.UNet2DModel.__init__)  # from_pretrained reads it
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            convert_activations(self)

    sizes = dict(
        sample_size=8,
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return diffusers.UNet2DModel, UNet, sizes


def test_an_unconverted_checkpoint_of_diffusers(unet, tmp_path):
    plain, converted, sizes = unet
    model, x = plain(**sizes).eval(), torch.randn(1, 3, 8, 8)
    model.save_pretrained(tmp_path)
    loaded = converted.from_pretrained(tmp_path, low_cpu_mem_usage=False).eval()
    assert starts(loaded) == {(1.0, 1.0)}
    torch.testing.assert_close(
        loaded(x, 1).sample, model(x, 1).sample, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("low", [False, True])
def test_round_trip_of_diffusers(low, unet, tmp_path):
    if low:
        pytest.importorskip("accelerate")
    _, converted, sizes = unet
    model, x = converted(**sizes).eval(), torch.randn(1, 3, 8, 8)
    own(model)[0].lambda_param.data.fill_(0.5)
    model.save_pretrained(tmp_path)
    loaded = converted.from_pretrained(tmp_path, low_cpu_mem_usage=low).eval()
    assert len(starts(loaded)) == 2
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())
    torch.testing.assert_close(loaded(x, 1).sample, model(x, 1).sample)

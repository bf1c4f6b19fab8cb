"""Weights in every published format: they give the images of the unlearned model, and what does not fit is refused in a line."""

from __future__ import annotations

import copy
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from quick_copy import copied
from safetensors.torch import load_file, save_file
from shared_examples import by_kind

from unlearnbench.algos.checkpoint import Checkpoint
from unlearnbench.config.build import build
from unlearnbench.config.compose import compose
from unlearnbench.models.adapters.bottleneck import bottleneck_adapters, install_bottlenecks
from unlearnbench.models.adapters.gated_lora import FacilitatedTransport, gated_loras
from unlearnbench.models.base import TextToImage
from unlearnbench.models.compvis_names import single_file_weights
from unlearnbench.models.foreign_names import Layout, canonical, rename_weights
from unlearnbench.models.foreign_weights import ForeignWeights, layout_of, peft_factor
from unlearnbench.models.lora_file import save_lora_stage
from unlearnbench.models.tiny_pipelines import make_tiny_pipeline, tiny_overrides
from unlearnbench.models.weights import load_weights, save_weights
from unlearnbench.models.weights_source import WeightsSource, files_to_fetch
from unlearnbench.sampling import generate
from unlearnbench.storage.hub import HubFiles, HubRepository
from unlearnbench.storage.pickles import convert_pickle

PROMPTS, SEEDS = ["a red church on the left", "a blue star"], [1, 2]
FAMILIES = ("sd15", "sdxl", "flux")
CPU = torch.device("cpu")
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def folders(family_folder):
    """The tiny checkpoint of some families, a folder each."""
    return {family: family_folder(family) for family in FAMILIES}


@pytest.fixture(scope="module")
def models(folders):
    """The loaded model of each family; not to be changed."""
    return {family: build(compose(*tiny_overrides(family, folders[family])).model, TextToImage, "model") for family in FAMILIES}


@pytest.fixture(scope="module")
def loaded_models(models):
    return {family: model.load(CPU) for family, model in models.items()}


@pytest.fixture
def model(loaded_models):
    """A Stable Diffusion 1 of the test's own."""
    return copied(loaded_models["sd15"])


@pytest.fixture(scope="module")
def unlearned(loaded_models):
    """The same model with other cross-attention, text encoder and a convolution; not to be changed."""
    changed = copied(loaded_models["sd15"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if re.search(r"attn2|^text_encoder|unet\.(conv_in|up_blocks.*upsamplers)", name):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return changed


def images(model, guidance=None):
    return generate(model, PROMPTS, SEEDS, 3, 2.0, guidance)


def foreign(path, **settings):
    scale = settings.pop("scale", 1.0)
    return ForeignWeights(WeightsSource(str(path), **settings), scale)


def loaded(model, path, **settings):
    """The images of a copy of the model with these weights, and what changed."""
    other, weights = copy.deepcopy(model), foreign(path, **settings)
    assert weights.problem(other) is None
    names, guidance = weights.load(other)
    return images(other, guidance), names


def written(path, tensors, metadata=None):
    save_file({name: value.detach().contiguous().clone() for name, value in tensors.items()}, path, metadata)
    return path


def changed_names(model, unlearned, part=""):
    own = dict(unlearned.named_parameters())
    return {name for name, value in model.named_parameters() if name.startswith(part) and not torch.equal(value, own[name])}


def with_part(model, unlearned, part):
    """The original with one part of the unlearned model."""
    other = copy.deepcopy(model)
    getattr(other, part).load_state_dict(getattr(unlearned, part).state_dict())
    return other


# --- weights ------------------------------------------------------------------------------------------------------------

PREFIXES = ["", "unet.", "module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("partial", [False, True])
def test_a_unet_in_diffusers_names_whole_or_in_part(prefix, partial, model, unlearned, tmp_path):
    state = {k: v for k, v in unlearned.unet.state_dict().items() if not partial or ".attn2." in k}
    path = written(tmp_path / "esd.safetensors", {prefix + name: value for name, value in state.items()})
    expected = with_part(model, unlearned, "unet")
    if partial:
        expected = copy.deepcopy(model)
        expected.unet.load_state_dict(state, strict=False)
    result, names = loaded(model, path)
    assert torch.equal(result, images(expected))
    assert set(names) == changed_names(model, expected)


@pytest.mark.parametrize(
    "prefix", by_kind(["model.diffusion_model.", "", "state_dict.model.diffusion_model."], ["model.diffusion_model."])
)
@pytest.mark.parametrize("which", [".", "attn2.to_[kv]", "output_blocks.*conv.weight"])
def test_a_unet_in_compvis_names_whole_or_in_part(prefix, which, model, unlearned, tmp_path):
    state = single_file_weights(unlearned.pipeline)
    own = {n.removeprefix("model.diffusion_model."): v for n, v in state.items() if n.startswith("model.diffusion_model.")}
    own = {prefix + name: value for name, value in own.items() if re.search(which, name)}
    result, names = loaded(model, written(tmp_path / "salun.safetensors", own))
    expected = changed_names(model, unlearned, "unet")
    pattern = {".": ".", "attn2.to_[kv]": "attn2.to_[kv]", "output_blocks.*conv.weight": "upsamplers.0.conv.weight"}[which]
    assert set(names) == {name for name in expected if re.search(pattern, name)} != set()
    if which == ".":
        assert torch.equal(result, images(with_part(model, unlearned, "unet")))


def test_each_compvis_name_alone_is_the_parameter_that_it_is_in_a_whole_unet():
    """With two layers a block, as real ones have; partial files lack blocks by which diffusers' converter counts."""
    pipeline = make_tiny_pipeline("sdxl")
    pipeline.unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=2, attention_head_dim=2, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12, transformer_layers_per_block=2,
    )  # fmt: skip
    names = [name for name in single_file_weights(pipeline) if name.startswith("model.diffusion_model.")]
    shapes = {f"unet.{name}": list(value.shape) for name, value in pipeline.unet.named_parameters()}
    layout = Layout("sdxl", shapes, "unet", dict(pipeline.unet.config))
    whole = rename_weights({name: [1] for name in names}, layout)
    assert not whole.unknown
    assert whole.parameters.keys() == shapes.keys()
    for parameter, name in whole.parameters.items():
        assert rename_weights({name: [1]}, layout).parameters == {parameter: name}


@pytest.mark.parametrize(
    "prefix", ["", "text_model.", "text_encoder.", "text_encoder.text_model.", "cond_stage_model.transformer.text_model."]
)
def test_a_text_encoder_with_and_without_text_model(prefix, model, unlearned, tmp_path):
    state = {prefix + name.removeprefix("text_model."): value for name, value in unlearned.text_encoder.state_dict().items()}
    state[f"{prefix}embeddings.position_ids"] = torch.arange(8)[None]
    result, names = loaded(model, written(tmp_path / "adv.safetensors", state))
    assert torch.equal(result, images(with_part(model, unlearned, "text_encoder")))
    assert set(names) == changed_names(model, unlearned, "text_encoder")


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_folder_of_one_part_and_one_in_a_subfolder(part, model, unlearned, tmp_path):
    getattr(unlearned, part).save_pretrained(tmp_path / "repository" / "nudity_unlearned")
    expected = images(with_part(model, unlearned, part))
    assert torch.equal(loaded(model, tmp_path / "repository/nudity_unlearned")[0], expected)
    assert torch.equal(loaded(model, tmp_path / "repository", subfolder="nudity_unlearned")[0], expected)


def test_a_pipeline_folder_and_its_unet_give_the_same_images(model, unlearned, tmp_path):
    unlearned.pipeline.save_pretrained(tmp_path / "mace", safe_serialization=True)
    result, names = loaded(model, tmp_path / "mace")
    assert torch.equal(result, images(unlearned))
    assert set(names) == changed_names(model, unlearned)
    unet, text = (loaded(model, tmp_path / "mace" / part) for part in ("unet", "text_encoder"))
    assert torch.equal(unet[0], images(with_part(model, unlearned, "unet")))
    assert {*unet[1], *text[1]} == set(names)


def test_a_pipeline_in_half_precision_changes_only_what_differs_by_more_than_rounding(model, unlearned, tmp_path):
    unlearned.pipeline.save_pretrained(tmp_path / "mace", safe_serialization=True)
    for path in (tmp_path / "mace").glob("*/*.safetensors"):
        save_file({name: value.half() for name, value in load_file(path).items()}, path, {"format": "pt"})
    assert set(loaded(model, tmp_path / "mace")[1]) == changed_names(model, unlearned)


def test_a_whole_checkpoint_in_one_file(model, unlearned, tmp_path):
    result, names = loaded(model, written(tmp_path / "all.safetensors", single_file_weights(unlearned.pipeline)))
    assert torch.equal(result, images(unlearned))
    assert set(names) == changed_names(model, unlearned)


def test_the_weights_of_a_run(model, unlearned, tmp_path):
    names = sorted(changed_names(model, unlearned))
    save_weights(unlearned, tmp_path / "run/weights.safetensors", names)
    (tmp_path / "run/run.json").write_text("{}")
    for path in (tmp_path / "run", tmp_path / "run/weights.safetensors"):
        assert torch.equal(loaded(model, path)[0], images(unlearned))


def test_what_equals_the_original_changes_nothing(model, tmp_path):
    assert loaded(model, written(tmp_path / "same.safetensors", model.unet.state_dict()))[1] == []


# --- LoRA ---------------------------------------------------------------------------------------------------------------


def lora_numbers(layout, which, rank=2):
    """A, B and alpha of a LoRA, by the name of the layer."""
    generator, numbers = torch.Generator().manual_seed(3), {}
    for name, shape in layout.shapes.items():
        if name.endswith(".weight") and re.search(which, name):
            down, up = torch.randn(rank, *shape[1:], generator=generator), torch.randn(shape[0], rank, generator=generator)
            up = up if len(shape) == 2 else up[:, :, None, None]
            numbers[name.removesuffix(".weight")] = (down * 0.3, up * 0.3)
    return numbers


def own_names(model, numbers):
    """The numbers by the names that the installed transformers gives the layers; its 5.0 has CLIP's below `text_model`."""
    names = {canonical(name).removesuffix(".weight"): name for name, _ in model.named_parameters()}
    return {names[layer].removesuffix(".weight"): pair for layer, pair in numbers.items()}


def peft_file(numbers, forms=("lora_A", "lora_B")):
    return {f"{layer}.{form}.weight": value for layer, pair in numbers.items() for form, value in zip(forms, pair, strict=True)}


def kohya_file(numbers, alpha):
    tensors = {}
    for layer, (down, up) in numbers.items():
        part, _, path = layer.partition(".")
        prefix = {"unet": "lora_unet", "text_encoder": "lora_te_text_model", "text_encoder_2": "lora_te2_text_model"}[part]
        name = f"{prefix}_{path.replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(float(alpha))}
    return tensors


LORA = r"unet.*(attn[12]\.to_|proj_in|ff\.net|conv1)|text_encoder.*(q_proj|fc1)"


@pytest.fixture
def numbers(model):
    return lora_numbers(layout_of(model), LORA)


def test_loras_of_kohya_and_of_peft_with_the_same_numbers_give_the_same_images(model, numbers, tmp_path):
    peft, names = loaded(model, written(tmp_path / "peft.safetensors", peft_file(numbers)), scale=0.5)
    kohya = loaded(model, written(tmp_path / "kohya.safetensors", kohya_file(numbers, alpha=1)))
    assert torch.equal(peft, kohya[0])
    assert names == kohya[1]
    assert set(names) == {f"{layer}.weight" for layer in own_names(model, numbers)}
    assert not torch.equal(peft, images(model))


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_a_lora_gives_the_images_of_diffusers_own_loader(form, scale, model, tmp_path):
    numbers = lora_numbers(layout_of(model), r"unet.*attn[12]\.to_|text_encoder.*(q|out)_proj")
    numbers = {layer: (2 * down, up) for layer, (down, up) in numbers.items()}
    tensors = peft_file(own_names(model, numbers)) if form == "peft" else kohya_file(numbers, alpha=1)
    path = written(tmp_path / "lora.safetensors", tensors)
    theirs = copy.deepcopy(model)
    theirs.pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    theirs.pipeline.fuse_lora(lora_scale=scale)
    ours, _ = loaded(model, path, scale=scale)
    assert (ours.int() - images(theirs).int()).abs().max() <= 1
    assert (ours.int() - images(model).int()).abs().max() > 5


@pytest.mark.parametrize(
    "forms", [("lora.down", "lora.up"), ("lora_A.default", "lora_B.default"), ("lora_linear_layer.down", "lora_linear_layer.up")]
)
def test_a_lora_in_older_forms_of_diffusers(forms, model, numbers, tmp_path):
    part = "text_encoder." if "linear" in forms[0] else "unet."
    numbers = {layer: pair for layer, pair in numbers.items() if layer.startswith(part)}
    expected, _ = loaded(model, written(tmp_path / "peft.safetensors", peft_file(numbers)))
    assert torch.equal(loaded(model, written(tmp_path / "old.safetensors", peft_file(numbers, forms)))[0], expected)


def test_a_lora_of_attention_processors(model, tmp_path):
    numbers = lora_numbers(layout_of(model), r"unet.*attn2\.to_k")
    old = {
        f"{layer.removesuffix('.to_k')}.processor.to_k_lora.{form}.weight": value
        for layer, pair in numbers.items()
        for form, value in zip(("down", "up"), pair, strict=True)
    }
    bare = {name.removeprefix("unet."): value for name, value in old.items()}
    expected, _ = loaded(model, written(tmp_path / "peft.safetensors", peft_file(numbers)))
    for name, tensors in (("old", old), ("bare", bare)):
        assert torch.equal(loaded(model, written(tmp_path / f"{name}.safetensors", tensors))[0], expected)


def test_alpha_of_peft_is_read_from_the_header_and_from_the_adapters_folder(model, numbers, tmp_path):
    numbers = {layer: pair for layer, pair in numbers.items() if layer.startswith("unet.")}
    expected, _ = loaded(model, written(tmp_path / "peft.safetensors", peft_file(numbers)), scale=2.0)
    note = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4})}
    assert torch.equal(loaded(model, written(tmp_path / "noted.safetensors", peft_file(numbers), note))[0], expected)
    folder = tmp_path / "adapter"
    folder.mkdir()
    bare = {f"base_model.model.{name.removeprefix('unet.')}": value for name, value in peft_file(numbers).items()}
    written(folder / "adapter_model.safetensors", bare)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    assert torch.equal(loaded(model, folder)[0], expected)


def test_the_lora_of_a_run_is_merged(model, numbers, tmp_path):
    tensors = {name: value.flatten(1) for name, value in peft_file(numbers).items()}
    save_lora_stage(tmp_path / "lora.safetensors", 0, tensors, model.path)
    expected, _ = loaded(model, written(tmp_path / "peft.safetensors", peft_file(numbers)))
    assert torch.equal(loaded(model, tmp_path / "lora.safetensors")[0], expected)


def test_the_factor_of_peft_follows_patterns_and_rank_stabilisation():
    settings = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_k": 2}, "unet.use_rslora": False}
    assert peft_factor(settings, f"unet.{LAYER}.weight", 4) == 0.5
    assert peft_factor(settings, "unet.conv_in.weight", 4) == 2
    assert peft_factor({"use_rslora": True, "lora_alpha": 8}, "unet.conv_in.weight", 4) == 4
    assert peft_factor({}, "unet.conv_in.weight", 4) == 1


def test_a_lora_of_sdxl_in_compvis_blocks(loaded_models, tmp_path):
    """kohya trains SDXL on CompVis' blocks: diffusers' down_blocks.1.attentions.0 is input_blocks.3.1 of one layer a block."""
    model = copied(loaded_models["sdxl"])
    numbers = lora_numbers(layout_of(model), r"unet\.(down_blocks\.1|mid_block)\..*attn2\.to_|^text_encoder_2.*q_proj")
    tensors = kohya_file(numbers, alpha=1)
    places = {"down_blocks_1_attentions_0": "input_blocks_3_1", "mid_block_attentions_0": "middle_block_1"}
    for ours, theirs in places.items():
        tensors = {name.replace(ours, theirs): value for name, value in tensors.items()}
    assert any("input_blocks_3_1" in name for name in tensors)
    result, names = loaded(model, written(tmp_path / "xl.safetensors", tensors))
    assert {canonical(name) for name in names} == {f"{layer}.weight" for layer in numbers}
    assert torch.equal(result, loaded(model, written(tmp_path / "peft.safetensors", peft_file(numbers)), scale=0.5)[0])


def test_a_lora_of_flux_in_the_names_of_diffusers(loaded_models, tmp_path):
    model = copied(loaded_models["flux"])
    numbers = lora_numbers(layout_of(model), r"transformer\.transformer_blocks.*attn\.to_[qkv]")
    result, names = loaded(model, written(tmp_path / "flux.safetensors", peft_file(numbers)))
    assert set(names) == {f"{layer}.weight" for layer in numbers}
    assert not torch.equal(result, images(model))


def test_a_lora_of_flux_in_the_names_of_kohya_splits_query_key_and_value(loaded_models, tmp_path):
    model = copied(loaded_models["flux"])
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 16, generator=generator), torch.randn(48, 2, generator=generator)
    kohya = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    kohya = {f"lora_unet_double_blocks_0_img_attn_qkv.{name}": value for name, value in kohya.items()}
    layers = [f"transformer.transformer_blocks.0.attn.to_{kind}" for kind in "qkv"]
    peft = peft_file({layer: (down, part) for layer, part in zip(layers, up.chunk(3), strict=True)})
    result, names = loaded(model, written(tmp_path / "kohya.safetensors", kohya))
    assert names == [f"{layer}.weight" for layer in layers]
    assert torch.equal(result, loaded(model, written(tmp_path / "peft.safetensors", peft), scale=0.5)[0])


# --- adapters that stay beside the weights ------------------------------------------------------------------------------


def test_spm_is_gated_by_its_prompts_and_differs_from_the_same_numbers_as_a_lora(model, tmp_path):
    numbers = lora_numbers(layout_of(model), r"unet.*(attn2\.to_|proj_in)", rank=1)
    tensors = kohya_file(numbers, alpha=0.5)
    path = written(tmp_path / "spm.safetensors", tensors, {"prompts": "church,chapel", "rank": "1", "alpha": "0.5"})
    other = copy.deepcopy(model)
    names, guidance = foreign(path).load(other)
    assert guidance == FacilitatedTransport([["church", "chapel"]], 2.0)
    assert len(gated_loras(other)) == len(numbers)
    assert {name.partition(".membranes.")[0] for name in names} == set(numbers)
    gates = guidance.conditioned(other, PROMPTS, other.encode_prompts(PROMPTS))["gates"]
    assert gates[0] == 1
    assert gates[1] < 1
    merged, _ = loaded(model, written(tmp_path / "lora.safetensors", tensors))
    assert (images(other).int() - merged.int()).abs().max() <= 1  # without transport all are open
    assert not torch.equal(images(other, guidance)[1], merged[1])
    save_weights(other, tmp_path / "saved.safetensors", names, guidance)
    again = copy.deepcopy(model)
    assert load_weights(again, tmp_path / "saved.safetensors") == guidance
    assert torch.equal(images(again, guidance), images(other, guidance))


def test_several_spms_are_gated_each_by_its_own_prompts(model, tmp_path):
    numbers = lora_numbers(layout_of(model), r"unet.*attn2\.to_", rank=1)
    paths = []
    for name, sign in (("church", 1), ("star", -1)):
        tensors = kohya_file({layer: (down, sign * up) for layer, (down, up) in numbers.items()}, alpha=0.5)
        paths.append(str(written(tmp_path / f"{name}.safetensors", tensors, {"prompts": name, "rank": "1"})))

    def unlearned(*weights):
        first, *others = weights
        algo, other = Checkpoint("checkpoint", weights=first, also=others), copy.deepcopy(model)
        assert algo.unavailable_reason(other) is None
        result = algo.update(SimpleNamespace(model=other, guidance=None))
        return result, images(other, result.guidance)

    both, swapped = unlearned(*paths), unlearned(*reversed(paths))
    assert both[0].guidance == FacilitatedTransport([["church"], ["star"]], 2.0)
    assert {name.rpartition(".membranes.")[2].partition(".")[0] for name in both[0].names} == {"0", "1"}
    assert (both[1].int() - swapped[1].int()).abs().max() <= 1
    alone = [unlearned(path)[1] for path in paths]
    assert all((both[1].int() - image.int()).abs().max() > 1 for image in alone)
    plain = written(tmp_path / "lora.safetensors", kohya_file(numbers, alpha=0.5))
    problem = Checkpoint("checkpoint", weights=paths[0], also=[str(plain)]).unavailable_reason(model)
    assert problem.endswith("lora.safetensors are lora, and only SPM's adapters combine; name one source in algo.weights alone")
    missing = Checkpoint("checkpoint", weights=paths[0], also=["none.safetensors"]).unavailable_reason(model)
    assert "none.safetensors" in missing


def test_concept_ablation_that_trained_the_embedding_of_a_word(model, tmp_path):
    """Its delta.bin of the parameter group embedding: no weight of the UNet, and the whole text encoder with its positions."""
    states = {f"text_model.{n.removeprefix('text_model.')}": v.clone() for n, v in model.text_encoder.state_dict().items()}
    embedding = next(name for name in states if name.endswith("token_embedding.weight"))
    word = model.tokenizer("church", add_special_tokens=False).input_ids[-1]
    states[embedding][word] = torch.linspace(-3, 3, states[embedding].shape[1])
    states["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    torch.save({"unet": {}, "text_encoder": states}, tmp_path / "delta.bin")
    convert_pickle(tmp_path / "delta.bin", tmp_path / "delta.safetensors")
    result, names = loaded(model, tmp_path / "delta.safetensors")
    assert [name.removeprefix("text_encoder.").removeprefix("text_model.") for name in names] == [
        "embeddings.token_embedding.weight"
    ]
    changed = (result != images(model)).flatten(1).any(1).tolist()
    assert changed == ["church" in prompt for prompt in PROMPTS]


def test_erasers_of_receler(model, tmp_path):
    expected = copy.deepcopy(model)
    install_bottlenecks(expected.modules(), 3, torch.Generator().manual_seed(0))
    tensors = {}
    for name, layer in expected.unet.named_modules():
        if name.endswith("attn2.to_out.1"):
            torch.nn.init.normal_(layer.up.weight, generator=torch.Generator().manual_seed(1))
            tensors |= {f"{name.partition('.transformer_blocks')[0]}.{key}": value for key, value in layer.state_dict().items()}
    result, names = loaded(model, written(tmp_path / "eraser_weights.safetensors", tensors))
    assert torch.equal(result, images(expected))
    assert len(names) == 4 * len(bottleneck_adapters(expected.modules()))
    assert not torch.equal(result, images(model))


# --- what does not fit --------------------------------------------------------------------------------------------------


def refused(model, path, **settings):
    problem = foreign(path, **settings).problem(model)
    assert problem is not None
    assert "\n" not in problem
    return problem


def test_names_that_fit_nowhere_are_told_with_the_three_nearest(model, tmp_path):
    state = model.unet.state_dict() | {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_keys.weight": torch.zeros(2)}
    problem = refused(model, written(tmp_path / "odd.safetensors", state))
    match = re.search(r"1 of \d+ names fit no parameter of \S+, such as \S+to_keys\.weight; nearest: (.+)$", problem)
    nearest = match[1].split(", ")
    assert nearest[0] == f"unet.{LAYER}.weight"
    assert len(nearest) == 3


def test_weights_of_another_base_model_are_named(models, model, tmp_path):
    wide = {f"{LAYER}.weight": torch.zeros(16, 1024)}
    message = "has the shape (16, 1024), in "
    assert message in (problem := refused(model, written(tmp_path / "wide.safetensors", wide)))
    assert problem.endswith("these weights belong to another base model, such as model=sd21")
    sdxl = models["sdxl"].load(CPU).unet.state_dict()
    assert "belong to another base model" in refused(model, written(tmp_path / "xl.safetensors", sdxl))
    lora = {f"unet.{LAYER}.lora_A.weight": torch.zeros(2, 768), f"unet.{LAYER}.lora_B.weight": torch.zeros(16, 2)}
    assert refused(model, written(tmp_path / "lora.safetensors", lora)).endswith("another base model, such as model=sd14")


def test_a_lora_of_another_family_is_named(model, loaded_models, tmp_path):
    layer = "transformer.transformer_blocks.0.attn.to_q"
    flux = {f"{layer}.lora_A.weight": torch.zeros(2, 16), f"{layer}.lora_B.weight": torch.zeros(16, 2)}
    problem = refused(model, written(tmp_path / "flux.safetensors", flux))
    assert problem.startswith(f"algo.weights={tmp_path}/flux.safetensors: 2 of 2 names fit no layer of ")
    assert problem.endswith("; they seem to be of a transformer, such as flux or sd3, and this model has a unet")
    unet = {f"unet.{LAYER}.lora_A.weight": torch.zeros(2, 16), f"unet.{LAYER}.lora_B.weight": torch.zeros(16, 2)}
    assert "and this model has a transformer" in refused(loaded_models["flux"], written(tmp_path / "sd.safetensors", unet))


def test_a_pipeline_of_another_family_or_width_is_refused(folders, model, tmp_path):
    assert "its model_index.json names StableDiffusionXLPipeline" in refused(model, folders["sdxl"])
    folder = shutil.copytree(folders["sd15"], tmp_path / "other")
    unet = folder / "unet/diffusion_pytorch_model.safetensors"
    save_file(load_file(unet) | {f"{LAYER}.weight": torch.zeros(16, 8)}, unet, {"format": "pt"})
    assert "has the shape (16, 8)" in refused(model, folder)


def test_damaged_files_pickles_and_missing_ones_are_one_line_with_the_repair(model, tmp_path):
    path = written(tmp_path / "cut.safetensors", model.unet.state_dict())
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged or cut short (" in refused(model, path)
    old = tmp_path / "esd.pt"
    torch.save(model.unet.state_dict(), old)
    command = f"`unlearnbench convert {old} {tmp_path}/esd.safetensors`"
    assert refused(model, old).endswith(f"esd.pt is a pickle, which no run opens; convert it once: {command}")
    old.rename(tmp_path / "named.safetensors")
    assert "is a pickle" in refused(model, tmp_path / "named.safetensors")
    assert refused(model, "none.safetensors").endswith("no such file or folder, and not a hub id")
    (tmp_path / "empty").mkdir()
    assert "holds no model_index.json and no .safetensors file" in refused(model, tmp_path / "empty")
    torch.save({}, tmp_path / "empty/pytorch_model.bin")
    assert "unlearnbench convert" in refused(model, tmp_path / "empty")
    for name in ("church", "nudity"):
        written(tmp_path / f"empty/{name}.safetensors", model.unet.state_dict())
    message = "holds several files; choose one with algo.subfolder: church.safetensors, nudity.safetensors"
    assert message in refused(model, tmp_path / "empty")
    assert foreign(tmp_path / "empty", subfolder="church.safetensors").problem(model) is None


def test_the_strength_of_a_lora_is_refused_for_other_weights(model, tmp_path):
    path = written(tmp_path / "unet.safetensors", model.unet.state_dict())
    assert refused(model, path, scale=0.5).endswith("algo.scale=0.5 is for a LoRA, and these weights are none; leave it out")


def test_erasers_of_another_width_are_refused(model, tmp_path):
    place = "down_blocks.1.attentions.0"
    tensors = {f"{place}.down.weight": torch.zeros(3, 320), f"{place}.down.bias": torch.zeros(3)}
    assert "another base model" in refused(model, written(tmp_path / "eraser.safetensors", tensors))


def test_adapters_that_are_no_lora_are_named(model, tmp_path):
    name = f"lora_unet_{LAYER.replace('.', '_')}"
    tensors = {f"{name}.hada_w1_a": torch.zeros(2, 2), f"{name}.alpha": torch.tensor(1.0)}
    assert refused(model, written(tmp_path / "loha.safetensors", tensors)).endswith("only LoRA is read, not LoHa, LoKr or DoRA")


# --- the hub ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository of the hub, the cache's folder of it, and the names of the files that were fetched."""
    repository, cache, fetched = tmp_path / "repository", tmp_path / "cache", []

    def snapshot_download(path, revision=None, local_files_only=False):
        assert local_files_only
        if not cache.exists():
            raise OSError
        return str(cache)

    def fetch(_, what, sizes, advance):
        for name in sizes:
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, cache / name)
            fetched.append(name)

    sizes = property(lambda _: {str(file.relative_to(repository)): 1000 for file in repository.rglob("*.*") if file.is_file()})
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HubRepository, "look_up", lambda self: HubFiles(None, sizes.fget(self)))
    monkeypatch.setattr(HubRepository, "missing", lambda _, names: [name for name in names if not (cache / name).exists()])
    monkeypatch.setattr(HubRepository, "fetch", fetch)
    return repository, cache, fetched


def test_a_pipeline_of_the_hub_is_fetched_without_variants_and_goes_on_where_it_was_cut(hub, model, unlearned):
    repository, cache, fetched = hub
    unlearned.pipeline.save_pretrained(repository / "mace", safe_serialization=True)
    (repository / "v1.safetensors").write_bytes(b"large")
    for part in ("unet", "vae", "text_encoder"):
        [path] = (repository / "mace" / part).glob("*.safetensors")
        shutil.copy(path, path.with_suffix(".fp16.safetensors"))
    source = WeightsSource("some/model", subfolder="mace")
    assert source.download().line().startswith("weights some/model: ")
    source.fetch()
    assert not [name for name in fetched if "fp16" in name or "v1" in name]
    shutil.rmtree(cache / "mace/unet")
    assert source.download().size() == 2000
    assert ForeignWeights(source).problem(model) is None  # nothing is known before the download
    assert torch.equal(loaded(model, "some/model", subfolder="mace")[0], images(unlearned))
    assert source.download() is None


def test_a_text_encoder_and_a_file_in_a_repository_of_the_hub(hub, model, unlearned):
    repository, _, fetched = hub
    unlearned.text_encoder.save_pretrained(repository / "church_unlearned")
    written(repository / "esd.safetensors", unlearned.unet.state_dict())
    result, _ = loaded(model, "some/model", subfolder="church_unlearned")
    assert torch.equal(result, images(with_part(model, unlearned, "text_encoder")))
    assert "esd.safetensors" not in fetched
    result, _ = loaded(model, "some/model", subfolder="esd.safetensors")
    assert torch.equal(result, images(with_part(model, unlearned, "unet")))
    assert (
        "none of the hub's repository has no .safetensors file"
        in WeightsSource("some/model", subfolder="none").download().problem()
    )


def test_weights_of_which_a_shard_is_missing_are_refused_and_downloaded_again(model, hub, tmp_path):
    repository, cache, fetched = hub
    names = [f"diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    tensors = list(model.unet.state_dict().items())
    repository.mkdir()
    for number, name in enumerate(names):
        written(repository / name, dict(tensors[number::3]))
    shutil.copytree(repository, tmp_path / "unet")
    assert foreign(tmp_path / "unet").problem(model) is None
    (tmp_path / "unet" / names[1]).unlink()
    assert refused(model, tmp_path / "unet").endswith(f"{names[1]} missing; fetch the whole folder again")
    source = WeightsSource("some/model")
    assert source.fetch() == cache
    assert source.download() is None
    (cache / names[2]).unlink()
    assert source.path() is None
    source.fetch()
    assert fetched == [*names, names[2]]


def test_a_repository_with_several_files_asks_for_one(hub):
    hub[0].mkdir()
    for name in ("church", "nudity"):
        written(hub[0] / f"{name}.safetensors", {"a": torch.ones(1)})
    message = "the hub's repository holds several files; choose one with algo.subfolder: church.safetensors, nudity.safetensors"
    assert message in WeightsSource("some/model").download().problem()


def test_only_the_files_of_the_folder_are_fetched():
    names = ["README.md", "a.safetensors", "x/model.safetensors", "x/config.json", "x/y/z.safetensors"]
    assert files_to_fetch(names, "") == ["a.safetensors"]
    assert files_to_fetch(names, "x") == ["x/config.json", "x/model.safetensors"]
    assert files_to_fetch(names, "x/y/z.safetensors") == ["x/y/z.safetensors"]
    pipeline = ["model_index.json", "unet/a.fp16.safetensors", "vae/a.fp16.safetensors", "vae/a.safetensors", "whole.safetensors"]
    assert files_to_fetch(pipeline, "") == ["model_index.json", "unet/a.fp16.safetensors", "vae/a.safetensors"]

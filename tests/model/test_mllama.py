"""Llama 3.2 Vision is held to transformers: logits, replies and gradients with images, folders, counts, configs."""

from __future__ import annotations

import warnings
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mllama_pair import (
    IMAGE,
    TEXT,
    VISION,
    VOCAB_SIZE,
    VisionPair,
    attend_to_what_is_seen,
    hub_name,
    make_vision_pair,
    new_image,
)

from camelid.base.errors import ConfigError, EngineError
from camelid.checkpoint import load_model, open_checkpoint, save_huggingface
from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.engine.step import StepStats
from camelid.model.attention import PackedContext
from camelid.model.image_memory import ImageMemory
from camelid.model.mllama import Mllama, MllamaConfig
from camelid.model.mllama_config import MllamaVisionConfig
from camelid.model.mllama_images import ImageTiles
from camelid.model.presets import PRESETS
from camelid.plan.training import plan_training
from camelid.plan.workload import Workload
from camelid.train.run_folder import check_reads_text

Prompt = tuple[list[int], list[ImageTiles]]

PROMPTS: dict[str, Prompt] = {
    "text alone": (list(range(20, 45)), []),
    "one image first": ([IMAGE, *range(30, 42)], [new_image(1, 1)]),
    "text before the image": ([*range(50, 57), IMAGE, *range(60, 71)], [new_image(2, 2)]),
    "images side by side, then one apart": (
        [9, 8, IMAGE, IMAGE, 7, 6, 5, IMAGE, 4, 3],
        [new_image(1, 3), new_image(4, 1), new_image(2, 1)],
    ),
    "an image last": ([IMAGE, 11, 12, IMAGE], [new_image(1, 2), new_image(3, 1)]),
    "more text": ([99, 98, 97], []),
}


@cache
def the_pair() -> VisionPair:
    """Not to be written to."""
    return make_vision_pair()


@pytest.mark.parametrize("name", PROMPTS)
@torch.inference_mode()
def test_logits_equal_transformers(name: str) -> None:
    ids, images = PROMPTS[name]

    theirs = the_pair().their_logits(ids, images)

    assert theirs.shape == (len(ids), VOCAB_SIZE)
    assert theirs.std() > 0.3
    assert (the_pair().our_logits(ids, images) - theirs).abs().max().item() <= 1e-4


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("max_batch_tokens", [1, 4])
@torch.inference_mode()
def test_logits_over_the_cache_equal_transformers(name: str, max_batch_tokens: int) -> None:
    ids, images = PROMPTS[name]

    ours = Engine(the_pair().ours, max_batch_tokens=max_batch_tokens).logits(ids, images=images)

    assert (ours - the_pair().their_logits(ids, images)).abs().max().item() <= 1e-4


@torch.inference_mode()
def test_every_image_matters_to_the_tokens_that_see_it_and_to_none_before() -> None:
    ids, images = PROMPTS["images side by side, then one apart"]
    logits = the_pair().our_logits(ids, images)

    for number, first_seen, last_seen in [(0, 2, 6), (1, 3, 6), (2, 7, 9)]:
        others = list(images)
        others[number] = new_image(2, 2, seed=1)
        apart = (the_pair().our_logits(ids, others) - logits).abs().amax(1)
        assert (apart[:first_seen] == 0).all()
        assert (apart[first_seen : last_seen + 1] > 1e-3).all()


REPLIES = {name: prompt for name, prompt in PROMPTS.items() if name not in ("one image first", "more text")}


@cache
def their_replies() -> list[list[int]]:
    """64 greedy tokens to each prompt by transformers' generate, with its cache."""
    return [the_pair().their_reply(ids, images, 64) for ids, images in REPLIES.values()]


@pytest.mark.parametrize(
    "limits",
    [{}, {"max_batch_tokens": 5, "max_images": 3}, {"cache_tokens": 128, "block_size": 4}, {"decode_graphs": True}],
    ids=["together", "in chunks, few images at a time", "with preemption", "in steps of one form"],
)
def test_greedy_replies_equal_those_of_transformers(limits: dict[str, int]) -> None:
    log: list[StepStats] = []
    engine = Engine(the_pair().ours, on_step=log.append, **limits)
    prompts, images = zip(*REPLIES.values(), strict=True)

    completions = engine.generate(prompts, SamplingParams(max_tokens=64), images=images)

    assert [completion.token_ids for completion in completions] == their_replies()
    assert max(stats.num_sequences for stats in log) > 1
    assert (log[-1].num_preemptions > 0) == ("cache_tokens" in limits)
    assert min(len(set(completion.token_ids)) for completion in completions) > 8


@torch.inference_mode()
def test_packed_sequences_do_not_see_each_others_images() -> None:
    pair = the_pair()
    prompts = list(PROMPTS.values())
    lengths = [len(ids) for ids, _ in prompts]
    context = PackedContext(lengths, images=[pair.memory(ids, images) for ids, images in prompts])

    packed = pair.ours(torch.tensor([i for ids, _ in prompts for i in ids]), context.positions(), context)

    for (ids, images), hidden in zip(prompts, packed.split(lengths), strict=True):
        torch.testing.assert_close(pair.ours.logits(hidden), pair.our_logits(ids, images), atol=1e-4, rtol=1e-4)


def test_gradients_equal_transformers() -> None:
    pair = make_vision_pair(seed=1)
    ids, images = [*range(50, 55), IMAGE, *range(60, 66), IMAGE, 70, 71], [new_image(1, 2), new_image(2, 2)]
    targets = torch.tensor([*ids[1:5], 3, *ids[6:12], 3, 4, 5])

    for logits in (pair.our_logits(ids, images), pair.their_logits(ids, images)):
        torch.nn.functional.cross_entropy(logits[: len(targets)], targets).backward()

    theirs = {hub_name(name): parameter.grad for name, parameter in pair.theirs.named_parameters()}
    for name, parameter in pair.ours.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, theirs[name], atol=1e-4, rtol=1e-3, msg=name)


@torch.inference_mode()
def test_folders_travel_both_ways(tmp_path: Path) -> None:
    pair = the_pair()
    ids, images = PROMPTS["images side by side, then one apart"]
    pair.theirs.save_pretrained(tmp_path / "theirs")

    with closing(open_checkpoint(tmp_path / "theirs")) as checkpoint:
        read = load_model(checkpoint)
    assert isinstance(read, Mllama)
    save_huggingface(read, tmp_path / "ours")
    returned = type(pair.theirs).from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    attend_to_what_is_seen(returned)

    expected = pair.ours.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in read.state_dict().items())
    indices = returned.config.vision_config
    assert indices.intermediate_layers_indices == list(read.config.vision.intermediate_layers_indices)
    indices.intermediate_layers_indices = pair.theirs.config.vision_config.intermediate_layers_indices
    returned.model.vision_model.intermediate_layers_indices = indices.intermediate_layers_indices
    assert torch.equal(VisionPair(read, returned).their_logits(ids, images), pair.their_logits(ids, images))


def test_a_saved_folder_says_how_images_are_prepared(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("PIL")

    save_huggingface(the_pair().ours, tmp_path / "ours")

    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours", backend="pil")
    assert theirs.size == {"height": 28, "width": 28}
    assert list(theirs.image_mean) == [0.48145466, 0.4578275, 0.40821073]


def test_the_closed_form_count_is_the_modules_own() -> None:
    model = the_pair().ours

    assert model.config.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert model.config.kv_elements_per_image == sum(
        keys.numel() + values.numel() for keys, values in zip(*memory_of(model), strict=True)
    )


@torch.inference_mode()
def memory_of(model: Mllama) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    memory = model.image_memory([new_image(1, 1)], [0])
    return memory.keys, memory.values


def test_initial_weights_depend_on_the_seed_alone_and_ignore_images() -> None:
    def initial(seed: int) -> Mllama:
        model = Mllama.from_config(the_pair().ours.config).eval()
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan)  # what is not filled shows
        model.initialize(seed)
        return model

    first, again, other = initial(1), initial(1), initial(2)

    states = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    ids, images = PROMPTS["one image first"]
    with torch.inference_mode():
        seeing = VisionPair(first, None).our_logits(ids, images)
        blind = VisionPair(first, None).our_logits(ids)
    assert torch.equal(seeing, blind)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([7, 8, IMAGE, IMAGE]), min_size=1, max_size=12), st.lists(st.integers(1, 5), max_size=12)
)
def test_who_sees_which_image_is_as_in_transformers(ids: list[int], lengths: list[int]) -> None:
    processing = pytest.importorskip("transformers.models.mllama.processing_mllama")
    positions = [position for position, token in enumerate(ids) if token == IMAGE]
    empty = (torch.empty(0),)
    memory = ImageMemory(empty, empty, tuple(positions), tuple(lengths[: len(positions)]))

    spans = processing.get_cross_attention_token_mask(ids, IMAGE)

    for position in range(len(ids)):
        theirs = [
            image for image, (start, end) in enumerate(spans) if start <= position < (len(ids) if end < 0 else end)
        ]
        assert list(memory.seen_from(position)) == theirs


def test_weights_that_change_are_seen_in_images_too() -> None:
    pair = make_vision_pair()
    ids, images = PROMPTS["text before the image"]
    engine = Engine(pair.ours)
    request = engine.add(ids, SamplingParams(max_tokens=20, ignore_eos=True), images=images)
    [output] = engine.step()
    name = "multi_modal_projector.bias"

    engine.update_weights([(name, pair.ours.state_dict()[name] + 3)])
    token_ids = list(output.token_ids)
    while engine.has_unfinished:
        token_ids += [i for output in engine.step() for i in output.token_ids]

    expected = Engine(pair.ours).generate([[*ids, token_ids[0]]], SamplingParams(max_tokens=19), images=[images])
    assert request == 0
    assert token_ids[1:] == expected[0].token_ids


@pytest.mark.parametrize(
    ("ids", "images", "message"),
    [
        ([1, IMAGE], [], "1 image tokens and 0 images"),
        ([1, 2], [new_image(1, 1)], "0 image tokens and 1 images"),
        ([1, *[IMAGE] * 4], [new_image(1, 1)] * 4, "4 images; 3 is the most"),
        ([1, VOCAB_SIZE + 8], [], "outside the vocabulary of 136"),
    ],
)
def test_prompts_and_images_that_do_not_fit_are_refused(ids: list[int], images: list[ImageTiles], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Engine(the_pair().ours, max_images=3).add(ids, images=images)


def test_a_repetition_penalty_passes_over_tokens_that_are_never_written() -> None:
    ids, images = PROMPTS["one image first"]
    params = SamplingParams(max_tokens=3, repetition_penalty=1.5)

    [completion] = Engine(the_pair().ours).generate([ids], params, images=[images])

    assert len(completion.token_ids) == 3


def test_equal_images_have_equal_digests_and_others_do_not() -> None:
    def digest(*images: ImageTiles) -> bytes:
        engine = Engine(the_pair().ours)
        engine.add([IMAGE] * len(images) + [1], images=images)
        [sequence] = engine._requests
        return sequence.images_digest

    one, other = new_image(1, 2), new_image(2, 1)
    turned = ImageTiles(one.pixels, (2, 1))

    assert digest(one) == digest(new_image(1, 2))
    assert len({digest(), digest(one), digest(other), digest(turned), digest(one, other), digest(other, one)}) == 6


HUB = {
    "architectures": ["MllamaForConditionalGeneration"],
    "image_token_index": 128256,
    "model_type": "mllama",
    "text_config": {
        "_name_or_path": "",
        "add_cross_attention": False,
        "bos_token_id": 128000,
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
        "dropout": 0,
        "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "is_encoder_decoder": False,
        "max_position_embeddings": 131072,
        "model_type": "mllama_text_model",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "pad_token_id": 128004,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 128256,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "vision_config": {
        "attention_heads": 16,
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "image_size": 560,
        "intermediate_layers_indices": [3, 7, 15, 23, 30],
        "intermediate_size": 5120,
        "is_encoder_decoder": False,
        "max_num_tiles": 4,
        "model_type": "mllama_vision_model",
        "norm_eps": 1e-05,
        "num_channels": 3,
        "num_global_layers": 8,
        "num_hidden_layers": 32,
        "patch_size": 14,
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vision_output_dim": 7680,
    },
}
"""Keys as the first configs on the hub spell them."""


def test_a_config_of_the_hub_is_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert MllamaConfig.from_hf(HUB) == PRESETS["llama-3.2-11b-vision-instruct"].config
    assert not recwarn.list


@pytest.mark.parametrize("name", ["llama-3.2-11b-vision", "llama-3.2-90b-vision-instruct"])
def test_transformers_reads_what_is_written(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = PRESETS[name].config

    theirs = transformers.MllamaConfig.from_dict(config.to_hf())

    assert MllamaConfig.from_hf(theirs.to_dict()) == config
    assert theirs.vision_config.max_aspect_ratio_id == 8


def test_the_encoders_shape_follows() -> None:
    config = PRESETS["llama-3.2-11b-vision-instruct"].config
    assert isinstance(config, MllamaConfig)

    assert (config.vision.num_patches, config.vision.output_size) == (1601, 7680)
    assert (config.num_cached_layers, config.num_embeddings) == (32, 128264)
    assert config.vision.arrangements == ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
    assert MllamaVisionConfig().num_patches == 1025


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        ("text_config", {"cross_attention_layers": [5]}, "cross_attention_layers"),
        ("text_config", {"cross_attention_layers": [3, 1]}, "ascending"),
        ("text_config", {"cross_attention_layers": [0, 1, 2, 3, 4]}, "no layer attends to tokens"),
        ("text_config", {"head_dim": 8}, "hidden size"),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act"),
        ("text_config", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("text_config", {"vocab_size": None}, "no vocab_size"),
        ("text_config", {"vision": {}}, "vision"),
        ("vision_config", {"hidden_act": "relu"}, "hidden_act"),
        ("vision_config", {"attention_heads": 3}, "attention_heads"),
        ("vision_config", {"patch_size": 13}, "patches"),
        ("vision_config", {"intermediate_layers_indices": [4]}, "intermediate_layers_indices"),
        ("vision_config", {"vision_output_dim": 64}, "vision_output_dim"),
        ("vision_config", {"supported_aspect_ratios": [[1, 1]]}, "supported_aspect_ratios"),
        ("vision_config", {"max_num_tiles": 65}, "max_num_tiles"),
        (None, {"image_token_index": 5}, "image token"),
        (None, {"image_token_index": VOCAB_SIZE + 8}, "image token"),
        (None, {"vision_config": [1]}, "vision_config must be a table"),
        (None, {"quantization_config": {"bits": 8}}, "quantised"),
        (None, {"model_type": "llama"}, "model_type"),
    ],
)
def test_what_cannot_be_honoured_is_refused(table: str | None, changes: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {
        "text_config": {**TEXT, **(changes if table == "text_config" else {})},
        "vision_config": {**VISION, **(changes if table == "vision_config" else {})},
        "image_token_index": IMAGE,
        **(changes if table is None else {}),
    }

    with pytest.raises(ConfigError, match=message):
        MllamaConfig.from_hf(settings)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    text=st.dictionaries(
        st.sampled_from(sorted({*TEXT, "head_dim", "rope_scaling", "rope_theta", "dtype"})), JSON, max_size=3
    ),
    vision=st.dictionaries(st.sampled_from(sorted(MllamaVisionConfig().to_hf())), JSON, max_size=3),
    outer=st.dictionaries(st.sampled_from(sorted({*HUB, "dtype", "bos_token_id"})), JSON, max_size=2),
)
def test_whatever_a_file_holds_is_a_config_or_a_config_error(
    text: dict[str, Any], vision: dict[str, Any], outer: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tables = {"text_config": {**TEXT, **text}, "vision_config": {**VISION, **vision}, "image_token_index": IMAGE}
        try:
            config = MllamaConfig.from_hf({**tables, **outer})
        except ConfigError:
            return
        assert MllamaConfig.from_hf(config.to_hf()) == config
        assert config.num_parameters > 0


def test_training_on_text_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be trained here yet"):
        check_reads_text(the_pair().ours.config)
    with pytest.raises(ConfigError, match="cannot be planned yet"):
        plan_training(the_pair().ours.config, Workload(steps=1, batch_size=1, sequence_length=8))


@torch.inference_mode()
def test_bf16_stays_bf16() -> None:
    model = Mllama.from_config(the_pair().ours.config).bfloat16()
    model.initialize(seed=0)
    memory = model.image_memory([new_image(2, 1)], [1])
    context = PackedContext([3], images=[memory])

    hidden = model(torch.tensor([1, IMAGE, 2]), context.positions(), context)

    assert memory.keys[0].dtype == hidden.dtype == torch.bfloat16

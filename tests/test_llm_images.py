"""Pictures from a message, a file or beside a prompt reach the model, which then says something else."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import chat_vocabularies as vocabularies
import pytest
import torch
from mllama_pair import TEXT, VISION

from byte_tokenizer import ByteTokenizer
from camelid.base.errors import CamelidError, ChatFormatError, FormatError
from camelid.checkpoint import save_huggingface
from camelid.cli.chat import _run_command, app
from camelid.cli.conversation import Conversation
from camelid.llm import LLM, load
from camelid.model.attention import PackedContext
from camelid.model.image_files import open_image
from camelid.model.mllama import Mllama, MllamaConfig
from camelid.tokenizer.base import SpecialTokens

Image = pytest.importorskip("PIL.Image")

CONTROL = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id", "image"]


class VisionTokenizer(ByteTokenizer):
    special = SpecialTokens(
        ids={f"<|{name}|>": 256 + number for number, name in enumerate(CONTROL)}, bos=256, eos=257, add_bos=True
    )
    vocab_size = 262

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False) -> list[int]:
        return [*([256] if bos else []), *text.encode("utf-8", "replace"), *([257] if eos else [])]


def new_model(image_token: int) -> Mllama:
    text = {**TEXT, "vocab_size": image_token, "max_position_embeddings": 512, "initializer_range": 0.3}
    settings = {"text_config": text, "vision_config": VISION, "image_token_index": image_token}
    model = Mllama.from_config(MllamaConfig.from_hf(settings)).eval()
    model.initialize(seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(1.0)
    return model


def new_llm(image_token: int) -> LLM:
    return LLM(new_model(image_token), VisionTokenizer())


@pytest.fixture(scope="module", params=[261, 262], ids=["the tokenizer's image token", "one of the model's own"])
def llm(request: pytest.FixtureRequest) -> LLM:
    return new_llm(request.param)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """A wide red one and a tall blue one."""
    files = [tmp_path / "red.png", tmp_path / "blue.jpg"]
    Image.new("RGB", (90, 30), "red").save(files[0])
    Image.new("RGB", (20, 70), "blue").save(files[1])
    return files


def url_of(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def asking(*images: object, text: str = "What?") -> list[dict[str, Any]]:
    shown = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


@torch.inference_mode()
def plain_loop(llm: LLM, ids: Sequence[int], pictures: Sequence[Path], num_tokens: int) -> list[int]:
    """The reply by the whole sequence again for every token: no cache, no batch."""
    ids, start = list(ids), len(ids)
    images = [llm.image_reader.read(open_image(file)) for file in pictures]
    positions = [position for position, i in enumerate(ids) if i == llm.model.config.image_token_id]
    memory = llm.model.image_memory(images, positions)
    while len(ids) - start < num_tokens:
        context = PackedContext([len(ids)], images=[memory])
        hidden = llm.model(torch.tensor(ids), context.positions(), context)
        ids.append(int(llm.model.logits(hidden[-1:]).argmax()))
    return ids[start:]


def test_a_conversation_with_pictures_is_answered_as_by_the_plain_loop(llm: LLM, pictures: list[Path]) -> None:
    messages = asking(*pictures)
    ids = llm.encode_prompt(messages)

    reply = llm.generate(messages, max_tokens=12, ignore_eos=True)

    assert ids.count(llm.model.config.image_token_id) == 2
    assert reply.num_prompt_tokens == len(ids)
    assert reply.token_ids == plain_loop(llm, ids, pictures, 12)
    assert reply.token_ids != llm.generate(asking(*pictures[::-1]), max_tokens=12, ignore_eos=True).token_ids
    assert reply.token_ids != llm.generate(asking(), max_tokens=12, ignore_eos=True).token_ids


def test_every_way_to_show_a_picture_is_the_same(llm: LLM, pictures: list[Path]) -> None:
    red = pictures[0]
    url = {"type": "image_url", "image_url": {"url": url_of(red)}}
    by_url = [{"role": "user", "content": [url, {"type": "text", "text": "What?"}]}]
    place = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    settings = {"max_tokens": 10, "ignore_eos": True}

    replies = [
        llm.generate(asking(red), **settings),
        llm.generate(asking(red.read_bytes()), **settings),
        llm.generate(asking(Image.open(red)), **settings),
        llm.generate(by_url, **settings),
        llm.generate(place, images=[red], **settings),
        llm.generate(llm.encode_prompt(place), images=[red], **settings),
        llm.generate([by_url, asking()], **settings)[0],
    ]

    assert len({tuple(reply.token_ids) for reply in replies}) == 1


def test_pictures_come_before_a_text(llm: LLM, pictures: list[Path]) -> None:
    token = llm.model.config.image_token_id
    ids = [256, token, token, *b"ab <|image|>"]

    reply = llm.generate("ab <|image|>", images=pictures, max_tokens=8, ignore_eos=True)

    assert reply.num_prompt_tokens == len(ids)
    assert reply.token_ids == plain_loop(llm, ids, pictures, 8)
    assert "".join(c.text for c in llm.stream("ab <|image|>", images=pictures, max_tokens=8, ignore_eos=True)) == (
        reply.text
    )


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("ab", {"images": ["/etc/passwd"]}, CamelidError, "must be a data URL"),
        (asking("/etc/passwd"), {}, CamelidError, "must be a data URL"),
        (asking(b"no picture"), {}, FormatError, "no picture"),
        (asking(None), {}, CamelidError, "1 places for images"),
        (asking(), {"images": [b""]}, CamelidError, "0 places for images"),
        (["ab", "cd"], {"images": [b""]}, CamelidError, "belong to one prompt"),
        ([97, 98], {"images": [Image.new("RGB", (3, 3))]}, CamelidError, "0 image tokens and 1 images"),
    ],
)
def test_images_that_have_no_place_or_show_nothing_are_refused(
    llm: LLM, prompt: Any, options: dict[str, Any], error: type[CamelidError], message: str
) -> None:
    with pytest.raises(error, match=message):
        llm.generate(prompt, max_tokens=2, **options)


def test_a_model_of_text_refuses_images(tiny_llm: LLM) -> None:
    with pytest.raises(CamelidError, match="reads text only"):
        tiny_llm.generate("ab", images=[Image.new("RGB", (3, 3))], max_tokens=2)
    with pytest.raises(ChatFormatError, match="template"):
        tiny_llm.generate(asking(Image.new("RGB", (3, 3))), max_tokens=2)


def test_a_chat_shows_pictures_keeps_them_and_saves_them(llm: LLM, pictures: list[Path], tmp_path: Path) -> None:
    conversation = Conversation(llm, sampling={"max_tokens": 4, "ignore_eos": True})

    _run_command(f"/image {pictures[0]}", conversation)
    said = "".join(conversation.ask("What?"))
    list(conversation.ask("And?"))
    conversation.save(tmp_path / "chat.json")

    saved = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert said == llm.generate(asking(pictures[0]), max_tokens=4, ignore_eos=True).text
    assert [message["role"] for message in saved] == ["user", "assistant", "user", "assistant"]
    assert saved[0]["content"][0] == {"type": "image_url", "image_url": {"url": url_of(pictures[0])}}
    assert saved[2]["content"] == "And?"
    again = llm.generate(saved[:3], max_tokens=4, ignore_eos=True).text
    assert again.strip() == saved[3]["content"]


def test_a_chat_with_a_model_of_text_shows_no_pictures(tiny_llm: LLM, pictures: list[Path]) -> None:
    with pytest.raises(CamelidError, match="reads text only"):
        Conversation(tiny_llm).show(pictures[0])


def test_the_folders_own_settings_prepare_the_images(pictures: list[Path]) -> None:
    one, other = new_llm(261), new_llm(261)
    other.preprocessor_config = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}

    assert other.image_reader == replace(one.image_reader, image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0))
    settings = {"images": [pictures[0]], "max_tokens": 10, "ignore_eos": True}
    assert one.generate("ab", **settings).token_ids != other.generate("ab", **settings).token_ids


def test_the_command_answers_about_the_pictures_it_is_given(
    pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = vocabularies.vision_tokenizer()
    folder = tmp_path / "model"
    save_huggingface(new_model(tokenizer.vocab_size), folder)
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))

    def answer(*options: str) -> str:
        asked = [str(folder), "--prompt", "What?", "--temperature", "0", "--max-tokens", "12", *options]
        app(asked, standalone_mode=False)
        return capsys.readouterr().out

    seen = answer("--image", str(pictures[0]), "--image", str(pictures[1]))

    assert seen.strip() == load(folder).generate(asking(*pictures), temperature=0, max_tokens=12).text.strip()
    assert seen != answer("--image", str(pictures[1]))
    assert seen != answer()

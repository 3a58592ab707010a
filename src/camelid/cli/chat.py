"""`camelid chat`: talk to a model in the terminal, or ask it one thing."""

from __future__ import annotations

import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camelid.base.errors import CamelidError
from camelid.cli.main import print_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from camelid.cli.conversation import Conversation

DEFAULT_MODEL = "smollm2-135m-instruct"

HELP = '''\
  /clear          forget the conversation
  /system TEXT    set the system message and start again; without TEXT, show it
  /image FILE     show a picture along with the next message
  /save FILE      write the conversation as JSON
  /help           this list
  /exit           leave (so does Ctrl-D)
  """             start and end a message of several lines; a line that ends in \\ goes on too
  Ctrl-C          stop the reply'''

app = typer.Typer(add_completion=False, help="Talk to a model in the terminal, or ask it one thing.")


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(help="A catalogue name, a folder, a file or a pulled hub id.")
    ] = DEFAULT_MODEL,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this once and exit.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture that the first message shows; may be given again.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; default: what the model recommends.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the likeliest tokens of this total.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest reply.")] = 512,
    seed: Annotated[int | None, typer.Option(help="Makes the replies reproducible.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; default: the best present.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: what suits.")] = None,
    stats: Annotated[bool, typer.Option(help="After each reply, print its tokens per second.")] = False,
) -> None:
    """Talk to a model. Without a terminal, what comes on standard input is one prompt."""
    if prompt is None and not (sys.stdin and sys.stdin.isatty()):
        prompt = sys.stdin.read().strip() if sys.stdin else ""
        if not prompt:
            _tell("nothing to answer: there is no terminal and no prompt (give one with --prompt, or PROMPT=… to make)")
            return
    given = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    conversation = _open(model, system, {k: v for k, v in given.items() if v is not None}, device, dtype)
    for picture in image or []:
        conversation.show(picture)
    if prompt is not None:
        _print_reply(conversation, prompt, stats)
        return
    _talk(conversation, model, stats)


def _open(model: str, system: str | None, given: dict[str, Any], device: str | None, dtype: str | None) -> Conversation:
    from camelid.checkpoint.pull import pull_if_missing

    started = time.monotonic()
    pull_if_missing(model)
    _tell(f"loading {model} …")
    from camelid.cli.conversation import Conversation
    from camelid.llm import load

    llm = load(model, device=device, dtype=dtype)
    sampling = {**recommended_sampling(model, llm.generation_config), **given}
    conversation = Conversation(llm, system=system, sampling=sampling)
    assert llm.chat_format  # a base model has none: say so now, not at the first message
    _tell(f"ready in {time.monotonic() - started:.1f} s: context {llm.context_length} tokens")
    return conversation


def recommended_sampling(model: str, generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """What the checkpoint or the catalogue recommends; else the 0.6 and 0.9 of Meta's reference code."""
    from camelid.checkpoint.catalogue import CATALOGUE

    in_checkpoint = {name: generation_config.get(name) for name in ("temperature", "top_k", "top_p")}
    given = {name: value for name, value in in_checkpoint.items() if value is not None}
    in_catalogue = CATALOGUE[model].sampling if model in CATALOGUE else {}
    return given or dict(in_catalogue) or {"temperature": 0.6, "top_p": 0.9}


def _talk(conversation: Conversation, model: str, stats: bool) -> None:
    with suppress(ImportError):  # Windows has none
        import readline  # line editing and history for input()

        readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one message

    _tell(f"You are talking to {model}. /help lists the commands.")
    while True:
        try:
            text = _read_message()
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            _tell("Ctrl-D or /exit leaves")
            continue
        if not text.strip():
            continue
        try:
            if text.startswith("/") and "\n" not in text:
                if not _run_command(text, conversation):
                    return
                continue
            _print_reply(conversation, text, stats)
        except CamelidError as error:
            print_error(error)


def _run_command(text: str, conversation: Conversation) -> bool:
    """Run a /command; False means leave."""
    command, _, argument = text[1:].partition(" ")
    argument = argument.strip()
    if command in ("exit", "quit", "bye"):
        return False
    if command == "clear":
        conversation.clear()
        _tell("forgotten")
    elif command == "system" and argument:
        conversation.system = argument
        conversation.clear()
        _tell("system message set; the conversation starts again")
    elif command == "system":
        _tell(conversation.system or "no system message set: the model's own default applies")
    elif command == "image" and argument:
        conversation.show(_path(argument))
        _tell(f"the next message shows {len(conversation.shown)} picture{'s' * (len(conversation.shown) > 1)}")
    elif command == "image":
        _tell("name a picture: /image cat.png")
    elif command == "save" and argument:
        path = _path(argument)
        conversation.save(path)
        _tell(f"saved {len(conversation.messages)} messages to {path}")
    elif command == "save":
        _tell("name a file: /save conversation.json")
    elif command == "help":
        print(HELP, file=sys.stderr)
    else:
        _tell(f"there is no command /{command}; /help lists them")
    return True


def _path(argument: str) -> Path:
    path = Path(argument)
    with suppress(RuntimeError):  # no such user's home: then it is a name like any other
        path = path.expanduser()
    return path


def _read_message() -> str:
    """One message: a line, lines joined by a final backslash, or everything between two triple quotes."""
    line = input(">>> ")
    if not line.lstrip().startswith('"""'):
        while line.endswith("\\"):
            line = line[:-1] + "\n" + input("... ")
        return line
    text = line.lstrip()[3:]
    while not text.rstrip().endswith('"""'):
        text += "\n" + input("... ")
    return text.rstrip()[:-3].strip("\n")


def _print_reply(conversation: Conversation, text: str, stats: bool) -> None:
    """Print the reply to `text` as it comes; Ctrl-C stops it."""
    started = time.monotonic()
    dropped = conversation.num_dropped
    pieces = conversation.ask(text)
    if conversation.num_dropped > dropped:
        _tell(f"the context is full: {conversation.num_dropped - dropped} of the oldest turns forgotten")
    first = None
    with closing(pieces):
        try:
            for piece in pieces:
                first = first or time.monotonic()
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="", flush=True)
    print(flush=True)
    if conversation.finish_reason == "length":
        _tell(f"[cut after {conversation.num_reply_tokens} tokens; --max-tokens allows more]")
    if stats and first is not None:
        rate = (conversation.num_reply_tokens - 1) / max(time.monotonic() - first, 1e-6)
        _tell(
            f"{conversation.num_reply_tokens} tokens, the first after {first - started:.2f} s, then {rate:.1f} tokens/s"
        )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

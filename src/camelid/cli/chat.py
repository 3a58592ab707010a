"""`camelid chat`: talk to a model in the terminal, or ask it one thing."""

from __future__ import annotations

import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camelid.base.errors import CamelidError
from camelid.cli.generation import (
    ChoiceOptions,
    EngineOptions,
    PenaltyOptions,
    ReplyOptions,
    open_llm,
    sampling_settings,
    with_recommended,
)
from camelid.cli.main import print_error
from camelid.cli.spread import spread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from camelid.cli.conversation import Conversation
    from camelid.engine.step import StepStats

DEFAULT_MODEL = "smollm2-135m-instruct"

HELP = '''\
  /clear          forget the conversation
  /system TEXT    set the system message and start again; without TEXT, show it
  /adapter NAME   answer with an adapter, "none" without; without NAME, list them
  /image FILE     show a picture along with the next message
  /save FILE      write the conversation as JSON
  /help           this list
  /exit           leave (so does Ctrl-D)
  """             start and end a message of several lines; a line that ends in \\ goes on too
  Ctrl-C          stop the reply'''

app = typer.Typer(add_completion=False, help="Talk to a model in the terminal, or ask it one thing.")


@app.command()
@spread
def chat(
    model: Annotated[
        str, typer.Argument(help="A catalogue name, a folder, a file or a pulled hub id.")
    ] = DEFAULT_MODEL,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this once and exit.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture that the first message shows; may be given again.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="After each reply, print its tokens per second.")] = False,
    *,
    reply: ReplyOptions,
    choice: ChoiceOptions,
    penalties: PenaltyOptions,
    engine: EngineOptions,
) -> None:
    """Talk to a model. Without a terminal, what comes on standard input is one prompt."""
    if prompt is None and not (sys.stdin and sys.stdin.isatty()):
        prompt = sys.stdin.read().strip() if sys.stdin else ""
        if not prompt:
            _tell("nothing to answer: there is no terminal and no prompt (give one with --prompt, or PROMPT=… to make)")
            return
    given = sampling_settings(reply, choice, penalties)
    n = given.pop("n", 1)
    if n > 1 and prompt is None:
        raise CamelidError("a conversation goes on from one reply", where="--n", hint="ask for several with --prompt")
    statistics = Statistics() if stats else None
    conversation = _open(model, system, given, engine, statistics)
    for picture in image or []:
        conversation.show(picture)
    if prompt is not None and n > 1:
        _print_replies(conversation, prompt, n, statistics)
    elif prompt is not None:
        _print_reply(conversation, prompt, statistics)
    else:
        _talk(conversation, model, statistics)


class Statistics:
    """A line about each reply, with what the engine's steps say of guesses."""

    def __init__(self) -> None:
        self._num_drafts = self._num_accepted = 0
        self._before = (0, 0)

    def note(self, step: StepStats) -> None:
        """For the engine's `on_step`."""
        self._num_drafts, self._num_accepted = step.num_drafts, step.num_accepted

    def tell(self, line: str) -> None:
        """Say something of a reply, and how many guesses there were since the last time."""
        num_drafts, num_accepted = self._num_drafts - self._before[0], self._num_accepted - self._before[1]
        self._before = (self._num_drafts, self._num_accepted)
        _tell(line + f"; {num_accepted} of {num_drafts} guesses were right" * (num_drafts > 0))


def _open(
    model: str, system: str | None, given: dict[str, Any], options: EngineOptions, statistics: Statistics | None
) -> Conversation:
    from camelid.checkpoint.pull import pull_if_missing

    started = time.monotonic()
    for name in filter(None, (model, options.draft)):
        pull_if_missing(name)
    _tell(f"loading {model} …")
    from camelid.cli.conversation import Conversation

    llm = open_llm(model, options, **({"on_step": statistics.note} if statistics else {}))
    sampling = with_recommended(given, recommended_sampling(model, llm.generation_config))
    sampling["adapter"] = next(iter(llm.engine.adapter_names), None)
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


def _talk(conversation: Conversation, model: str, statistics: Statistics | None) -> None:
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
            _print_reply(conversation, text, statistics)
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
    elif command == "adapter" and argument:
        conversation.use_adapter(None if argument == "none" else argument)
        _tell(f"answers come from the adapter {argument}" if argument != "none" else "answers come without an adapter")
    elif command == "adapter":
        now = conversation.sampling.get("adapter")
        names = [f"{name} (answers now)" if name == now else name for name in conversation.llm.engine.adapter_names]
        _tell(", ".join(names) or "there are no adapters: --adapter PATH brings one along")
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


def _print_replies(conversation: Conversation, text: str, n: int, statistics: Statistics | None) -> None:
    """Print several replies to `text`, each under its number."""
    started = time.monotonic()
    replies = conversation.replies(text, n)
    for number, reply in enumerate(replies, 1):
        _tell(f"[{number} of {n}{', cut' * (reply.finish_reason == 'length')}]")
        print(reply.text.strip(), flush=True)
    if statistics:
        num_tokens, seconds = sum(len(reply.token_ids) for reply in replies), time.monotonic() - started
        statistics.tell(f"{num_tokens} tokens in {seconds:.2f} s")


def _print_reply(conversation: Conversation, text: str, statistics: Statistics | None) -> None:
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
    if statistics and first is not None:
        num_tokens = conversation.num_reply_tokens
        rate = (num_tokens - 1) / max(time.monotonic() - first, 1e-6)
        statistics.tell(f"{num_tokens} tokens, the first after {first - started:.2f} s, then {rate:.1f} tokens/s")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

"""What the commands share: their options, where the storage is, and how they print.

Heavy packages are imported inside functions, so that `vqsearch --help` is there at once.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from search.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from search.space import Space

DEFAULT_STORAGE = "sqlite:///vqsearch.db"
DEFAULT_OUTPUT = "./vqsearch-output"

_STORAGE_FILE = "search.options.storage_file"


class Command(click.Command):
    """A command whose help keeps the lines of its example, and which runs as a job where its address is a cluster's."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it here, or hand it to the cluster that `--address` names from outside."""
        address = ctx.params.get("address")
        if _is_outside(address):
            return _submit(ctx, str(address))
        return super().invoke(ctx)

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, a command a line."""
        if self.epilog:
            formatter.write_paragraph()
            formatter.write("Example:\n" + "".join(f"  {line.strip()}\n" for line in self.epilog.splitlines()))


def storage_option(function: Any) -> Any:
    """`--storage` and `--storage-file`, the same for every command."""
    function = click.option(
        "--storage-file",
        metavar="FILE",
        callback=_read_storage_file,
        expose_value=False,
        help="A file whose first line is that URL: for one with a password, which $VQSEARCH_STORAGE may hold too.",
    )(function)
    return click.option(
        "--storage",
        metavar="URL",
        help="Where studies are kept: sqlite:///FILE, postgresql://..., journal:///FILE. "
        f"Default: the space file's, else $VQSEARCH_STORAGE, else {DEFAULT_STORAGE}.",
    )(function)


def _is_outside(address: str | None) -> bool:
    """Whether an address is that of a cluster's job server."""
    return address is not None and address.startswith(("http://", "https://"))


def _read_storage_file(context: click.Context, _option: click.Parameter, path: str | None) -> None:
    """Keep file and URL for `storage_url`; read once, since the file may be a pipe."""
    if path is None:
        return
    if _is_outside(context.params.get("address")):
        if not path.startswith("/"):
            raise UserError(f"--storage-file {path}: lies on the cluster's head; expected its absolute path there")
        context.meta[_STORAGE_FILE] = (path, "")
        return
    try:
        with open(path, encoding="utf-8") as file:
            mode, url = os.fstat(file.fileno()).st_mode, file.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"--storage-file {path}: can't be read: {problem}") from None
    if "://" not in url:
        raise UserError(f"--storage-file {path}: its first line is no storage URL, such as {DEFAULT_STORAGE}")
    # Its group may read it: Kubernetes gives secrets to a pod's user that way.
    if stat.S_IMODE(mode) & stat.S_IRWXO and _holds_password(url):
        raise UserError(
            f"--storage-file {path}: holds a password that everyone on this machine may read; chmod o= '{path}'"
        )
    context.meta[_STORAGE_FILE] = (path, url)


def _holds_password(text: str) -> bool:
    from search.storage import holds_password

    return holds_password(text)


plugin_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="FILE",
    help="A Python file with parts of your own, which runs here; see docs/plugins.md.",
)
accept_option = click.option(
    "--accept-code", is_flag=True, help="Take a plug-in though it has changed since the study was made."
)
study_option = click.option("--study", metavar="NAME", help="The study; needed where the storage holds several.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print the outcome only.")
address_option = click.option(
    "--address",
    metavar="RAY",
    is_eager=True,  # known before --storage-file is read, which may lie there
    help="A Ray cluster to run on: auto or HOST:6379 from a node of it, http://HOST:8265 submits a job from outside. "
    "Default: this machine.",
)
wait_option = click.option("--wait-for-nodes", is_flag=True, help="Go on though no node can run a trial yet.")
detach_option = click.option(
    "--detach", is_flag=True, help="Go on in the background when the terminal closes; write to a log."
)
output_option = click.option(
    "--output", metavar="DIR", help=f"Where checkpoints go: a folder or a bucket URL. Default: {DEFAULT_OUTPUT}."
)


def storage_url(flag: str | None, space: Space | None = None) -> str:
    """The URL of the storage: the flags', else the space file's, else the environment's, else the default.

    Raises:
        UserError: both flags were given, or a password stands on the command line, where `ps` shows it to everyone.
    """
    context = click.get_current_context(silent=True)
    path, url = context.meta.get(_STORAGE_FILE, (None, None)) if context else (None, None)
    settings = context.params.get("overrides", ()) if context else ()
    if flag and url:
        raise UserError(f"--storage and --storage-file {path}: both say where the studies are; expected one of them")
    if any(_holds_password(word) for word in (flag or "", *settings)):
        raise UserError(
            "a command line shows the storage's password to everyone on this machine; expected --storage-file FILE, "
            "$VQSEARCH_STORAGE, or a URL without one and ~/.pgpass"
        )
    found = flag or url or (space and space.storage) or os.environ.get("VQSEARCH_STORAGE") or DEFAULT_STORAGE
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        from search import jobs

        jobs.refuse_a_file(found)
    return found


def storage_file(url: str) -> str:
    """The file that `--storage-file` named, where this URL came from it; else ""."""
    context = click.get_current_context(silent=True)
    path, named = context.meta.get(_STORAGE_FILE, ("", None)) if context else ("", None)
    return str(path) if url == named else ""


def storage_flag(url: str) -> str:
    """What a command line needs to find this storage again, without its password; "" where it is the default one."""
    from search.storage import redact

    if path := storage_file(url):
        return f" --storage-file '{path}'"
    return f" --storage '{redact(url)}'" if url != storage_url(None) else ""


def load(storage: str | None, study: str | None) -> Any:
    """A study to look at, and its space."""
    from search import catalog
    from search.storage import open_storage

    return catalog.load(open_storage(storage_url(storage), create=False), study)


def load_driven(storage: str | None, study: str | None) -> tuple[Any, str]:
    """A study to ask something of its driver, and the name by which people know what that drives.

    Of a comparison, whose arms have one driver, it is the first arm that is driven.
    """
    from search import catalog, compare, lease
    from search.storage import open_storage

    store = open_storage(storage_url(storage), create=False)
    compared = compare.name_of(store, [study])
    names = catalog.expand(store, [study])
    driven = [name for name in names if name is not None and lease.driver(store, name) is not None]
    loaded = catalog.load(store, (driven if compared and driven else names)[0])[0]
    return loaded, compared or loaded.study_name


def again(context: click.Context, others: Mapping[str, Any] | None = None) -> list[str]:
    """The command line of a command, without --detach and without its storage, which may hold a password.

    Args:
        context: of the command.
        others: name of a parameter -> the value it has instead.
    """
    words = [str(context.info_name)]
    for parameter in context.command.params:
        value = {**context.params, **(others or {})}.get(parameter.name or "")
        if parameter.name in ("detach", "storage", "storage_file") or value in (None, False):
            continue
        flag = [parameter.opts[0]] if isinstance(parameter, click.Option) else []
        for each in value if isinstance(value, tuple) else (value,):
            if not str(each).startswith("storage="):
                words += flag if each is True else [*flag, str(each)]
    return words


def _submit(context: click.Context, address: str) -> None:
    """Run this command as a job of a cluster."""
    from pathlib import Path

    from search import jobs

    given = context.params
    if given.get("storage"):
        raise UserError(f"--storage: a job takes its storage from the head alone; expected {jobs.HEADS}")
    file, plugins = given.get("space") or given.get("comparison"), given.get("plugins", ())
    sent = jobs.named(
        jobs.Parcel(
            file=file,
            plugins=plugins,
            overrides=given.get("overrides", ()),
            output=given.get("output"),
            name=given.get("study") or "",
        ),
        given.get("trials") if file else None,
    )
    others: dict[str, Any] = {"address": "auto", "plugins": tuple(sent.names())}
    if file:
        others |= {"comparison" if "comparison" in given else "space": Path(file).name}
        if sent.plugins:  # those of the file lie elsewhere there
            others["overrides"] = (*sent.overrides, "plugins=[]")
    words = again(context, others)
    path, _ = context.meta.get(_STORAGE_FILE, ("", ""))
    job = jobs.submit(address, [*words, *(["--storage-file", path] if path else [])], sent)
    say(f"job {job} is submitted; it runs with or without this terminal")
    say(f"follow it:  ray job logs {job} --address {address} --follow")
    say(f"its state:  ray job status {job} --address {address}")
    which = f" --study {sent.name}" if sent.name else ""
    say(f"drain it:   vqsearch stop{which}, where the storage can be reached")


def start_again(more: list[str], url: str, names: Sequence[str], root: str | None, shown: str = "") -> None:
    """Run this command again where no terminal can end it.

    Args:
        more: flags besides those it was given.
        url: storage URL.
        names: of the studies that are opened.
        root: output root; None for that of the study, or the default one.
        shown: what is said to be opened, where that is a comparison.
    """
    from search import detach

    log = detach.log_of(url, names[0], root)
    process, began = detach.start([*again(click.get_current_context()), *more], url, log)
    shown = shown or names[0]
    say(f"{shown}: process {process.pid} opens the study; its log: {log}")
    if not detach.wait_until_open(process, url, names):
        with log.open("rb") as file:
            file.seek(began)
            click.echo(file.read().decode(errors="replace"), err=process.returncode != 0, nl=False)
        sys.exit(process.returncode if process.returncode >= 0 else 128 - process.returncode)
    flags = storage_flag(url)
    say(f"{shown}: the search runs, with or without this terminal")
    say(f"watch it:  tail -f '{log}'")
    say(f"look at:   vqsearch status{flags} --study {shown}")
    say(f"stop it:   vqsearch stop{flags} --study {shown}")


def terminal() -> Console:
    """Where to print what is more than a line."""
    from search.text import PlainConsole

    return PlainConsole()


def say(line: str, err: bool = False) -> None:
    """Print a line; what a terminal would obey in it, such as a name from a storage, is shown as the text it is."""
    from search.text import printable

    click.echo(printable(line), err=err)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2))

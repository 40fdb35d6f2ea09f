"""Command-line flags from configuration dataclasses; every mistake on the command line becomes one line."""

import argparse
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

import simple_parsing
from simple_parsing import ArgumentGenerationMode, DashVariant

from toolkit.errors import UserError, unknown


class OneLineParser(simple_parsing.ArgumentParser):
    """A parser that raises `UserError` where argparse would print its usage and exit."""

    def format_help(self) -> str:
        """Head each group with its dataclass's docstring instead of the class's name."""
        return re.sub(r"^\w+ \['\w+'\]:\n  (.+?)\.?\n", r"\1:\n", super().format_help(), flags=re.MULTILINE)

    def error(self, message: str) -> NoReturn:
        """Name the nearest valid choice where the message is about one."""
        wrong = re.match(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message)
        if wrong:
            flag, given, valid = wrong.groups()
            raise unknown(flag.removeprefix("--"), given, re.split(r",\s*", valid.replace("'", "")))
        raise UserError(message)


def parse(
    argv: Sequence[str],
    groups: Mapping[str, Any],
    *,
    prog: str,
    description: str,
    elsewhere: Mapping[str, str] = {},
    also: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Parse flags into one dataclass instance a group.

    Args:
        groups: name -> instance that holds the defaults; every field becomes a flag.
        elsewhere: flags that exist but do not belong here, with where they do.
        also: groups that help shows below the others and that are not parsed; they may share flags with them.

    Raises:
        UserError: an unknown flag (nearest valid one suggested), a wrong value, settings that contradict.
    """
    parser = _parser(groups, prog=prog, description=description)
    if also and {"-h", "--help"} & set(argv):
        # A parser of their own: one parser would rename the flags that both have.
        page = io.StringIO()
        _parser(also, prog=prog, add_help=False).print_help(page)
        parser.epilog = page.getvalue().partition("\n\n")[2].strip("\n")
    parsed, strays = parser.parse_known_args(list(argv))
    for given in strays:
        raise _stray(given, groups, elsewhere)
    return {name: getattr(parsed, name) for name in groups}


def _parser(groups: Mapping[str, Any], **settings: Any) -> OneLineParser:
    parser = OneLineParser(
        **settings,
        allow_abbrev=False,
        add_option_string_dash_variants=DashVariant.DASH,
        argument_generation_mode=ArgumentGenerationMode.FLAT,
        formatter_class=_Formatter,
    )
    for name, default in groups.items():
        parser.add_arguments(type(default), dest=name, default=default)
    return parser


class _Formatter(simple_parsing.SimpleHelpFormatter):
    """Help with room for the flags and their one line each."""

    def __init__(self, prog: str) -> None:
        argparse.HelpFormatter.__init__(self, prog, max_help_position=28, width=110)


def flag_of(field_name: str) -> str:
    """The flag that sets a field."""
    return "--" + field_name.replace("_", "-")


def _stray(given: str, groups: Mapping[str, Any], elsewhere: Mapping[str, str]) -> UserError:
    flag = given.split("=")[0]
    if flag in elsewhere:
        return UserError(f"{flag} belongs to {elsewhere[flag]}: leave it out or change --target")
    if not given.startswith("-"):
        return UserError(f"unexpected argument {given!r}: every setting is a flag, see --help")
    return unknown("flag", flag, [flag_of(f.name) for group in groups.values() for f in fields(group)])

"""How a verb's help looks: plain, as git's and restic's."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand

from ..errors import ConfigError

__all__ = ["Verb"]


class Verb(TyperCommand):
    """A command whose arguments are named in the usage line as they are typed, without their types."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line."""
        arguments = [param.metavar or param.name or "" for param in self.params if isinstance(param, TyperArgument)]
        return ["[OPTIONS]", *arguments]

    def invoke(self, ctx: Any) -> Any:
        """Run the verb, unless something that was given is empty: a shell's unset variable, most often."""
        for param in self.params:
            given = ctx.params.get(param.name)
            if "" in (given if isinstance(given, (list, tuple)) else [given]):
                name = param.metavar if isinstance(param, TyperArgument) else max(param.opts, key=len)
                raise ConfigError(f"{name} is empty.", hint="Leave it out, or say what it should be.")
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options."""
        arguments, options = [], []
        for param in self.get_params(ctx):
            if isinstance(param, TyperArgument):
                arguments.append((param.metavar or param.name or "", param.help or ""))
                continue
            record = param.get_help_record(ctx)
            if record is not None:
                options.append(record)
        for title, records in (("Arguments", arguments), ("Options", options)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

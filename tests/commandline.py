"""The command line as tests ask it: for a value, for a complaint, or for whatever it does."""

import json

from click.testing import Result
from typer.testing import CliRunner

from intq.cli import app


def invoke(*arguments) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def answer(*arguments):
    """The JSON value of a command that succeeds; standard output holds nothing else."""
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def complaint(*arguments) -> str:
    """The sentence of a command that refuses: exit code 2, nothing on standard output, one line on standard error."""
    result = invoke(*arguments)
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr

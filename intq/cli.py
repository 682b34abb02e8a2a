"""The command line: the application and all its commands, in the order in which `--help` lists them.

Answers go to standard output, everything else to standard error.
"""

from intq import commands, commands_finetune, commands_report, commands_search
from intq.app import app, main

__all__ = ["app", "commands", "commands_finetune", "commands_report", "commands_search", "main"]

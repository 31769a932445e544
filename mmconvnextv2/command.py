"""How a command ends: one line for what the user can mend, a traceback for any other error."""
import gc
import os
import re
import sys
import traceback
from argparse import Namespace
from typing import Callable, Optional

import torch.distributed as dist

from .faults import explain_fault
from .typos import explain_typo

# A traceback's last entry when a `raise` statement of this package made the error: file, statement, message
STATED = re.compile(r'File "([^"]+)", line \d+, in [^\n]*\n\s+raise (?:Value|FileNotFound|FileExists|Runtime)Error\('
                    r'(?:(?!File ")[\s\S])*?^\w+: ([\s\S]+)\Z', re.MULTILINE)


def run_tool(tool: Callable[[Namespace], object], args: Namespace) -> None:
    """Run a command; what the user can mend ends as one line and exit status 1, anything else as a traceback.

    Errors that this package raises on purpose, and files that cannot be opened, are the user's to mend;
    ``--traceback`` shows where they were found.
    """
    try:
        tool(args)
    except Exception as error:
        message = stated_mistake(error)
        if message is None or args.traceback:
            raise
        sys.exit(f'error: {message}')
    if dist.is_initialized():  # left to the interpreter's end, gloo's threads abort the process now and then
        gc.collect()  # the wrapped model holds the group too
        dist.destroy_process_group()


def stated_mistake(error: Optional[BaseException]) -> Optional[str]:
    """Return the one-line message of an error that is the user's to mend, in this process or a data loader's worker;
    None for any other."""
    if error is None:
        return None
    match = STATED.search(''.join(traceback.format_exception(error, chain=False)).rstrip())
    if match and os.path.abspath(match[1]).startswith(os.path.dirname(os.path.abspath(__file__)) + os.sep):
        return ' '.join(match[2].split())
    if isinstance(error, OSError) and error.filename:
        return f'{error.filename}: {error.strerror}'
    return explain_fault(error) or explain_typo(error) or stated_mistake(error.__cause__ or error.__context__)

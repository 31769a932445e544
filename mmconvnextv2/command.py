"""How a command ends: one line for what the user can mend, a traceback for any other error."""
import gc
import re
import sys
from argparse import Namespace
from typing import Callable, Optional

import torch.distributed as dist

from .errors import UserError
from .faults import explain_fault
from .typos import explain_typo

IN_WORKER = 'Original Traceback (most recent call last)'  # torch puts a worker's traceback into the message


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
    if isinstance(error, UserError):
        text = str(error)
        if IN_WORKER in text:
            text = re.split(rf'^[\w.]*{type(error).__name__}: ', text, flags=re.MULTILINE)[-1]
        return ' '.join(text.split())
    if isinstance(error, OSError) and error.filename:
        return f'{error.filename}: {error.strerror}'
    return explain_fault(error) or explain_typo(error) or stated_mistake(error.__cause__ or error.__context__)

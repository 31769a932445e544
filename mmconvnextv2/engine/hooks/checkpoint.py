"""Checkpoints that survive a kill, a full disk or a failing disk.

mmengine's ``CheckpointHook`` writes directly to the final name, deletes the oldest checkpoint before the new one is
complete, and truncates ``last_checkpoint`` to write it. Here a file gets its final name once it is complete, flushed to
disk and read back. Only then does ``last_checkpoint`` point to it, and only then are outdated files removed.
"""

import logging
import os
import re
import shutil
from collections import deque
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ...checkpoint.plain import restore_histories, to_plain
from ...utils.errors import RunError, UserError
from ...utils.suggestions import nearest
from ..folder_lock import lock_folder

PART = '.part'  # suffix of a file that is being written
OUTDATED = 'outdated_checkpoints'  # key in a checkpoint's message hub: the files that it makes outdated
CHUNK = 2**24
ATOMIC = dict(backend='atomic')


class AtomicBackend(LocalBackend):
    """mmengine file backend ``'atomic'``, which writes a local file completely or not at all.

    A kill leaves at most a file ending in ``.part`` next to it.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a temporary name, flush them to disk, read them back, then rename.

        Args:
            obj (bytes): Content of the file.
            filepath (str | Path): Path of the file; missing folders are created.

        Raises:
            RuntimeError: If the disk is full or returns other bytes. A previous file at ``filepath`` is untouched.
        """
        target = Path(filepath)
        part = target.with_name(target.name + PART)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_to_disk(part, obj)
            whole = _holds(part, obj)
            if whole:
                os.replace(part, target)
                _flush_folder(target.parent)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise RunError(
                f'cannot write {target} ({len(obj) / 2**20:.1f} MiB): {error.strerror}, {_free(target.parent)} MiB are '
                'free. Earlier checkpoints are untouched: free some space, then continue with --resume'
            ) from error
        if not whole:
            part.unlink()
            raise RunError(
                f'{target} reads back different bytes than were written: the disk is failing. Earlier checkpoints '
                'are untouched: set another --work-dir'
            )

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text in the same way as :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


def _write_to_disk(path: Path, content: bytes) -> None:
    with open(path, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _holds(path: Path, content: bytes) -> bool:
    """Return whether a file holds exactly these bytes."""
    view = memoryview(content)
    with open(path, 'rb') as file:
        same = all(file.read(CHUNK) == view[start : start + CHUNK] for start in range(0, len(view), CHUNK))
        return same and not file.read(1)


def _flush_folder(folder: Path) -> None:
    """Flush a rename to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free // 2**20 if folder.exists() else 0


register_backend('atomic', AtomicBackend, force=True)


def write_last_checkpoint(runner, checkpoint: str) -> None:
    """Point ``last_checkpoint``, which ``--resume`` follows, to a checkpoint."""
    if is_main_process():
        AtomicBackend().put_text(str(checkpoint), os.path.join(runner.work_dir, 'last_checkpoint'))


@HOOKS.register_module()
class VerifiedCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` that always keeps a loadable checkpoint, whenever the run is killed.

    There is briefly one file more than ``max_keep_ckpts``, since the oldest is removed once the newest is complete.

    Args:
        backend_args (dict, optional): Backend for files that are not local; such backends write objects atomically
            themselves. Defaults to None, this package's ``AtomicBackend``.
        kwargs: See mmengine's ``CheckpointHook``.
    """

    def __init__(self, *args, backend_args: dict | None = None, out_dir: str | None = None, **kwargs) -> None:
        if backend_args is None and '://' not in str(out_dir or ''):
            backend_args = dict(ATOMIC)
        super().__init__(*args, backend_args=backend_args, out_dir=out_dir, **kwargs)
        self._warned = False  # that the metric of save_best is missing

    def before_train(self, runner) -> None:
        """Lock the folder, and remove files that a killed run left unfinished or had not yet removed.

        The list of files in a resumed checkpoint is trusted only for files in this run's folder whose names match this
        hook's, and only if the checkpoint itself is in that folder. A run that resumes in another folder does not own
        the files of the old one.
        """
        noted = runner.message_hub.runtime_info
        steps = noted.pop('keep_ckpt_ids', [])
        super().before_train(runner)
        if isinstance(self.file_backend, LocalBackend) and is_main_process():
            lock_folder(self.out_dir)
        continues = self._lies_here(runner._load_from) if runner._load_from else True
        outdated = noted.get(OUTDATED, []) if continues else []
        self._remove(list(outdated) if isinstance(outdated, (list, tuple)) else [])
        if self.max_keep_ckpts > 0:
            steps = steps if isinstance(steps, (list, deque)) else []
            steps = [step for step in steps if type(step) is int and step >= 0]
            self._remove([self._path_of(step) for step in steps[: -self.max_keep_ckpts]] if continues else [])
            self.keep_ckpt_ids = deque(steps if continues else [], self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        if self.save_best:
            self._set_best_paths(
                {key: self._own_path(path) if continues else None for key, path in self._best_paths().items()}
            )
        if isinstance(self.file_backend, AtomicBackend) and is_main_process():
            for part in Path(self.out_dir).glob('*' + PART):
                part.unlink(missing_ok=True)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Leave only tensors and plain types in a checkpoint, after all other hooks have added theirs."""
        for name, value in checkpoint.items():
            checkpoint[name] = to_plain(value)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Restore the logged scalars to what mmengine resumes from."""
        restore_histories((checkpoint.get('message_hub') or {}).get('log_scalars') or {})

    def _path_of(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))

    def _lies_here(self, path: str) -> bool:
        """Return whether a file is in the folder of this run's checkpoints; links of local paths are resolved."""
        folder = os.path.dirname(str(path))
        if '://' in str(path) or '://' in str(self.out_dir):
            return folder == str(self.out_dir).rstrip('/')
        return os.path.realpath(folder) == os.path.realpath(self.out_dir)

    def _own_path(self, path: object) -> str | None:
        """Return the path in this run's folder of a file that a checkpoint lists, even if the folder was moved.

        Returns:
            str | None: The path; None if this hook does not write such names or the file does not exist.
        """
        name = os.path.basename(path) if isinstance(path, str) else ''
        template = '[0-9]+'.join(map(re.escape, re.split(r'\{[^}]*\}', self.filename_tmpl)))
        if not re.fullmatch(f'(best_.+_)?{template}', name):
            return None
        own = self.file_backend.join_path(self.out_dir, name)
        return own if self.file_backend.exists(own) else None

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        """Write the checkpoint, point ``last_checkpoint`` to it, and only then remove outdated files."""
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        outdated = self._note_step(runner, step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        write_last_checkpoint(runner, self.last_ckpt)
        self._remove(outdated)

    def _note_step(self, runner, step: int) -> list[str]:
        """Record a step as kept, and return the paths of checkpoints that it makes outdated."""
        if self.max_keep_ckpts <= 0 or step in self.keep_ckpt_ids:
            return []
        steps = [*self.keep_ckpt_ids, step]
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        outdated = [self._path_of(old) for old in steps[: -self.max_keep_ckpts]]
        runner.message_hub.update_info(OUTDATED, outdated)  # for a run that resumes after a kill before the removal
        return outdated

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        """Save the best checkpoint as mmengine does, and only then remove the previous best."""
        if not self.save_best or self._lacks(metrics):
            return
        before = self._best_paths()
        self._set_best_paths(dict.fromkeys(before))  # otherwise mmengine removes them before saving
        super()._save_best_checkpoint(runner, metrics)
        after = {key: path or before.get(key) for key, path in self._best_paths().items()}
        self._set_best_paths(after)
        self._remove([path for path in before.values() if path and path not in after.values()])

    def _lacks(self, metrics: dict) -> bool:
        """Return whether the evaluation lacks the metric of ``save_best``, as that of a recipe with other evaluators.

        Raises:
            ValueError: If it has one of a similar name.
        """
        lacking = [key for key in self.key_indicators if key != 'auto' and key not in metrics]
        if not lacking:
            return False
        there = f'is not among the metrics of the evaluation, {", ".join(metrics)}'
        if nearest(lacking[0], metrics):
            raise UserError(f'default_hooks.checkpoint.save_best={lacking[0]!r} {there}')
        if not self._warned:
            self._warned = True
            said = f'no best checkpoint is kept: default_hooks.checkpoint.save_best={lacking[0]!r} {there}'
            print_log(said, 'current', logging.WARNING)
        return True

    def _best_paths(self) -> dict:
        return {None: self.best_ckpt_path} if len(self.key_indicators) == 1 else dict(self.best_ckpt_path_dict)

    def _set_best_paths(self, paths: dict) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = paths[None]
        else:
            self.best_ckpt_path_dict = paths

    def _remove(self, paths: list[str]) -> None:
        """Remove checkpoints of this run; paths outside its folder or with names of another form are skipped."""
        for path in paths if is_main_process() else []:
            own = self._own_path(path)
            if own is None or not self._lies_here(path):
                continue
            if self.file_backend.isfile(own):
                self.file_backend.remove(own)
            elif self.file_backend.isdir(own):
                self.file_backend.rmtree(own)

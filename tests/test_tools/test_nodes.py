"""Two local "nodes" of one process each, joined by torchrun or by Slurm's variables, train what two processes of one
node train."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmconvnextv2.checkpoint.load import load_file

ROOT = Path(__file__).parents[2]
SRUN = """#!/usr/bin/env bash
# A cluster of one task a node, all here: drops srun's options and starts the command once a task.
while [[ $1 == --* ]]; do case $1 in --ntasks=*) tasks=${1#*=};; esac; shift; done
for ((task = 0; task < tasks; task++)); do
    SLURM_PROCID=$task SLURM_NTASKS=$tasks SLURM_LOCALID=0 SLURM_NODELIST='node[1-2]' "$@" &
done
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit $status
"""
SCONTROL = '#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && printf "127.0.0.1\\nnode2\\n"\n'


@pytest.fixture
def environment(tmp_path):
    """Variables with a small Slurm on PATH, and no GPU."""
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ['PATH']])
    return {**os.environ, 'PATH': path, 'CUDA_VISIBLE_DEVICES': ''}


def start(command, environment, work_dir, tail):
    """Start a script of ``tools/`` with its output in a file of the work folder's name."""
    log = open(f'{work_dir}.{environment.get("NODE_RANK", "")}.log', 'w')
    return subprocess.Popen(
        ['bash', *command, '--work-dir', str(work_dir), *tail],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    ), Path(log.name)


def finish(*started):
    for process, log in started:
        assert process.wait(timeout=550) == 0, log.read_text()[-3000:]


@pytest.mark.slow
def test_two_nodes_are_two_processes(tools, environment, tmp_path):
    """dist_train.sh called on two nodes, and slurm_train.sh for two nodes, end with the weights, the moments and the
    schedule of dist_train.sh with two processes on one, to the last bit; one node alone writes, and each process
    trains its half: with one process the weights are others."""
    tail = ['--cfg-options', *tools.options('fcmae', 'train_dataloader.batch_size=1', 'env_cfg.dist_cfg.timeout=300')]
    train, config = 'tools/dist_train.sh', tools.configs['fcmae']
    finish(start([train, config, '2'], {**environment, 'PORT': '29531'}, tmp_path / 'one', tail))
    nodes = {**environment, 'NNODES': '2', 'MASTER_ADDR': '127.0.0.1', 'PORT': '29532'}
    finish(
        *(
            start([train, config, '1'], {**nodes, 'NODE_RANK': str(rank)}, tmp_path / 'torchrun', tail)
            for rank in range(2)
        )
    )
    slurm = {**environment, 'GPUS': '2', 'GPUS_PER_NODE': '1', 'MASTER_PORT': '29533'}
    finish(start(['tools/slurm_train.sh', 'partition', 'job', config], slurm, tmp_path / 'slurm', tail))
    alone = [*tail[:1], *tools.options('fcmae', 'train_dataloader.batch_size=1')]
    finish(start([train, config, '1'], {**environment, 'PORT': '29534'}, tmp_path / 'alone', alone))
    wanted = load_file(tmp_path / 'one' / 'epoch_1.pth')
    assert wanted['meta']['iter'] == 2 and wanted['param_schedulers'] is not None
    for name in ('torchrun', 'slurm'):
        found = load_file(tmp_path / name / 'epoch_1.pth')
        assert found['state_dict'].keys() == wanted['state_dict'].keys()
        for key, value in wanted['state_dict'].items():
            torch.testing.assert_close(found['state_dict'][key], value, rtol=0, atol=0)
        for number, moments in wanted['optimizer']['state'].items():
            torch.testing.assert_close(found['optimizer']['state'][number], moments, rtol=0, atol=0)
        assert len(list((tmp_path / name).glob('*/vis_data/scalars.json'))) == 1
    single = load_file(tmp_path / 'alone' / 'epoch_1.pth')
    assert single['meta']['iter'] == 4
    assert any(not torch.equal(single['state_dict'][key], value) for key, value in wanted['state_dict'].items())

"""A short run of the kill harness."""

import json
import signal
import subprocess
import sys

import pytest

from resnet_jax.checkpoints.checkpoint import checkpoint_steps


@pytest.mark.slow
def test_interrupted_runs_end_like_undisturbed_ones(root, tmp_path):
    """SIGKILL and SIGTERM; one of three faults is in a job of two processes."""
    report, folder = tmp_path / 'report.json', tmp_path / 'runs'
    command = [sys.executable, '-m', 'tests.training.kill_harness', '--kills=2', '--terminations=1', '--epochs=4']
    command += ['--of_two_processes=1', f'--folder={folder}', f'--json={report}']
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(report.read_text())
    assert results['equal'] == len(results['faults']) == 3
    assert [fault['processes'] for fault in results['faults']] == [1, 2, 1]
    signals = {strike['signal'] for fault in results['faults'] for strike in fault['strikes']}
    assert signals == {signal.SIGKILL.name, signal.SIGTERM.name}
    for fault in results['faults']:
        assert checkpoint_steps(folder / f'fault{fault["number"]}' / 'checkpoints')[-1] == 4 * 11

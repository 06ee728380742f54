"""Runs that are struck at random moments, by the harness that does the same many times more."""

import json
import signal
import subprocess
import sys

import pytest

from resnet_jax.checkpoints.checkpoint import checkpoint_steps


@pytest.mark.slow
def test_struck_at_any_moment_a_run_ends_the_same(root, tmp_path):
    """SIGKILL and SIGTERM; one fault of three strikes a job of two processes."""
    report, folder = tmp_path / 'report.json', tmp_path / 'runs'
    command = [sys.executable, '-m', 'tests.training.kill_harness', '--kills=2', '--terminations=1', '--epochs=4']
    command += ['--of_two_processes=1', f'--folder={folder}', f'--json={report}']
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(report.read_text())
    assert told['equal'] == len(told['faults']) == 3
    assert [fault['processes'] for fault in told['faults']] == [1, 2, 1]
    struck = {strike['signal'] for fault in told['faults'] for strike in fault['strikes']}
    assert struck == {signal.SIGKILL.name, signal.SIGTERM.name}
    for fault in told['faults']:
        assert checkpoint_steps(folder / f'fault{fault["number"]}' / 'checkpoints')[-1] == 4 * 11
